"""Span corruption against the paper's example, T5's own lengths, a loop, and the exact distribution of its spans."""

from math import comb

import numpy as np
import pytest
from scipy.stats import chisquare

from t5x_lite.errors import UserError
from t5x_lite.objectives import UL2
from t5x_lite.objectives.span_corruption import (
    SpanCorruption,
    corrupt,
    corrupted_length,
    count_noise,
    noise_mask,
    raw_length,
)
from tests.objectives.vocabulary import context, row

RNG = np.random.default_rng(0)
EOS = 1


def test_lengths_are_those_of_random_spans_helper() -> None:
    """Raffel et al. 2020 trained on 512 inputs; T5's code cuts 568 tokens for them, which leave 114 targets."""
    published = context(512, "encoder_decoder", size=32100, sentinels=100)
    assert SpanCorruption().row_length(published) == 568
    assert corrupted_length(568, 0.15, 3.0) == (512, 114)
    features = SpanCorruption().example(row(RNG.integers(9, 32000, 568)), published, RNG)
    assert (features["tokens"] != 0).sum() == 512
    assert features["loss_weights"].sum() == len(features["targets"]) == 114
    assert features["tokens"][-1] == features["targets"][-1] == EOS


def test_a_noise_density_of_one_half_keeps_both_lengths_equal() -> None:
    """T5's hack for a density of one half: of 767 tokens, 384 in 128 spans, targets are one longer than the inputs."""
    assert corrupted_length(767, 0.5, 3.0) == (383 + 128 + 1, 384 + 128 + 1)
    assert raw_length(512, "encoder_decoder", 0.5, 3.0) == 766
    assert corrupted_length(766, 0.5, 3.0) == (512, 512)


def test_the_papers_figure() -> None:
    """Figure 2: Thank you [for inviting] me to your party [last] week."""
    words = ["Thank", "you", "for", "inviting", "me", "to", "your", "party", "last", "week"]
    ids = {word: number for number, word in enumerate(words, start=10)}
    is_noise = np.array([word in {"for", "inviting", "last"} for word in words])
    sides = corrupt(np.array([ids[word] for word in words]), is_noise, (99, 98, 97), EOS)
    names = {number: word for word, number in ids.items()} | {99: "<X>", 98: "<Y>", 97: "<Z>", EOS: "</s>"}
    inputs, targets = (" ".join(names[int(token)] for token in side) for side in sides)
    assert inputs == "Thank you <X> me to your party <Y> week </s>"
    assert targets == "<X> for inviting <Y> last <Z> </s>"


def corrupt_by_loop(tokens: np.ndarray, is_noise: np.ndarray, first_sentinel: int) -> list[int]:
    """noise_span_to_unique_sentinel as it is described: each run of noise becomes the next sentinel."""
    corrupted = []
    sentinel = first_sentinel
    for position, token in enumerate(tokens):
        if not is_noise[position]:
            corrupted.append(int(token))
        elif position == 0 or not is_noise[position - 1]:
            corrupted.append(sentinel)
            sentinel -= 1
    return [*corrupted, EOS]


@pytest.mark.parametrize("seed", range(20))
def test_any_mask_gives_the_result_of_a_loop(seed: int) -> None:
    rng = np.random.default_rng(seed)
    tokens = rng.integers(10, 100, 30)
    is_noise = rng.random(30) < 0.4
    inputs, targets = corrupt(tokens, is_noise, tuple(range(199, 159, -1)), EOS)
    assert inputs.tolist() == corrupt_by_loop(tokens, is_noise, 199)
    assert targets.tolist() == corrupt_by_loop(tokens, ~is_noise, 199)


def first_part_probabilities(total: int, parts: int) -> np.ndarray:
    """Probability of each size of the first of `parts` non-empty parts of `total`, all divisions equally likely."""
    sizes = range(1, total - parts + 2)
    return np.array([comb(total - size - 1, parts - 2) for size in sizes]) / comb(total - 1, parts - 1)


def test_spans_have_the_published_distribution() -> None:
    """random_spans_noise_mask: kept and noise tokens are each divided at random into as many parts as spans."""
    draws = 100_000
    length = 40
    noise, spans = count_noise(length, 0.15, 2.0)
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
    kept_shares = first_part_probabilities(length - noise, spans)
    noise_shares = first_part_probabilities(noise, spans)
    for number in range(spans):
        for column, expected in ((2 * number, kept_shares), (2 * number + 1, noise_shares)):
            counts = np.bincount(sizes[:, column], minlength=len(expected) + 1)[1:]
            # Rare sizes are joined into one class, so that every class expects at least five draws.
            is_frequent = expected * draws >= 5
            observed = np.array([*counts[is_frequent], counts[~is_frequent].sum()])
            shares = np.array([*expected[is_frequent], expected[~is_frequent].sum()])
            usable = shares > 0
            assert chisquare(observed[usable], draws * shares[usable]).pvalue > 1e-4
    # Lengths of kept and of noise parts are independent.
    table = np.zeros((len(noise_shares), 2))
    for size, is_early in zip(sizes[:, 1], sizes[:, 0] <= np.median(sizes[:, 0]), strict=True):
        table[size - 1, int(is_early)] += 1
    independent = table.sum(1, keepdims=True) * table.sum(0) / draws
    assert chisquare(table.reshape(-1), independent.reshape(-1), ddof=len(noise_shares)).pvalue > 1e-4


