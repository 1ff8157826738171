"""Span corruption against the paper's example, T5's own lengths, a loop, and the exact distribution of its spans."""

from math import comb

import numpy as np
import pytest
from scipy.stats import chisquare

from t5x_lite.errors import UserError
from t5x_lite.objectives.span_corruption import (
    SpanCorruption,
    corrupt,
    corrupted_lengths,
    noise_mask,
    raw_length,
    spans_in,
)
from tests.objectives.vocabulary import row, task, vocabulary

RNG = np.random.default_rng(0)
EOS = 1


def test_lengths_are_those_of_random_spans_helper() -> None:
    """Raffel et al. 2020 trained on 512 inputs; T5's code cuts 568 tokens for them, which leave 114 targets."""
    published = task(512, "encoder_decoder", size=32100, sentinels=100)
    assert SpanCorruption().row_length(published) == 568
    assert corrupted_lengths(568, 0.15, 3.0) == (512, 114)
    features = SpanCorruption().example(row(RNG.integers(9, 32000, 568)), published, RNG)
    assert (features["tokens"] != 0).sum() == 512
    assert features["loss_weights"].sum() == len(features["targets"]) == 114
    assert features["tokens"][-1] == features["targets"][-1] == EOS


def test_half_of_the_text_as_noise_keeps_both_lengths_equal() -> None:
    """T5's hack for a density of one half: the longest text that fits is shortened until targets fit too."""
    found = raw_length(512, "encoder_decoder", 0.5, 3.0)
    inputs, targets = corrupted_lengths(found, 0.5, 3.0)
    assert targets <= inputs <= 512


def test_the_papers_figure() -> None:
    """Figure 2: Thank you [for inviting] me to your party [last] week."""
    words = ["Thank", "you", "for", "inviting", "me", "to", "your", "party", "last", "week"]
    ids = {word: number for number, word in enumerate(words, start=10)}
    noise = np.array([word in {"for", "inviting", "last"} for word in words])
    made = corrupt(np.array([ids[word] for word in words]), noise, vocabulary(100, 3))
    names = {number: word for word, number in ids.items()} | {99: "<X>", 98: "<Y>", 97: "<Z>", EOS: "</s>"}
    inputs, targets = (" ".join(names[int(i)] for i in side) for side in made)
    assert inputs == "Thank you <X> me to your party <Y> week </s>"
    assert targets == "<X> for inviting <Y> last <Z> </s>"


def by_loop(tokens: np.ndarray, hidden: np.ndarray, first_sentinel: int) -> list[int]:
    """noise_span_to_unique_sentinel as it is described: each run of hidden tokens becomes the next sentinel."""
    made, sentinel = [], first_sentinel
    for place, token in enumerate(tokens):
        if not hidden[place]:
            made.append(int(token))
        elif place == 0 or not hidden[place - 1]:
            made.append(sentinel)
            sentinel -= 1
    return [*made, EOS]


@pytest.mark.parametrize("seed", range(20))
def test_any_mask_gives_what_a_loop_gives(seed: int) -> None:
    rng = np.random.default_rng(seed)
    tokens, noise = rng.integers(10, 100, 30), rng.random(30) < 0.4
    inputs, targets = corrupt(tokens, noise, vocabulary(200, 40))
    assert inputs.tolist() == by_loop(tokens, noise, 199)
    assert targets.tolist() == by_loop(tokens, ~noise, 199)


def composition(total: int, parts: int) -> np.ndarray:
    """Chances of each size of the first of `parts` non-empty parts of `total`, all divisions equally likely."""
    sizes = range(1, total - parts + 2)
    return np.array([comb(total - size - 1, parts - 2) for size in sizes]) / comb(total - 1, parts - 1)


