"""Masked language modelling and sentence pairs against the published shares, lengths and layouts."""

import numpy as np
import pytest

from t5x_lite.errors import UserError
from t5x_lite.models.config import ModelConfig
from t5x_lite.objectives.masked import LONGEST_SPAN, Masked
from t5x_lite.objectives.objective import ExampleContext, TokenRow, Vocabulary
from t5x_lite.objectives.replaced_token import ReplacedToken
from t5x_lite.objectives.translation import Translation
from tests.objectives.vocabulary import row, task, vocabulary

PAD, CLS, SEP, MASK = 0, 3, 4, 5


def texts(count: int, length: int, seed: int = 0) -> list[TokenRow]:
    rng = np.random.default_rng(seed)
    return [row(rng.integers(10, 200, length)) for _ in range(count)]


def hide(objective: Masked, text: TokenRow, seq_len: int, seed: int = 0) -> dict[str, np.ndarray]:
    return dict(objective.example(text, task(seq_len), np.random.default_rng(seed)))


def test_a_row_is_framed_and_what_was_hidden_is_told() -> None:
    text = texts(1, 126)[0]
    found = hide(Masked(), text, 128)
    places = found["target_positions"][found["loss_weights"] > 0]
    whole = found["tokens"].copy()
    whole[places] = found["targets"][found["loss_weights"] > 0]
    assert whole.tolist() == [CLS, *text.tokens, SEP]
    assert len(found["targets"]) == 20  # BERT: max_predictions_per_seq of a row of 128
    assert found["loss_weights"].sum() == round(0.15 * 128)
    assert sorted(set(places)) == places.tolist()


def test_shares_of_masks_random_and_kept_tokens_are_80_10_10() -> None:
    """Devlin et al. 2019, §3.1."""
    masked = other = kept = 0
    for number, text in enumerate(texts(2000, 126)):
        found = hide(Masked(), text, 128, seed=number)
        real = found["loss_weights"] > 0
        shown, true = found["tokens"][found["target_positions"][real]], found["targets"][real]
        masked += (shown == MASK).sum()
        kept += (shown == true).sum()
        other += ((shown != true) & (shown != MASK)).sum()
    total = masked + other + kept
    # Another token is drawn from all 200, so that one in 200 is the mask and one the token itself.
    for count, share in ((masked, 0.8 + 0.1 / 200), (other, 0.1 * 198 / 200), (kept, 0.1 + 0.1 / 200)):
        assert count / total == pytest.approx(share, abs=4 * (share * (1 - share) / total) ** 0.5)


def test_every_place_is_hidden_equally_often_and_special_tokens_never() -> None:
    counts = np.zeros(32)
    for number in range(3000):
        found = hide(Masked(), row([*range(10, 25), 1, *range(26, 40)]), 32, seed=number)
        counts[found["target_positions"][found["loss_weights"] > 0]] += 1
    assert counts[[0, 16, 31]].tolist() == [0, 0, 0]  # [CLS], the EOS between two documents, [SEP]
    inner = np.delete(counts, [0, 16, 31])
    assert inner.min() > inner.mean() - 5 * inner.mean() ** 0.5
    assert inner.max() < inner.mean() + 5 * inner.mean() ** 0.5


def test_replacements_may_follow_the_tokens_frequency() -> None:
    frequency = np.zeros(200)
    frequency[[50, 60]] = 0.75, 0.25
    plain = vocabulary()
    known = Vocabulary(200, 1, plain.named, (), plain.special, plain.begins_word, frequency)
    objective = Masked(replacement="frequency", mask_share=0.0, random_share=1.0)
    shown = []
    for number, text in enumerate(texts(100, 126)):
        found = objective.example(text, ExampleContext(128, known, "encoder"), np.random.default_rng(number))
        shown += found["tokens"][found["target_positions"][found["loss_weights"] > 0]].tolist()
    assert set(shown) == {50, 60}
    assert shown.count(50) / len(shown) == pytest.approx(0.75, abs=0.04)


