"""Batches are a function of (seed, step): against brute force, on any number of hosts, from any step."""

from collections import Counter

import numpy as np
import pytest

from t5x_lite.data import mixture
from t5x_lite.data.config import DataConfig, MixedSource
from t5x_lite.data.pipeline import (
    TrainingRows,
    ValidationSet,
    packed_documents,
    training_batch,
    training_batches,
    whole_sentences,
)
from t5x_lite.errors import UserError
from t5x_lite.objectives import Causal
from t5x_lite.objectives.masked import Masked
from t5x_lite.objectives.text_to_text import TextToText
from tests.objectives.vocabulary import context


class Text:
    """A corpus in memory whose token at place p is p + 1, so that rows say where they were cut."""

    def __init__(self, *lengths: int) -> None:
        self.offsets = self.parts = np.cumsum([0, *lengths])
        self.tokens, self.documents = int(self.offsets[-1]), len(lengths)

    def read(self, start: int, stop: int) -> tuple[np.ndarray, np.ndarray]:
        places = np.arange(start, stop)
        return (places + 1).astype(np.int32), np.searchsorted(self.offsets, places, side="right") - 1


LENGTHS = np.random.default_rng(0).integers(3, 40, 50)


def rows(*corpora: Text, seq_len: int = 8, seed: int = 0, **data: object) -> TrainingRows:
    shares = np.full(len(corpora), 1 / len(corpora))
    return TrainingRows(corpora, shares, DataConfig.model_validate(data), Causal(), context(seq_len), seed)