@pytest.mark.parametrize(("length", "inputs", "targets"), [(1, 1, 1), (2, 2, 2), (3, 3, 2)])
def test_documents_shorter_than_a_span_follow_the_published_fallback(length: int, inputs: int, targets: int) -> None:
    """random_spans_noise_mask takes at least two tokens, of which one is noise, and cuts the mask back."""
    tokens = np.arange(10, 10 + length)
    sides = corrupt(tokens, noise_mask(length, 0.15, 3.0, RNG), (99, 98, 97, 96), EOS)
    assert [len(side) - 1 for side in sides] == [inputs, targets]


def test_packed_documents_are_segments_of_their_own_on_both_sides() -> None:
    packed = context(32, "encoder_decoder", sentinels=20)
    text = row(np.arange(10, 22), [1] * 7 + [2] * 5)
    features = SpanCorruption().example(text, packed, RNG)
    sizes = [corrupted_length(length, 0.15, 3.0) for length in (7, 5)]
    for side, prefix in enumerate(["", "decoder_"]):
        first = sizes[0][side]
        second = sizes[1][side]
        segments = features[f"{prefix}segment_ids"][: first + second].tolist()
        positions = features[f"{prefix}positions"][: first + second].tolist()
        assert segments == [1] * first + [2] * second
        assert positions == [*range(first), *range(second)]
    starts = np.flatnonzero(features["decoder_tokens"][: sizes[0][1] + sizes[1][1]] == 0)
    assert starts.tolist() == [0, sizes[0][1]]  # each begins with the start token, not with the last token before it


def test_a_decoder_reads_inputs_and_targets_as_one_text() -> None:
    joined = context(64, sentinels=20)
    length = SpanCorruption().row_length(joined)
    assert sum(corrupted_length(length, 0.15, 3.0)) - 1 <= 64
    features = SpanCorruption().example(row(np.arange(10, 10 + length)), joined, RNG)
    inputs, targets = corrupted_length(length, 0.15, 3.0)
    assert features["prefix"].sum() == inputs
    assert features["loss_weights"].sum() == targets
    assert features["loss_weights"][inputs - 1] == 1  # the last input predicts the first target
    assert features["targets"][: inputs + targets - 2].tolist() == features["tokens"][1 : inputs + targets - 1].tolist()


@pytest.mark.parametrize(
    ("settings", "seq_len", "sentinels", "message"),
    [({}, 512, 20, "has up to 28 spans, the tokenizer has 20 sentinels"), ({}, 2, 100, "leaves no room")],
)
def test_contexts_that_allow_no_corruption_are_refused(
    settings: dict, seq_len: int, sentinels: int, message: str
) -> None:
    with pytest.raises(UserError, match=message):
        SpanCorruption(**settings).check_context(context(seq_len, "encoder_decoder", sentinels=sentinels))


@pytest.mark.parametrize("lengths", [[5, 4, 3], [1, 2, 1], [30]])
def test_eos_is_appended_after_the_corruption_and_never_hidden(lengths: list[int]) -> None:
    """T5 appends EOS to inputs and targets, and its texts have none before the corruption."""
    packed = context(64, "encoder_decoder", sentinels=40)
    tokens: list[int] = []
    segments: list[int] = []
    for number, length in enumerate(lengths, start=1):
        tokens += [*range(10, 10 + length), EOS]
        segments += [number] * (length + 1)
    for objective in (SpanCorruption(), UL2()):
        for seed in range(30):
            features = objective.example(row(tokens, segments), packed, np.random.default_rng(seed))
            for side, ids in (("", features["tokens"]), ("decoder_", features["targets"])):
                for number in range(1, len(lengths) + 1):
                    text = ids[features[f"{side}segment_ids"] == number]
                    is_eos = text == EOS
                    assert not is_eos[:-1].any()
                    # The inputs of UL2's sequential denoiser go on in the targets, without EOS between them.
                    assert is_eos[-1] or (side == "" and isinstance(objective, UL2))


def test_a_stream_of_documents_is_one_text_without_eos_between_them() -> None:
    stream = context(64, "encoder_decoder", sentinels=40)
    features = SpanCorruption().example(row([10, 11, 12, EOS, 13, 14, 15, 16, EOS, 17]), stream, RNG)
    assert (features["tokens"] == EOS).sum() == 1
    assert (features["targets"] == EOS).sum() == 1


def test_sizes_are_an_upper_bound_of_the_corrupted_documents() -> None:
    packed = context(512, "encoder_decoder", sentinels=100)
    lengths = np.arange(1, 300)
    sizes = SpanCorruption().packed_sizes(lengths[:, None], packed)
    for length, (inputs, targets) in zip(lengths, sizes, strict=True):
        tokens = [*range(10, 9 + length), EOS]
        features = SpanCorruption().example(row(tokens), context(512, "encoder_decoder", 1000, 100), RNG)
        assert (features["segment_ids"] > 0).sum() <= inputs
        assert (features["decoder_segment_ids"] > 0).sum() <= targets