def test_whole_words_are_hidden_or_shown_whole() -> None:
    tokens = np.array([12, 13, 14, 15, 16, 18, 19, 20, 21, 24, 25, 27, 28, 29, 30] * 4)  # multiples of 3 begin a word
    words = np.cumsum(tokens % 3 == 0)
    for seed in range(200):
        found = hide(Masked(spans="word"), row(tokens), 62, seed)
        hidden = np.zeros(62, bool)
        hidden[found["target_positions"][found["loss_weights"] > 0]] = True
        by_word = [set(hidden[1:61][words == word]) for word in np.unique(words)]
        assert all(len(states) == 1 for states in by_word)
        assert hidden.sum() <= round(0.15 * 62)


def test_spans_are_geometric_and_hidden_whole() -> None:
    """Joshi et al. 2020, §3.1: lengths by Geo(0.2) clipped at 10, whose mean is 3.8; one choice of 80/10/10 a span."""
    tokens = np.tile(np.arange(12, 198, 3), 9)[:510]  # every token a word
    lengths, shown_alike = [], 0
    for seed in range(300):
        found = hide(Masked(spans="geometric", rate=0.15), row(tokens), 512, seed)
        real = found["loss_weights"] > 0
        places = found["target_positions"][real]
        masked = (found["tokens"][places] == MASK).astype(int)
        for run in np.split(np.arange(len(places)), np.flatnonzero(np.diff(places) > 1) + 1):
            lengths.append(len(run))
            shown_alike += len(set(masked[run])) == 1
    assert max(lengths) <= LONGEST_SPAN
    # The budget of 15 % cuts the last of about twenty spans of a row short.
    assert np.mean(lengths) == pytest.approx(3.8, abs=0.15)
    assert shown_alike / len(lengths) > 0.99  # a random token may happen to be the mask


def test_a_spans_borders_stand_beside_it_and_are_shown() -> None:
    tokens = np.tile(np.arange(12, 198, 3), 3)[:126]
    found = hide(Masked(spans="geometric", boundary=True), row(tokens), 128, seed=3)
    real = found["span_weights"] > 0
    places, hidden = found["target_positions"][real], set(found["target_positions"][real].tolist())
    assert len(places) > 5
    for place, left, right, inside in zip(
        places, *(found[name][real] for name in ("span_left", "span_right", "span_places")), strict=True
    ):
        assert left not in hidden
        assert right not in hidden
        assert all(between in hidden for between in range(left + 1, right))
        assert inside == place - left - 1


def document(count: int, first: int) -> TokenRow:
    """Sentences of five tokens each, all of them between `first` and `first` + 40."""
    tokens = first + np.arange(5 * count) % 40
    return row(tokens, parts=np.repeat(np.arange(count), 5).tolist())


def pair(sentences: str, seed: int, count: int = 12, seq_len: int = 63) -> tuple[list[int], list[int], int]:
    """The two texts of an example, what was hidden filled in, and its label."""
    own, other = document(count, 10), document(count, 100)
    made = Masked(sentences=sentences).example(
        TokenRow(own.tokens, own.segments, own.parts, other), task(seq_len), np.random.default_rng(seed)
    )
    tokens = made["tokens"].copy()
    real = made["loss_weights"] > 0
    tokens[made["target_positions"][real]] = made["targets"][real]
    assert (tokens == CLS).sum() == 1
    assert tokens[0] == CLS
    assert made["sentence_weights"] == 1
    first, second = (tokens[(made["token_types"] == n) & (made["segment_ids"] > 0)].tolist() for n in (0, 1))
    assert (first[-1], second[-1]) == (SEP, SEP)
    return first[1:-1], second[:-1], int(made["sentence_targets"])


def test_half_of_the_second_sentences_follow_the_first() -> None:
    """Devlin et al. 2019, §3.1 and A.2."""
    labels, short = [], 0
    for seed in range(2000):
        first, second, label = pair("next", seed)
        labels.append(label)
        assert all(10 <= token < 50 for token in first)
        expected = range(100, 140) if label else range(10, 50)
        assert all(token in expected for token in second)
        if not label and len(first) + len(second) == 60:
            assert second[0] == 10 + (first[-1] - 9) % 40
        short += label == 0 and len(first) + len(second) < 50
    assert np.mean(labels) == pytest.approx(0.5, abs=0.04)
    # One in ten is of a random length from 2 to 60; whole sentences of five tokens are under 50 up to a length of 45.
    assert short / labels.count(0) == pytest.approx(0.1 * 44 / 59, abs=0.03)


