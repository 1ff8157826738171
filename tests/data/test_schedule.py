"""Stages of a run (`data.schedule`): which example each step and row gets, by brute force, and what is refused."""

import pickle
from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import Path

import grain
import numpy as np
import pytest

from t5x_lite import config as configuration
from t5x_lite.cli import main
from t5x_lite.data.byte_tokenizer import Bytes
from t5x_lite.data.config import DataConfig
from t5x_lite.data.mixture import Interleaving
from t5x_lite.data.open_data import open_data
from t5x_lite.data.pipeline import ExampleBuilder, TrainingRows, training_batch
from t5x_lite.data.row_plan import PackedRows
from t5x_lite.data.source_order import Section, SourceOrder, sections_of
from t5x_lite.data.stage_orders import StageRows, stage_orders
from t5x_lite.data.stages import Stage, stage_number, tokens_until
from t5x_lite.data.training_data import PipelineSettings
from t5x_lite.objectives import Causal
from t5x_lite.objectives.masked import Masked
from tests.data.in_memory_corpus import SENTENCE_LENGTHS, InMemoryCorpus, corpus_of_parts, rows_of
from tests.objectives.vocabulary import context

SHARES = [(1.0,), (0.5, 0.3, 0.2), (0.7, 0.29, 0.01), (1 / 3, 1 / 3, 1 / 3)]


def grain_order(shares: Sequence[float]) -> grain.MapDataset:
    """Interleave sources with Grain: element g is (source, n)."""
    endless = [grain.MapDataset.range(2**40) for _ in shares]
    numbered = [data.map(lambda n, source=source: (source, n)) for source, data in enumerate(endless)]
    return grain.MapDataset.mix(numbered, weights=list(shares))


@pytest.mark.parametrize("shares", SHARES)
def test_sources_are_interleaved_as_by_grain(shares: tuple[float, ...]) -> None:
    interleaving = Interleaving(np.array(shares))
    expected = grain_order(shares)
    counts = Counter[int]()
    for g in range(700):
        assert interleaving.counts(g) == [counts[source] for source in range(len(shares))]
        assert interleaving[g] == expected[g]
        counts[interleaving[g][0]] += 1
    assert interleaving[10**12 + 1] == expected[10**12 + 1]


def test_a_source_without_a_share_has_no_place() -> None:
    interleaving = Interleaving(np.array([0.0, 0.6, 0.0, 0.4, 0.0]))
    assert {interleaving[g][0] for g in range(50)} == {1, 3}
    assert interleaving.counts(1000) == [0, 600, 0, 400, 0]


THREE_STAGES = (
    Stage("first", 0, 8, 4, {"a": 3.0, "b": 1.0}),
    Stage("second", 7, 8, 4, {"b": 1.0}),
    Stage("third", 9, 8, 6, {"a": 1.0, "b": 1.0}),
)
"""Stages of one length."""


def rows_of_stages(stages: Sequence[Stage], seed: int = 0) -> list[TrainingRows]:
    """Return the rows of each stage, from the sources `a`, of 211 tokens, and `b`, of 157."""
    corpora = {"a": InMemoryCorpus(211), "b": InMemoryCorpus(157)}
    described = []
    for stage in stages:
        row_plans = []
        for name, corpus in corpora.items():
            row_plan = None
            if stage.draws(name):
                row_plan = rows_of(corpus, Causal(), context(stage.seq_len))
            row_plans.append(row_plan)
        weights = np.array([(stage.weights or {}).get(name, 0.0) for name in corpora])
        described.append(StageRows(stage, weights / weights.sum(), row_plans))
    rows = []
    phases = [min(stage.seq_len for stage in stages)] * 2
    for stage_rows, order in zip(described, stage_orders(described, seed), strict=True):
        builder = ExampleBuilder(DataConfig(), Causal(), context(stage_rows.stage.seq_len))
        rows.append(TrainingRows(stage_rows.row_plans, order, [builder] * 2, seed, phases))
    return rows


