"""Batches are a function of (seed, step): against brute force, on any number of hosts, from any step."""

from collections import Counter

import numpy as np
import pytest

from t5x_lite.data.config import DataConfig
from t5x_lite.data.mixture import mix_endless
from t5x_lite.data.pipeline import ExampleBuilder, TrainingRows, ValidationSet, training_batch, training_batches
from t5x_lite.errors import UserError
from t5x_lite.objectives import Causal
from t5x_lite.objectives.masked import Masked
from tests.data.in_memory_corpus import DOCUMENT_LENGTHS, SENTENCE_LENGTHS, InMemoryCorpus, corpus_of_parts, rows_of
from tests.objectives.vocabulary import context

Batch = dict[str, np.ndarray]


def training_rows(*corpora: InMemoryCorpus, seq_len: int = 8, seed: int = 0, **data: object) -> TrainingRows:
    shares = np.full(len(corpora), 1 / len(corpora))
    row_plans = [rows_of(corpus, Causal(), context(seq_len), **data) for corpus in corpora]
    order = mix_endless([row_plan.rows for row_plan in row_plans], shares, seed)
    builder = ExampleBuilder(DataConfig.model_validate(data), Causal(), context(seq_len))
    return TrainingRows(row_plans, order, [builder] * len(corpora), seed)


def are_equal(batch: Batch, other: Batch) -> bool:
    return batch.keys() == other.keys() and all(np.array_equal(batch[name], other[name]) for name in batch)


def concatenate(batches: list[Batch]) -> Batch:
    return {name: np.concatenate([batch[name] for batch in batches]) for name in batches[0]}


@pytest.mark.parametrize("packing", ["stream", "documents", "none"])
@pytest.mark.parametrize("hosts", [2, 4])
def test_hosts_together_build_the_batches_of_one_host(packing: str, hosts: int) -> None:
    corpora = InMemoryCorpus(*DOCUMENT_LENGTHS), InMemoryCorpus(*DOCUMENT_LENGTHS[::-1])
    for step in (0, 1, 7, 1000):
        batch = training_batch(training_rows(*corpora, packing=packing), 8, np.arange(8), step)
        host_batches: list[Batch] = []
        for local_rows in np.split(np.arange(8), hosts):
            host_batches.append(training_batch(training_rows(*corpora, packing=packing), 8, local_rows, step))
        assert are_equal(batch, concatenate(host_batches))


@pytest.mark.parametrize("workers", [0, 2])
def test_a_resumed_stream_continues_with_the_same_batches(workers: int) -> None:
    data = DataConfig(workers=workers, prefetch=2)
    rows = training_rows(InMemoryCorpus(*DOCUMENT_LENGTHS))
    uninterrupted = [training_batch(rows, 4, np.arange(4), step) for step in range(9)]
    stream = training_batches(rows, 4, np.arange(4), 5, 9, data)
    resumed = [next(stream) for _ in range(4)]
    assert all(are_equal(batch, other) for batch, other in zip(uninterrupted[5:], resumed, strict=True))
    del stream


def test_another_seed_gives_another_order() -> None:
    corpus = InMemoryCorpus(*DOCUMENT_LENGTHS)
    batch, other = (training_batch(training_rows(corpus, seed=seed), 4, np.arange(4), 0) for seed in (0, 1))
    assert not are_equal(batch, other)