def test_sentence_order_swaps_two_stretches_of_one_document() -> None:
    """Lan et al. 2020, §3.1."""
    labels = []
    for seed in range(1000):
        first, second, label = pair("order", seed, count=8, seq_len=43)
        labels.append(label)
        later, earlier = (first, second) if label else (second, first)
        if len(first) + len(second) == 40:
            assert later[0] == 10 + (earlier[-1] - 9) % 40
    assert np.mean(labels) == pytest.approx(0.5, abs=0.06)


def test_a_pair_whose_partner_or_text_is_empty_still_makes_a_row() -> None:
    """A line may hold no token but the EOS of its document."""
    text, nothing = document(6, 10), row([1])
    for seed in range(20):
        found = Masked(sentences="next").example(
            TokenRow(text.tokens, text.segments, text.parts, nothing), task(63), np.random.default_rng(seed)
        )
        assert (found["sentence_targets"], found["sentence_weights"]) == (0, 1)
    empty = Masked(sentences="next").example(
        TokenRow(nothing.tokens, nothing.segments, nothing.parts, text), task(63), np.random.default_rng(0)
    )
    assert (empty["sentence_weights"], empty["loss_weights"].sum()) == (0, 0)


def test_pairs_that_are_too_long_lose_tokens_from_the_longer_text() -> None:
    lengths = [tuple(map(len, pair("next", seed, count=30, seq_len=43)[:2])) for seed in range(200)]
    assert max(sum(both) for both in lengths) == 40


def test_a_translation_pair_shares_a_row_and_its_positions_start_again() -> None:
    """Conneau & Lample 2019, §3.3 and figure 1."""
    text = row([*range(10, 16), *range(100, 104), 1], parts=[0] * 6 + [1] * 5)
    found = Translation().example(text, task(16, "encoder"), np.random.default_rng(0))
    assert found["token_types"].tolist() == [0] * 8 + [1] * 5 + [0] * 3
    assert found["positions"].tolist()[:13] == [*range(8), *range(5)]
    assert found["segment_ids"].tolist() == [1] * 13 + [0] * 3  # both sentences see each other
    sides = set()
    for seed in range(50):
        found = Translation().example(text, task(16, "encoder"), np.random.default_rng(seed))
        sides |= set(found["token_types"][found["target_positions"][found["loss_weights"] > 0]].tolist())
    assert sides == {0, 1}


def test_electras_generator_is_shown_masks_and_its_discriminator_the_text() -> None:
    text = texts(1, 126)[0]
    found = ReplacedToken().example(text, task(128, "electra"), np.random.default_rng(0))
    assert found["unmasked"].tolist() == [CLS, *text.tokens, SEP]
    changed = np.flatnonzero(found["tokens"] != found["unmasked"])
    assert set(found["tokens"][changed]) == {MASK}
    assert set(changed) <= set(found["target_positions"])
    assert found["detection_weights"].sum() == 128


@pytest.mark.parametrize(("missing", "said"), [("[MASK]", r"\[MASK\] or <mask>"), ("[CLS]", r"\[CLS\] or <s>")])
def test_a_tokenizer_without_the_special_tokens_is_refused(missing: str, said: str) -> None:
    plain = vocabulary()
    named = {name: i for name, i in plain.named.items() if name != missing}
    without = Vocabulary(200, 1, named, (), plain.special, plain.begins_word)
    with pytest.raises(UserError, match=said):
        Masked().check_context(ExampleContext(32, without, "encoder"))


def test_a_model_without_the_outputs_is_refused() -> None:
    model = ModelConfig.model_validate({"family": "encoder", "layers": 1, "embed": 8, "heads": 1, "vocab": 20})
    with pytest.raises(ValueError, match="sentence"):
        Masked(sentences="next").check(model)
    with pytest.raises(ValueError, match="span"):
        Masked(spans="geometric", boundary=True).check(model)