def test_every_step_and_row_gets_the_example_of_a_brute_force_definition() -> None:
    """Count through all steps: a source never starts anew, and its epochs are Grain's shuffles."""
    rows = rows_of_stages(THREE_STAGES)
    tokens = {"a": 211, "b": 157}
    drawn = Counter[str]()
    for step in range(30):
        number = stage_number(THREE_STAGES, step)
        stage = THREE_STAGES[number]
        names = sorted(stage.weights or {})
        total = sum((stage.weights or {}).values())
        interleaved = grain_order([(stage.weights or {})[name] / total for name in names])
        for row in range(stage.batch_size):
            place = (step - stage.first_step) * stage.batch_size + row
            name = names[interleaved[place][0]]
            source = "ab".index(name)
            row_count = (tokens[name] - 9 + 1) // 8
            epoch, position = divmod(drawn[name], row_count)
            shuffle_seed, phase_word = np.random.SeedSequence((0, source, epoch)).generate_state(2)
            window = grain.MapDataset.range(row_count).shuffle(seed=int(shuffle_seed))[position]
            start = 8 * window + int(phase_word) % 8
            example = rows[number][step * stage.batch_size + row]
            assert example["tokens"].tolist() == list(range(start + 1, start + 9))
            drawn[name] += 1
    assert drawn["a"] > 2 * 25
    assert drawn["b"] > 2 * 18


LENGTHS = (
    Stage("short", 0, 8, 8, {"a": 1.0, "b": 1.0}),
    Stage("long", 3, 32, 2, {"a": 1.0, "b": 1.0}),
    Stage("short again", 5, 8, 8, {"a": 1.0}),
    Stage("last", 7, 16, 4, {"a": 1.0, "b": 1.0}),
)


def test_no_token_comes_again_before_the_epoch_of_its_source_ends_though_the_length_changes() -> None:
    """Sources of 100 windows of 32 tokens, of which the stages read less than an epoch."""
    corpora = [InMemoryCorpus(32 * 100 + 32), InMemoryCorpus(32 * 50 + 33)]
    for seed in range(3):
        predicted: dict[int, Counter[int]] = defaultdict(Counter)
        described = []
        for stage in LENGTHS:
            shares = np.array([float(stage.draws(name)) for name in "ab"])
            row_plans = [rows_of(corpus, Causal(), context(stage.seq_len)) for corpus in corpora]
            described.append(StageRows(stage, shares / shares.sum(), row_plans))
        orders = stage_orders(described, seed)
        for step in range(120):
            number = stage_number(LENGTHS, step)
            stage = LENGTHS[number]
            for row in range(stage.batch_size):
                source, epoch, source_row = orders[number][step * stage.batch_size + row]
                if epoch:
                    continue
                start = source_row * stage.seq_len
                predicted[source].update(range(start, start + stage.seq_len))
        for source, counts in predicted.items():
            assert max(counts.values()) == 1
            assert len(counts) >= 32 * (100, 50)[source] - 32  # nearly all of the epoch is read


def test_sentences_are_read_once_in_an_epoch_in_which_the_length_changes() -> None:
    objective = Masked()
    settings = {"packing": "sentences", "parts": "line"}
    corpus = corpus_of_parts(*SENTENCE_LENGTHS)
    plans = [rows_of(corpus, objective, context(length, size=2000), **settings) for length in (16, 64)]
    drawn = plans[0].rows // 3
    order = SourceOrder(sections_of(plans, [drawn, 0]), (0, 0))
    read = Counter[int]()
    n = 0
    while order[n][0] == 0:
        row = order[n][1]
        plan = plans[int(n >= drawn)]
        assert isinstance(plan, PackedRows)
        read.update(range(*plan.spans.read(row, row + 1)[0]))
        n += 1
    assert max(read.values()) == 1
    # Each border of a block may cost a row of either length, of 14 and 62 tokens: here a third of the epoch at most.
    assert len(read) > corpus.tokens / 2
    # The next epoch has every long row once.
    next_rows = [order[n + k] for k in range(plans[1].rows)]
    assert sorted(next_rows) == [(1, row) for row in range(plans[1].rows)]


