"""Masked language modelling and sentence pairs against the published shares, lengths and layouts."""

import numpy as np
import pytest

from t5x_lite.errors import UserError
from t5x_lite.models.config import ModelConfig
from t5x_lite.objectives.masked import Masked
from t5x_lite.objectives.masking import LONGEST_SPAN
from t5x_lite.objectives.objective import ExampleContext, TokenRow, Vocabulary
from t5x_lite.objectives.replaced_token import ReplacedToken
from t5x_lite.objectives.translation import Translation
from tests.objectives.vocabulary import context, row, vocabulary

PAD = 0
CLS = 3
SEP = 4
MASK = 5


def random_rows(count: int, length: int, seed: int = 0) -> list[TokenRow]:
    rng = np.random.default_rng(seed)
    return [row(rng.integers(10, 200, length)) for _ in range(count)]


def mask(objective: Masked, text: TokenRow, seq_len: int, seed: int = 0) -> dict[str, np.ndarray]:
    return dict(objective.example(text, context(seq_len), np.random.default_rng(seed)))


def masked_positions(features: dict[str, np.ndarray]) -> np.ndarray:
    return features["target_positions"][features["loss_weights"] > 0]


def masked_targets(features: dict[str, np.ndarray]) -> np.ndarray:
    return features["targets"][features["loss_weights"] > 0]


def original_tokens(features: dict[str, np.ndarray]) -> np.ndarray:
    """The tokens with the targets at their positions."""
    tokens = features["tokens"].copy()
    tokens[masked_positions(features)] = masked_targets(features)
    return tokens


def test_a_row_has_special_tokens_and_the_targets_are_its_masked_tokens() -> None:
    text = random_rows(1, 126)[0]
    features = mask(Masked(), text, 128)
    positions = masked_positions(features)
    assert original_tokens(features).tolist() == [CLS, *text.tokens, SEP]
    assert len(features["targets"]) == 20  # BERT: max_predictions_per_seq of a row of 128
    assert features["loss_weights"].sum() == round(0.15 * 128)
    assert sorted(set(positions)) == positions.tolist()


@pytest.mark.parametrize("spans", ["word", "geometric"])
@pytest.mark.parametrize("length", [126, 40, 7, 3])
def test_a_row_without_borders_of_words_hides_its_share(spans: str, length: int) -> None:
    """Text without spaces is one word, longer than all that a row may hide."""
    one_word = row(np.arange(length) * 3 % 180 + 10)  # no id is a multiple of three, which would begin a word
    features = mask(Masked(spans=spans), one_word, length + 2)
    expected = max(round(0.15 * (length + 2)), 1)
    assert features["loss_weights"].sum() == expected
    assert original_tokens(features).tolist() == [CLS, *one_word.tokens, SEP]


def test_whole_words_are_masked_where_they_fit() -> None:
    """Words of two tokens: the share of a row of 42 is 6 tokens, so three whole words."""
    tokens = np.stack([np.arange(12, 72, 3), np.arange(13, 73, 3)], axis=1).reshape(-1)
    for seed in range(20):
        positions = masked_positions(mask(Masked(spans="word"), row(tokens), 42, seed=seed))
        assert len(positions) == 6
        assert (positions.reshape(-1, 2) == positions[::2, None] + [0, 1]).all()


def test_masked_random_and_unchanged_tokens_have_shares_of_80_10_10() -> None:
    """Devlin et al. 2019, §3.1."""
    masked = random = unchanged = 0
    for number, text in enumerate(random_rows(2000, 126)):
        features = mask(Masked(), text, 128, seed=number)
        shown = features["tokens"][masked_positions(features)]
        targets = masked_targets(features)
        masked += (shown == MASK).sum()
        unchanged += (shown == targets).sum()
        random += ((shown != targets) & (shown != MASK)).sum()
    total = masked + random + unchanged
    # A random token is drawn from all 200, so that one in 200 is the mask and one the token itself.
    for count, share in ((masked, 0.8 + 0.1 / 200), (random, 0.1 * 198 / 200), (unchanged, 0.1 + 0.1 / 200)):
        assert count / total == pytest.approx(share, abs=4 * (share * (1 - share) / total) ** 0.5)


def test_every_position_is_masked_equally_often_and_special_tokens_never() -> None:
    counts = np.zeros(32)
    for number in range(3000):
        features = mask(Masked(), row([*range(10, 25), 1, *range(26, 40)]), 32, seed=number)
        counts[masked_positions(features)] += 1
    assert counts[[0, 16, 31]].tolist() == [0, 0, 0]  # [CLS], the EOS between two documents, [SEP]
    inner = np.delete(counts, [0, 16, 31])
    assert inner.min() > inner.mean() - 5 * inner.mean() ** 0.5
    assert inner.max() < inner.mean() + 5 * inner.mean() ** 0.5