def test_an_epoch_reads_every_window_once_and_the_next_in_another_order_and_phase() -> None:
    corpus = InMemoryCorpus(1000)
    rows = training_rows(corpus)
    count = rows.row_plans[0].rows
    assert count == (1000 - 9 + 1) // 8
    orders: list[tuple[int, ...]] = []
    for epoch in range(3):
        examples = [rows[epoch * count + n]["tokens"] for n in range(count)]
        starts = np.array([tokens[0] - 1 for tokens in examples])
        phase = starts.min()
        assert 0 <= phase < 8
        assert sorted(starts - phase) == [8 * n for n in range(count)]
        for tokens in examples:
            assert np.array_equal(tokens, corpus.read_spans([(tokens[0] - 1, tokens[0] + 7)]))
        orders.append(tuple((starts - phase) // 8))
    assert len(set(orders)) == 3


def test_the_shuffle_leaves_no_trace_of_the_order() -> None:
    rows = training_rows(InMemoryCorpus(80_001))
    n = rows.row_plans[0].rows
    order = np.array([(rows[g]["tokens"][0] - 1) // 8 for g in range(n)], float)
    # Correlations between neighbours of a random permutation are normal with deviation 1/sqrt(n).
    for distance in (1, 2, 3, 64, 100):
        assert abs(np.corrcoef(order[:-distance], order[distance:])[0, 1]) < 4 / n**0.5
    assert abs(np.corrcoef(order, np.arange(n))[0, 1]) < 4 / n**0.5
    # Steps between neighbours take many values; a linear congruential order would repeat one.
    assert Counter(np.diff(order) % n).most_common(1)[0][1] < 12


def test_documents_of_a_row_are_one_segment_only_if_they_attend_to_each_other() -> None:
    corpus = InMemoryCorpus(5, 6, 50)
    separate, joined = (training_rows(corpus, separate_documents=separate) for separate in (True, False))
    assert max(separate[g]["segment_ids"].max() for g in range(6)) > 1
    assert {int(x) for g in range(6) for x in np.unique(joined[g]["segment_ids"])} == {1}


@pytest.mark.parametrize("tokens", [2, 8, 9, 10, 16, 17, 25])
def test_validation_predicts_every_token_but_the_first_once(tokens: int) -> None:
    row_plans = [rows_of(InMemoryCorpus(tokens, split="validation"), Causal(), context(8))]
    validation = ValidationSet(row_plans, [ExampleBuilder(DataConfig(), Causal(), context(8))], 2)
    batches = list(validation.batches(np.arange(2)))
    assert len(batches) == len(validation)
    predicted: list[int] = []
    for batch in batches:
        predicted += batch["targets"][batch["loss_weights"] > 0].tolist()
    assert predicted == list(range(2, tokens + 1))
    assert {batch["tokens"].shape for batch in batches} == {(2, 8)}


def test_hosts_together_build_the_validation_batches_of_one_host() -> None:
    corpora = InMemoryCorpus(30, 20, split="validation"), InMemoryCorpus(45, split="validation")
    row_plans = [rows_of(corpus, Causal(), context(8)) for corpus in corpora]
    validation = ValidationSet(row_plans, [ExampleBuilder(DataConfig(), Causal(), context(8))] * 2, 4)
    hosts = [validation.batches(local_rows) for local_rows in np.split(np.arange(4), 2)]
    batches = list(validation.batches(np.arange(4)))
    host_batches = list(zip(*hosts, strict=True))
    assert len(batches) == len(host_batches)
    for batch, parts in zip(batches, host_batches, strict=True):
        assert are_equal(batch, concatenate(list(parts)))


def test_a_limit_on_validation_batches_leaves_each_source_its_share() -> None:
    corpora = InMemoryCorpus(240, split="validation"), InMemoryCorpus(80, split="validation")
    row_plans = [rows_of(corpus, Causal(), context(8)) for corpus in corpora]
    builders = [ExampleBuilder(DataConfig(), Causal(), context(8)) for _ in corpora]
    validation = ValidationSet(row_plans, builders, batch_size=4, max_batches=3)
    assert [row_plan.rows for row_plan in row_plans] == [30, 10]
    batches = list(validation.batches(np.arange(4)))
    rows = np.concatenate([batch["tokens"] for batch in batches])
    expected = []
    for row_plan, builder, count in zip(row_plans, builders, (9, 3), strict=True):
        expected += [builder.build(row_plan, row, key=(0, row))["tokens"] for row in range(count)]
    np.testing.assert_array_equal(rows, np.stack(expected))


def test_text_shorter_than_a_row_is_refused() -> None:
    """A row of 8 tokens and the one after it, from any of the 8 places of the first window on."""
    with pytest.raises(UserError, match=r"train.seq_len 8: needs 16 tokens, but the training text has 8;"):
        training_rows(InMemoryCorpus(8))
    assert len(training_rows(InMemoryCorpus(16)).row_plans[0].corpus.offsets) == 2


def sentence_pair_rows(static: int = 0) -> TrainingRows:
    """Examples of next-sentence prediction."""
    objective = Masked(sentences="next", static=static)
    settings = {"packing": "sentences", "parts": "line"}
    row_plan = rows_of(corpus_of_parts(*SENTENCE_LENGTHS), objective, context(24, size=2000), **settings)
    data = DataConfig.model_validate(settings)
    order = mix_endless([row_plan.rows], np.ones(1), 0)
    return TrainingRows([row_plan], order, [ExampleBuilder(data, objective, context(24, size=2000))], 0)


def test_a_second_sentence_that_does_not_follow_is_from_another_document() -> None:
    rows = sentence_pair_rows()
    corpus = rows.row_plans[0].corpus
    not_following = 0
    for g in range(300):
        example = rows[g]
        tokens = example["tokens"].copy()
        is_target = example["loss_weights"] > 0
        tokens[example["target_positions"][is_target]] = example["targets"][is_target]
        documents: list[set[int]] = []
        for side in (0, 1):
            side_tokens = tokens[(example["token_types"] == side) & (tokens > 8)]
            documents.append(set(np.searchsorted(corpus.offsets[:], side_tokens - 1, side="right")))
        if not all(documents):  # the first tokens of the corpus are the special ones
            continue
        assert (documents[0] != documents[1]) == example["sentence_targets"]
        not_following += int(example["sentence_targets"])
    assert 100 < not_following < 250


def test_static_masks_repeat_after_their_epochs() -> None:
    """BERT: ten sets of masks. Dynamic masks are new in every epoch (Liu et al. 2019, §4.1)."""

    def epoch(rows: TrainingRows, number: int) -> dict[bytes, bytes]:
        count = rows.row_plans[0].rows
        examples = [rows[g] for g in range(number * count, (number + 1) * count)]
        return {example["targets"].tobytes(): example["tokens"].tobytes() for example in examples}

    static = sentence_pair_rows(static=2)
    dynamic = sentence_pair_rows()
    assert epoch(static, 0) == epoch(static, 2)
    assert epoch(static, 1) == epoch(static, 3)
    assert epoch(static, 0) != epoch(static, 1)
    assert epoch(dynamic, 0) != epoch(dynamic, 2)


def test_the_random_choices_of_an_example_depend_on_seed_source_epoch_and_row() -> None:
    """Two sources have the same text, so that only the choices of masked tokens tell their examples apart."""
    encoder_context = context(64, "encoder", size=2000)
    builder = ExampleBuilder(DataConfig(), Masked(), encoder_context)

    def masked_positions(seed: int, source: int, epoch: int, row: int) -> list[int]:
        row_plans = [rows_of(InMemoryCorpus(1000), Masked(), encoder_context) for _ in range(2)]
        rows = TrainingRows(row_plans, [(source, epoch, row)], [builder] * 2, seed, phases=(1, 1))
        example = rows[0]
        return example["target_positions"][example["loss_weights"] > 0].tolist()

    # The first row has the special tokens, which are not masked.
    first = masked_positions(seed=0, source=0, epoch=0, row=1)
    assert first == masked_positions(seed=0, source=0, epoch=0, row=1)
    assert len(first) >= 8
    for others in ((1, 0, 0, 1), (0, 1, 0, 1), (0, 0, 1, 1), (0, 0, 0, 2)):
        assert masked_positions(*others) != first