def test_rows_of_whole_documents_go_on_in_one_order_at_another_length() -> None:
    corpus = InMemoryCorpus(*range(3, 60))
    plans = [rows_of(corpus, Causal(), context(length), packing="none") for length in (8, 32)]
    order = SourceOrder(sections_of(plans, [20, 0]), (0, 0))
    assert sorted(order[n] for n in range(57)) == [(0, row) for row in range(57)]


def test_an_epoch_ends_where_its_last_block_is_begun_and_the_length_changes() -> None:
    """Four blocks of two short rows or of one long row: the eighth short row is passed over."""
    ends = np.arange(1, 5)
    short = Section(8, 7, np.stack([2 * ends - 2, 2 * ends], 1))
    long = Section(4, None, np.stack([ends - 1, ends], 1))
    order = SourceOrder([short, long], (0, 0))
    first = [order[n] for n in range(7)]
    assert {epoch for epoch, _ in first} == {0}
    assert len(set(first)) == 7
    assert {row for _, row in first} < set(range(8))
    assert sorted(order[n] for n in range(7, 15)) == [(epoch, row) for epoch in (1, 2) for row in range(4)]


@pytest.mark.parametrize("stages", [THREE_STAGES, LENGTHS], ids=["one length", "lengths"])
def test_batches_of_stages_do_not_depend_on_the_hosts_or_on_where_a_run_resumes(stages: tuple[Stage, ...]) -> None:
    whole = rows_of_stages(stages)
    for step in (0, 2, 3, 6, 7, 8, 9, 20):
        number = stage_number(stages, step)
        size = stages[number].batch_size
        expected = training_batch(whole[number], size, np.arange(size), step)["tokens"]
        for hosts in (2, 4):
            fresh = pickle.loads(pickle.dumps(rows_of_stages(stages)))[number]
            parts = np.array_split(np.arange(size), hosts)
            tokens = [training_batch(fresh, size, part, step)["tokens"] for part in parts if len(part)]
            np.testing.assert_array_equal(np.concatenate(tokens), expected)


def test_tokens_are_counted_through_the_stages() -> None:
    assert [tokens_until(THREE_STAGES, steps) for steps in (0, 1, 7, 9, 10)] == [0, 32, 224, 288, 336]


@pytest.mark.parametrize("mixture_by", ["examples", "tokens"])
def test_each_stage_has_its_shares_of_examples_or_of_tokens(tmp_path: Path, mixture_by: str) -> None:
    """Texts of 9 and of 59 bytes, each with its EOS a row; then the rows of both are cut to 20 tokens."""
    sources = []
    for name, length in (("short", 9), ("long", 59)):
        (tmp_path / f"{name}.txt").write_text("\n".join([name[0] * length] * 40))
        sources.append({"name": name, "files": str(tmp_path / f"{name}.txt"), "document": "line", "weight": 1.0})
    schedule = [{"name": "main"}, {"name": "anneal", "after_steps": 100, "weights": {"short": 1, "long": 4}}]
    settings = {"mixture": sources, "mixture_by": mixture_by, "packing": "none", "cache_dir": str(tmp_path)}
    settings |= {"schedule": schedule, "validation_fraction": 0.0, "prepare_processes": 1}
    data = DataConfig.model_validate(settings)
    stages = (Stage("main", 0, 64, 4), Stage("anneal", 100, 19, 4, {"short": 1.0, "long": 4.0}))
    opened = open_data(PipelineSettings(data, Causal(), context(64, size=400), 0, 4, stages=stages), Bytes())
    expected = {"main": 1.0, "anneal": 4.0}
    for number, first in enumerate((0, 400)):
        rows = opened.rows(number)
        counts = Counter[str]()
        for g in range(first, first + 420):
            example = rows[g]
            source = "short" if example["tokens"][0] == ord("s") + Bytes.first else "long"
            tokens = np.count_nonzero(example["segment_ids"])
            tokens += int(tokens == stages[number].seq_len)  # the last token of a full row is predicted only
            counts[source] += 1 if mixture_by == "examples" else tokens
        assert counts["long"] / counts["short"] == pytest.approx(expected[stages[number].name], rel=0.03)