def test_replacements_may_follow_the_tokens_frequency() -> None:
    frequency = np.zeros(200)
    frequency[[50, 60]] = 0.75, 0.25
    plain = vocabulary()
    with_frequency = Vocabulary(200, 1, plain.named, (), plain.special, plain.begins_word, frequency)
    objective = Masked(replacement="frequency", mask_share=0.0, random_share=1.0)
    shown = []
    for number, text in enumerate(random_rows(100, 126)):
        rng = np.random.default_rng(number)
        features = dict(objective.example(text, ExampleContext(128, with_frequency, "encoder"), rng))
        shown += features["tokens"][masked_positions(features)].tolist()
    assert set(shown) == {50, 60}
    assert shown.count(50) / len(shown) == pytest.approx(0.75, abs=0.04)


def test_all_tokens_of_a_word_are_masked_or_none() -> None:
    tokens = np.array([12, 13, 14, 15, 16, 18, 19, 20, 21, 24, 25, 27, 28, 29, 30] * 4)  # multiples of 3 begin a word
    words = np.cumsum(tokens % 3 == 0)
    for seed in range(200):
        features = mask(Masked(spans="word"), row(tokens), 62, seed)
        is_masked = np.zeros(62, bool)
        is_masked[masked_positions(features)] = True
        by_word = [set(is_masked[1:61][words == word]) for word in np.unique(words)]
        assert all(len(states) == 1 for states in by_word)
        assert is_masked.sum() <= round(0.15 * 62)


def test_spans_are_geometric_and_replaced_alike() -> None:
    """Joshi et al. 2020, §3.1: lengths by Geo(0.2) clipped at 10, whose mean is 3.8; one choice of 80/10/10 a span."""
    tokens = np.tile(np.arange(12, 198, 3), 9)[:510]  # every token is a word
    lengths = []
    alike = 0
    for seed in range(300):
        features = mask(Masked(spans="geometric", rate=0.15), row(tokens), 512, seed)
        positions = masked_positions(features)
        is_mask = (features["tokens"][positions] == MASK).astype(int)
        for span in np.split(np.arange(len(positions)), np.flatnonzero(np.diff(positions) > 1) + 1):
            lengths.append(len(span))
            alike += len(set(is_mask[span])) == 1
    assert max(lengths) <= LONGEST_SPAN
    # The budget of 15 % cuts the last of about twenty spans of a row short.
    assert np.mean(lengths) == pytest.approx(3.8, abs=0.15)
    assert alike / len(lengths) > 0.99  # a random token may happen to be the mask


def test_the_tokens_next_to_a_span_are_shown() -> None:
    tokens = np.tile(np.arange(12, 198, 3), 3)[:126]
    features = mask(Masked(spans="geometric", boundary=True), row(tokens), 128, seed=3)
    is_used = features["span_weights"] > 0
    positions = features["target_positions"][is_used]
    masked = set(positions.tolist())
    assert len(positions) > 5
    for position, left, right, place in zip(
        positions, *(features[name][is_used] for name in ("span_left", "span_right", "span_places")), strict=True
    ):
        assert left not in masked
        assert right not in masked
        assert all(between in masked for between in range(left + 1, right))
        assert place == position - left - 1


def document(sentences: int, first: int) -> TokenRow:
    """Sentences of five tokens each, all of them between `first` and `first` + 40."""
    tokens = first + np.arange(5 * sentences) % 40
    return row(tokens, parts=np.repeat(np.arange(sentences), 5).tolist())


def sentence_pair(kind: str, seed: int, sentences: int = 12, seq_len: int = 63) -> tuple[list[int], list[int], int]:
    """The two texts of an example, unmasked, and its label."""
    text = document(sentences, 10)
    other = document(sentences, 100)
    features = mask(Masked(sentences=kind), TokenRow(text.tokens, text.segments, text.parts, other), seq_len, seed)
    tokens = original_tokens(features)
    assert (tokens == CLS).sum() == 1
    assert tokens[0] == CLS
    assert features["sentence_weights"] == 1
    is_token = features["segment_ids"] > 0
    first = tokens[(features["token_types"] == 0) & is_token].tolist()
    second = tokens[(features["token_types"] == 1) & is_token].tolist()
    assert (first[-1], second[-1]) == (SEP, SEP)
    return first[1:-1], second[:-1], int(features["sentence_targets"])


def test_half_of_the_second_sentences_follow_the_first() -> None:
    """Devlin et al. 2019, §3.1 and A.2."""
    labels = []
    short = 0
    for seed in range(2000):
        first, second, label = sentence_pair("next", seed)
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


def test_sentence_order_swaps_two_texts_of_one_document() -> None:
    """Lan et al. 2020, §3.1."""
    labels = []
    for seed in range(1000):
        first, second, label = sentence_pair("order", seed, sentences=8, seq_len=43)
        labels.append(label)
        later, earlier = (first, second) if label else (second, first)
        if len(first) + len(second) == 40:
            assert later[0] == 10 + (earlier[-1] - 9) % 40
    assert np.mean(labels) == pytest.approx(0.5, abs=0.06)