def same(one: dict[str, np.ndarray], other: dict[str, np.ndarray]) -> bool:
    return one.keys() == other.keys() and all(np.array_equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("packing", ["stream", "documents", "none"])
@pytest.mark.parametrize("hosts", [2, 4])
def test_hosts_together_make_the_batches_of_one_host(packing: str, hosts: int) -> None:
    corpora = Text(*LENGTHS), Text(*LENGTHS[::-1])
    for step in (0, 1, 7, 1000):
        whole = training_batch(rows(*corpora, packing=packing), 8, np.arange(8), step)
        parts = [training_batch(rows(*corpora, packing=packing), 8, own, step) for own in np.split(np.arange(8), hosts)]
        assert same(whole, {name: np.concatenate([part[name] for part in parts]) for name in whole})


@pytest.mark.parametrize("workers", [0, 2])
def test_a_resumed_stream_goes_on_with_the_same_batches(workers: int) -> None:
    data = DataConfig(workers=workers, prefetch=2)
    made = rows(Text(*LENGTHS))
    whole = [training_batch(made, 4, np.arange(4), step) for step in range(9)]
    resumed = training_batches(made, 4, np.arange(4), 5, 9, data)
    found = [next(resumed) for _ in range(4)]
    assert all(same(a, b) for a, b in zip(whole[5:], found, strict=True))
    del resumed


def test_another_seed_gives_another_order() -> None:
    one, other = (training_batch(rows(Text(*LENGTHS), seed=s), 4, np.arange(4), 0) for s in (0, 1))
    assert not same(one, other)


def test_an_epoch_reads_every_window_once_and_the_next_in_another_order_and_phase() -> None:
    text, made = Text(1000), rows(Text(1000))
    count = made.plans[0].rows
    assert count == (1000 - 9 + 1) // 8
    epochs = [[made[epoch * count + n]["tokens"] for n in range(count)] for epoch in range(3)]
    orders = []
    for epoch in epochs:
        starts = np.array([row[0] - 1 for row in epoch])
        phase = starts.min()
        assert 0 <= phase < 8
        assert sorted(starts - phase) == [8 * n for n in range(count)]
        for row in epoch:
            assert np.array_equal(row, text.read(row[0] - 1, row[0] + 7)[0])
        orders.append(tuple((starts - phase) // 8))
    assert len(set(orders)) == 3


def test_the_shuffle_leaves_no_trace_of_the_order() -> None:
    made = rows(Text(80_001))
    order = np.array([(made[n]["tokens"][0] - 1) // 8 for n in range(made.plans[0].rows)], float)
    n = len(order)
    # Correlations between neighbours of a random permutation are normal with deviation 1/sqrt(n).
    for distance in (1, 2, 3, 64, 100):
        assert abs(np.corrcoef(order[:-distance], order[distance:])[0, 1]) < 4 / n**0.5
    assert abs(np.corrcoef(order, np.arange(n))[0, 1]) < 4 / n**0.5
    # Steps between neighbours take many values; a linear congruential order would repeat one.
    assert Counter(np.diff(order) % n).most_common(1)[0][1] < 12


@pytest.mark.parametrize("packing", ["documents", "none"])
def test_whole_documents_are_packed_or_stand_alone(packing: str) -> None:
    text = Text(*LENGTHS)
    made = rows(text, seq_len=32, packing=packing)
    seen = []
    for row in range(made.plans[0].rows):
        read = made.plans[0].read(row, 0)
        tokens, segments = read.tokens, read.segments
        for segment in range(1, segments.max() + 1):
            piece = tokens[segments == segment]
            document = np.searchsorted(text.offsets, piece[0] - 1, side="right") - 1
            assert np.array_equal(np.diff(piece), np.ones(len(piece) - 1))
            assert piece[-1] <= text.offsets[document + 1]
            seen += piece.tolist()
        assert not tokens[segments == 0].any()
        assert packing == "documents" or segments.max() == 1
    whole = [n + 1 for start, stop in zip(text.offsets, text.offsets[1:], strict=False) for n in range(start, stop)]
    first_33 = [
        n + 1
        for start, stop in zip(text.offsets, text.offsets[1:], strict=False)
        for n in range(start, min(stop, start + 33))
    ]
    assert sorted(seen) == (whole if packing == "documents" else first_33)


def test_documents_see_each_other_only_when_told() -> None:
    apart, together = (rows(Text(5, 6, 50), separate_documents=s) for s in (True, False))
    assert max(apart[n]["segment_ids"].max() for n in range(6)) > 1
    assert {int(x) for n in range(6) for x in np.unique(together[n]["segment_ids"])} == {1}


@pytest.mark.parametrize("tokens", [2, 8, 9, 10, 16, 17, 25])
def test_validation_predicts_every_token_but_the_first_once(tokens: int) -> None:
    split = ValidationSet([Text(tokens)], DataConfig(), Causal(), context(8), 2)
    found = list(split.batches(np.arange(2)))
    assert len(found) == len(split)
    targets = [
        t for batch in found for t, w in zip(batch["targets"].ravel(), batch["loss_weights"].ravel(), strict=True) if w
    ]
    assert targets == list(range(2, tokens + 1))
    assert {batch["tokens"].shape for batch in found} == {(2, 8)}


def test_validation_of_hosts_is_that_of_one() -> None:
    split = ValidationSet([Text(30, 20), Text(45)], DataConfig(), Causal(), context(8), 4)
    whole = list(split.batches(np.arange(4)))
    parts = [list(split.batches(own)) for own in np.split(np.arange(4), 2)]
    for number, batch in enumerate(whole):
        assert same(batch, {name: np.concatenate([part[number][name] for part in parts]) for name in batch})


def test_text_shorter_than_a_row_is_refused() -> None:
    with pytest.raises(UserError, match=r"takes 9 tokens, but the training text has 8"):
        rows(Text(8))


def test_mixtures_follow_their_weights_at_every_prefix() -> None:
    order = mixture.interleaved(np.array([0.5, 0.3, 0.2]))
    count, following = Counter[int](), Counter[int]()
    for g in range(1000):
        source, n = order[g]
        assert n == following[source]
        following[source] += 1
        count[source] += 1
        for index, share in enumerate((0.5, 0.3, 0.2)):
            assert abs(count[index] - share * (g + 1)) < 2


def test_weights_by_size_are_mt5s() -> None:
    sources = [MixedSource(name="a"), MixedSource(name="b")]
    np.testing.assert_allclose(mixture.weights(sources, [900, 100], 1.0), [0.9, 0.1])
    np.testing.assert_allclose(mixture.weights(sources, [900, 100], 0.0), [0.5, 0.5])
    raw = np.array([900**0.3, 100**0.3])
    np.testing.assert_allclose(mixture.weights(sources, [900, 100], 0.3), raw / raw.sum())
    given = [MixedSource(name="a", weight=3.0), MixedSource(name="b", weight=1.0)]
    np.testing.assert_allclose(mixture.weights(given, [1, 1], 1.0), [0.75, 0.25])
    with pytest.raises(UserError, match="b has none"):
        mixture.weights([given[0], sources[1]], [1, 1], 1.0)


def sentences(*documents: tuple[int, ...]) -> Text:
    """A corpus whose documents are made of sentences of these lengths."""
    text = Text(*(sum(lengths) for lengths in documents))
    text.parts = np.cumsum([0, *(length for lengths in documents for length in lengths)])
    return text


DOCUMENTS = [tuple(np.random.default_rng(n).integers(1, 9, 3 + n % 7).tolist()) for n in range(30)]


@pytest.mark.parametrize("apart", [True, False])
def test_rows_of_sentences_are_whole_as_full_as_can_be_and_in_order(apart: bool) -> None:
    text = sentences(*DOCUMENTS, (25, 3))
    plan = whole_sentences(text, 20, apart=apart)
    seen = []
    for number in range(plan.rows):
        read = plan.read(number)
        real = read.segments > 0
        first, last = int(read.tokens[0]) - 1, int(read.tokens[real][-1])
        assert first in text.parts
        assert last in text.parts or last - first == 20  # only a sentence longer than a row is cut
        documents = np.searchsorted(text.offsets, read.tokens[real] - 1, side="right") - 1
        assert len(set(documents)) == 1 or not apart
        following = text.parts[np.searchsorted(text.parts, last, side="left") + 1 :][:1]
        room = following - first <= 20 if len(following) and last not in text.offsets else np.array([False])
        assert not room.any()  # the next sentence of the document would not have fitted
        starts = text.parts[np.searchsorted(text.parts, read.tokens[real] - 1, side="right") - 1]
        assert len(set(zip(read.segments[real], read.parts[real], strict=True))) == len(set(starts))
        seen += read.tokens[real].tolist()
    assert seen == sorted(seen)
    assert len(seen) == text.tokens - 5  # what the cut sentence of 25 lost


def test_pairs_are_packed_until_inputs_or_targets_are_full() -> None:
    """Next-fit in two kinds of room, by a loop."""
    lengths = np.random.default_rng(3).integers(1, 12, (60, 2))
    text = sentences(*(tuple(pair) for pair in lengths.tolist()))
    objective, place = TextToText(target_len=16), context(24, "encoder_decoder")
    plan = packed_documents(text, objective, place, None)
    rows, room = [[]], np.array([24, 16])
    for number, sizes in enumerate(lengths + 1):
        if (sizes > room).any():
            rows.append([])
            room = np.array([24, 16])
        room = room - sizes
        rows[-1].append(number)
    found = []
    for number in range(plan.rows):
        read = plan.read(number)
        own = [int(read.tokens[read.segments == s][0]) - 1 for s in range(1, read.segments.max() + 1)]
        found.append([int(np.searchsorted(text.offsets, start)) for start in own])
        for s, document in enumerate(found[-1], start=1):
            parts = read.parts[read.segments == s]
            assert [int((parts == side).sum()) for side in (0, 1)] == lengths[document].tolist()
    assert found == rows


def pair_rows(static: int = 0) -> TrainingRows:
    objective = Masked(sentences="next", static=static)
    data = DataConfig(packing="sentences", parts="line")
    return TrainingRows([sentences(*DOCUMENTS)], np.ones(1), data, objective, context(24, size=2000), 0)


def test_a_second_sentence_that_does_not_follow_is_of_another_document() -> None:
    made, apart = pair_rows(), 0
    text = made.plans[0].corpus
    for number in range(300):
        found = made[number]
        tokens = found["tokens"].copy()
        real = found["loss_weights"] > 0
        tokens[found["target_positions"][real]] = found["targets"][real]
        documents = [
            set(np.searchsorted(text.offsets, tokens[(found["token_types"] == side) & (tokens > 8)] - 1, side="right"))
            for side in (0, 1)
        ]
        if not all(documents):  # the first tokens of the corpus are the special ones
            continue
        assert (documents[0] != documents[1]) == found["sentence_targets"]
        apart += int(found["sentence_targets"])
    assert 100 < apart < 250


def test_static_masks_come_again_after_their_epochs() -> None:
    """BERT: ten sets of masks; dynamic masks are new in every epoch (Liu et al. 2019, §4.1)."""

    def epoch(made: TrainingRows, number: int) -> dict[bytes, bytes]:
        count = made.plans[0].rows
        rows = [made[n] for n in range(number * count, (number + 1) * count)]
        return {row["targets"].tobytes(): row["tokens"].tobytes() for row in rows}

    fixed, fresh = pair_rows(static=2), pair_rows()
    assert epoch(fixed, 0) == epoch(fixed, 2)
    assert epoch(fixed, 1) == epoch(fixed, 3)
    assert epoch(fixed, 0) != epoch(fixed, 1)
    assert epoch(fresh, 0) != epoch(fresh, 2)