MIXTURE = "data.mixture=[{name: web, files: a.txt}, {name: books, files: b.txt}]"


def schedule(*stages: str) -> str:
    return f"data.schedule=[{', '.join(stages)}]"


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ([schedule("{name: a}", "{name: b, after_steps: 12}")], "stage b: never begins: it comes after 12 steps"),
        ([schedule("{name: a}", "{name: b, after_steps: 8}", "{name: c, after_steps: 8}")], "stage c: begins after 8"),
        ([schedule("{name: a}", "{name: b, after_share: 0.5}", "{name: c, after_share: 0.4}")], "stage c: begins aft"),
        ([schedule("{name: a}", "{name: b, after_share: 1.0}")], "less than 1"),
        ([schedule("{name: a}", "{name: b}")], "stage b needs one of after_steps and after_share, found 0"),
        ([schedule("{name: a}", "{name: b, after_steps: 2, after_share: 0.5}")], "stage b needs one of"),
        ([schedule("{name: a, after_steps: 3}")], "stage a is the first, which begins with the run"),
        ([schedule("{name: a}", "{name: a, after_steps: 3}")], "schedule names must differ"),
        ([schedule("{name: a, weights: {bocks: 1}}")], "weights of bocks, which is no source of the mixture; did you"),
        ([schedule("{name: a, weights: {books: 0}}")], "greater than 0"),
        ([schedule("{name: a, weights: {}}")], "at least 1 item"),
        ([schedule("{name: a, seq_len: 7}")], "stage a: seq_len 7 does not divide the 64 tokens of a batch"),
        ([schedule("{name: a, seq_len: 64}")], "stage a: seq_len 64 is longer than model.positions.learned.length 32"),
        ([schedule("{name: a, seq_len: 32}"), "train.microbatches=4"], "stage a: batch_size 2 is not a multiple of"),
        ([schedule("{name: a, seq_len: 8}"), "train.loss_chunks=16"], "stage a: seq_len 8 is not a multiple of"),
        ([schedule("{name: a}", "{name: b, after_steps: 3, seq_len: 32}"), "data.packing=documents"], "would repeat"),
        ([schedule("{name: a}"), "tasks=[sst2]", "objective=text_to_text"], "data.schedule is for text"),
    ],
)  # fmt: skip
def test_a_schedule_that_does_not_work_is_refused_in_one_line(
    overrides: list[str], message: str, tiny_config: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["train", str(tiny_config), "data.files=[]", MIXTURE, *overrides]) == 2
    errors = capsys.readouterr().err
    assert message in errors
    assert len(errors.splitlines()) == 1


def test_a_source_that_is_drawn_at_one_length_may_be_packed_in_documents(tiny_config: Path) -> None:
    """Long context from a source of its own."""
    stages = schedule(
        "{name: main, weights: {web: 1}}", "{name: long, after_share: 0.8, seq_len: 32, weights: {books: 1}}"
    )
    config = configuration.load(tiny_config, ["data.files=[]", MIXTURE, stages, "data.packing=documents"])
    main_stage, long = config.stages
    assert (main_stage.first_step, main_stage.shape) == (0, (4, 16))
    assert (long.first_step, long.shape) == (9, (2, 32))
    assert config.largest_stage == long