def test_an_empty_text_or_second_sentence_still_makes_an_example() -> None:
    """A line may hold no token but the EOS of its document."""
    text = document(6, 10)
    empty = row([1])
    for seed in range(20):
        features = mask(Masked(sentences="next"), TokenRow(text.tokens, text.segments, text.parts, empty), 63, seed)
        assert (features["sentence_targets"], features["sentence_weights"]) == (0, 1)
    features = mask(Masked(sentences="next"), TokenRow(empty.tokens, empty.segments, empty.parts, text), 63)
    assert (features["sentence_weights"], features["loss_weights"].sum()) == (0, 0)


def test_pairs_that_are_too_long_are_cut_to_the_row() -> None:
    lengths = []
    for seed in range(200):
        first, second, _ = sentence_pair("next", seed, sentences=30, seq_len=43)
        lengths.append(len(first) + len(second))
    assert max(lengths) == 40


def test_a_translation_pair_shares_a_row_and_its_positions_restart() -> None:
    """Conneau & Lample 2019, §3.3 and figure 1."""
    text = row([*range(10, 16), *range(100, 104), 1], parts=[0] * 6 + [1] * 5)
    features = dict(Translation().example(text, context(16, "encoder"), np.random.default_rng(0)))
    assert features["token_types"].tolist() == [0] * 8 + [1] * 5 + [0] * 3
    assert features["positions"].tolist()[:13] == [*range(8), *range(5)]
    assert features["segment_ids"].tolist() == [1] * 13 + [0] * 3  # both sentences see each other
    masked_types = set()
    for seed in range(50):
        features = dict(Translation().example(text, context(16, "encoder"), np.random.default_rng(seed)))
        masked_types |= set(features["token_types"][masked_positions(features)].tolist())
    assert masked_types == {0, 1}


def test_the_token_types_of_a_text_are_its_language() -> None:
    """Conneau & Lample 2019, figure 1; padding has type 0."""
    features = Masked(language=3).example(row(np.arange(10, 20)), context(16, "encoder"), np.random.default_rng(0))
    assert features["token_types"].tolist() == [3] * 12 + [0] * 4
    translated = Translation(languages=(2, 4))
    text = row([*range(10, 14), *range(100, 103)], parts=[0] * 4 + [1] * 3)
    features = translated.example(text, context(16, "encoder"), np.random.default_rng(0))
    assert features["token_types"].tolist() == [2] * 6 + [4] * 4 + [0] * 6


@pytest.mark.parametrize(("objective", "needed"), [(Masked(language=3), 4), (Translation(languages=(0, 5)), 6)])
def test_a_model_without_a_type_for_each_language_is_refused(objective: Masked | Translation, needed: int) -> None:
    sizes = {"family": "encoder", "layers": 1, "embed": 8, "heads": 1, "vocab": 20}
    objective.check(ModelConfig.model_validate({**sizes, "token_types": needed}))
    with pytest.raises(ValueError, match=f"of at least {needed}, one for each language, found {needed - 1}"):
        objective.check(ModelConfig.model_validate({**sizes, "token_types": needed - 1}))


def test_token_types_cannot_be_languages_and_sentences() -> None:
    sizes = {"family": "encoder", "layers": 1, "embed": 8, "heads": 1, "vocab": 20, "token_types": 2}
    model = ModelConfig.model_validate({**sizes, "outputs": ["tokens", "sentence"]})
    with pytest.raises(ValueError, match="the sentences of a pair or languages, not both"):
        Masked(sentences="next", language=1).check(model)


def test_electras_generator_reads_masks_and_its_discriminator_the_text() -> None:
    text = random_rows(1, 126)[0]
    features = ReplacedToken().example(text, context(128, "electra"), np.random.default_rng(0))
    assert features["unmasked"].tolist() == [CLS, *text.tokens, SEP]
    changed = np.flatnonzero(features["tokens"] != features["unmasked"])
    assert set(features["tokens"][changed]) == {MASK}
    assert set(changed) <= set(features["target_positions"])
    assert features["detection_weights"].sum() == 128


@pytest.mark.parametrize(("missing", "message"), [("[MASK]", r"\[MASK\] or <mask>"), ("[CLS]", r"\[CLS\] or <s>")])
def test_a_tokenizer_without_the_special_tokens_is_refused(missing: str, message: str) -> None:
    plain = vocabulary()
    named = {name: token_id for name, token_id in plain.named.items() if name != missing}
    incomplete = Vocabulary(200, 1, named, (), plain.special, plain.begins_word)
    with pytest.raises(UserError, match=message):
        Masked().check_context(ExampleContext(32, incomplete, "encoder"))


def test_a_model_without_the_outputs_is_refused() -> None:
    model = ModelConfig.model_validate({"family": "encoder", "layers": 1, "embed": 8, "heads": 1, "vocab": 20})
    with pytest.raises(ValueError, match="sentence"):
        Masked(sentences="next").check(model)
    with pytest.raises(ValueError, match="span"):
        Masked(spans="geometric", boundary=True).check(model)