def test_spans_have_the_published_distribution() -> None:
    """random_spans_noise_mask: kept and lost tokens are each divided at random into as many parts as spans."""
    draws, length = 100_000, 40
    noise, spans = spans_in(length, 0.15, 2.0)
    assert (noise, spans) == (6, 3)
    rng = np.random.default_rng(1)
    sizes = np.empty((draws, 2 * spans), int)
    for draw in range(draws):
        mask = noise_mask(length, 0.15, 2.0, rng)
        borders = np.flatnonzero(np.diff(mask)) + 1
        runs = np.diff([0, *borders, length])
        assert mask.sum() == noise
        assert len(runs) == 2 * spans  # every draw has the same number of spans, and begins with kept tokens
        sizes[draw] = runs
    kept, lost = composition(length - noise, spans), composition(noise, spans)
    for number in range(spans):
        for column, expected in ((2 * number, kept), (2 * number + 1, lost)):
            counts = np.bincount(sizes[:, column], minlength=len(expected) + 1)[1:]
            enough = expected * draws >= 5
            seen, wanted = [*counts[enough], counts[~enough].sum()], [*expected[enough], expected[~enough].sum()]
            usable = np.array(wanted) > 0
            assert chisquare(np.array(seen)[usable], draws * np.array(wanted)[usable]).pvalue > 1e-4
    # Lengths of kept and of lost parts are drawn apart.
    together = np.zeros((len(lost), 2))
    for size, early in zip(sizes[:, 1], sizes[:, 0] <= np.median(sizes[:, 0]), strict=True):
        together[size - 1, int(early)] += 1
    shares = together.sum(1, keepdims=True) * together.sum(0) / draws
    assert chisquare(together.reshape(-1), shares.reshape(-1), ddof=len(lost)).pvalue > 1e-4


@pytest.mark.parametrize(("length", "inputs", "targets"), [(1, 1, 1), (2, 2, 2), (3, 3, 2)])
def test_documents_shorter_than_a_span_follow_the_published_fallback(length: int, inputs: int, targets: int) -> None:
    """random_spans_noise_mask takes at least two tokens, of which one is noise, and cuts the mask back."""
    tokens = np.arange(10, 10 + length)
    made = corrupt(tokens, noise_mask(length, 0.15, 3.0, RNG), vocabulary(100, 4))
    assert [len(side) - 1 for side in made] == [inputs, targets]


def test_packed_documents_are_segments_of_their_own_on_both_sides() -> None:
    packed = task(32, "encoder_decoder", sentinels=20)
    text = row(np.arange(10, 22), [1] * 7 + [2] * 5)
    features = SpanCorruption().example(text, packed, RNG)
    sizes = [corrupted_lengths(length, 0.15, 3.0) for length in (7, 5)]
    for side, names in enumerate([("segment_ids", "positions"), ("decoder_segment_ids", "decoder_positions")]):
        first, second = sizes[0][side], sizes[1][side]
        segments, places = (features[name][: first + second].tolist() for name in names)
        assert segments == [1] * first + [2] * second
        assert places == [*range(first), *range(second)]
    starts = np.flatnonzero(features["decoder_tokens"][: sizes[0][1] + sizes[1][1]] == 0)
    assert starts.tolist() == [0, sizes[0][1]]  # each begins from the start token, not from the other's last one


def test_a_decoder_is_given_inputs_and_targets_as_one_text() -> None:
    joined = task(64, sentinels=20)
    length = SpanCorruption().row_length(joined)
    assert sum(corrupted_lengths(length, 0.15, 3.0)) - 1 <= 64
    features = SpanCorruption().example(row(np.arange(10, 10 + length)), joined, RNG)
    inputs, targets = corrupted_lengths(length, 0.15, 3.0)
    assert features["prefix"].sum() == inputs
    assert features["loss_weights"].sum() == targets
    assert features["loss_weights"][inputs - 1] == 1  # the last input predicts the first target
    assert features["targets"][: inputs + targets - 2].tolist() == features["tokens"][1 : inputs + targets - 1].tolist()


@pytest.mark.parametrize(
    ("settings", "seq_len", "sentinels", "said"),
    [({}, 512, 20, "has up to 28 spans, the tokenizer has 20 sentinels"), ({}, 2, 100, "leaves no room")],
)
def test_what_cannot_be_corrupted_is_refused(settings: dict, seq_len: int, sentinels: int, said: str) -> None:
    with pytest.raises(UserError, match=said):
        SpanCorruption(**settings).check_context(task(seq_len, "encoder_decoder", sentinels=sentinels))
