"""Row plans on disk: planned once, the same for all who read them, never those of another corpus or length."""

import json
import pickle
import re
import shutil
import threading
from pathlib import Path

import numpy as np
import pytest

from t5x_lite.cli import main
from t5x_lite.data import chunked_arrays
from t5x_lite.data.byte_tokenizer import Bytes
from t5x_lite.data.config import DataConfig
from t5x_lite.data.corpus import Corpus
from t5x_lite.data.mixture import mix_endless
from t5x_lite.data.pipeline import ExampleBuilder, TrainingRows, training_batch
from t5x_lite.data.prepare import prepare_corpus
from t5x_lite.data.row_plan import RowPlan
from t5x_lite.data.row_rule import RowRule
from t5x_lite.data.row_statistics import count_documents
from t5x_lite.data.row_store import open_rows, prepare_rows
from t5x_lite.errors import UserError
from t5x_lite.objectives import Causal
from t5x_lite.objectives.objective import Objective
from t5x_lite.objectives.prefix import Prefix
from t5x_lite.objectives.text_to_text import TextToText
from tests.data.in_memory_corpus import corpus_of_parts
from tests.objectives.vocabulary import context


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The corpus of 400 documents of 2 to 90 bytes."""
    rng = np.random.default_rng(0)
    lines = ["".join(rng.choice(list("abcdefgh"), int(rng.integers(1, 90)))) for _ in range(400)]
    (tmp_path / "text.txt").write_text("\n".join(lines))
    data = {
        "files": str(tmp_path / "text.txt"),
        "document": "line",
        "cache_dir": str(tmp_path),
        "validation_fraction": 0.2,
    }
    config = DataConfig.model_validate({**data, "prepare_processes": 1})
    return Path(prepare_corpus(config.sources[0], config, Bytes()))


def rule(seq_len: int = 64, objective: Objective | None = None, packing: str = "documents") -> RowRule:
    data = DataConfig.model_validate({"packing": packing})
    return RowRule(data, objective or Causal(), context(seq_len, size=400))


def rows_read(row_plan: RowPlan) -> list[list[int]]:
    return [row_plan.read(number).tokens.tolist() for number in range(row_plan.rows)]


def plan_files(folder: Path) -> dict[str, int]:
    """The plans in the folder of a corpus, and when each was written."""
    return {path.name: path.stat().st_mtime_ns for path in folder.glob("rows-*.json")}


def test_a_plan_is_made_once_and_counts_what_a_reader_counts(folder: Path) -> None:
    statistics = prepare_rows(folder, rule())
    files = plan_files(folder)
    assert prepare_rows(folder, rule()) == statistics
    assert plan_files(folder) == files
    for split, counts in statistics.items():
        corpus = Corpus(folder, split)
        rows = rows_read(open_rows(corpus, rule()))
        lengths = np.diff(corpus.offsets[:])
        assert (counts.documents, counts.tokens, counts.rows) == (len(lengths), lengths.sum(), len(rows))
        assert counts.cut_documents == (lengths > 65).sum() > 0
        # No token of a byte tokenizer's text has the id 0, which pads.
        assert counts.fill == np.mean([np.count_nonzero(row) / 65 for row in rows])
    assert statistics["train"].fill > 0.97


def test_only_what_changes_the_rows_makes_another_plan(folder: Path) -> None:
    prepare_rows(folder, rule())
    prepare_rows(folder, rule(objective=Prefix()))  # the same length and the same cost of documents
    assert len(plan_files(folder)) == 1
    prepare_rows(folder, rule(seq_len=32))
    assert len(plan_files(folder)) == 2
    row_plans = [open_rows(Corpus(folder, "train"), rule(seq_len)) for seq_len in (64, 32)]
    assert [row_plan.length for row_plan in row_plans] == [65, 33]


def test_a_plan_of_another_corpus_or_rule_is_replaced(folder: Path) -> None:
    prepare_rows(folder, rule())
    corpus = Corpus(folder, "train")
    expected = rows_read(open_rows(corpus, rule()))
    summary = next(folder.glob("rows-*.json"))
    remedy = re.escape(str(summary.with_suffix(".*")))

    def damage_summary() -> None:
        summary.write_text("{")

    def rename_corpus() -> None:
        summary.write_text(json.dumps({**json.loads(summary.read_text()), "corpus": "text-0123456789abcdef"}))

    def change_rule() -> None:
        content = json.loads(summary.read_text())
        summary.write_text(json.dumps({**content, "rule": {**content["rule"], "row_length": 33}}))

    for spoil in (summary.unlink, damage_summary, rename_corpus, change_rule):
        spoil()
        with pytest.raises(UserError, match=rf"{summary}: is damaged: .*; delete {remedy}, and the rows are pl"):
            open_rows(corpus, rule())
        prepare_rows(folder, rule())
        assert rows_read(open_rows(corpus, rule())) == expected
        assert json.loads(summary.read_text())["corpus"] == folder.name


@pytest.mark.parametrize("kind", ["spans", "starts"])
def test_a_flipped_byte_of_a_plan_is_found_or_harmless(folder: Path, kind: str) -> None:
    prepare_rows(folder, rule(seq_len=256))
    expected = rows_read(open_rows(Corpus(folder, "train"), rule(seq_len=256)))
    array = next(folder.glob(f"rows-*.train.{kind}"))
    errors = 0
    for path in [path for path in array.rglob("*") if path.is_file()]:
        content = path.read_bytes()
        places = np.flatnonzero(np.frombuffer(content, np.uint8))
        for position in places[:: len(places) // 50].tolist():
            flipped = bytearray(content)
            flipped[position] ^= 1 << position % 8
            path.write_bytes(flipped)
            chunked_arrays.reading_context.cache_clear()
            try:
                assert rows_read(open_rows(Corpus(folder, "train"), rule(seq_len=256))) == expected
            except UserError as error:
                assert f"{array}: is damaged or cannot be reached" in str(error)
                assert re.search(r"delete \S+/rows-\w+\.\*, and the rows are planned again", str(error))
                errors += 1
        path.write_bytes(content)
    assert errors > 60
    next(path for path in array.rglob("*") if path.is_file()).write_bytes(b"")
    for path in folder.glob(f"{array.name.partition('.')[0]}.*"):
        if path.is_file():
            path.unlink()
        else:
            shutil.rmtree(path)
    chunked_arrays.reading_context.cache_clear()
    prepare_rows(folder, rule(seq_len=256))
    assert rows_read(open_rows(Corpus(folder, "train"), rule(seq_len=256))) == expected


def test_a_plan_depends_on_the_corpus_and_the_rule_alone(folder: Path) -> None:
    def contents() -> dict[str, bytes]:
        paths = [path for path in folder.rglob("*") if path.is_file() and "rows-" in str(path)]
        return {str(path): path.read_bytes() for path in paths}

    prepare_rows(folder, rule())
    first = contents()
    for path in first:
        Path(path).unlink()
    prepare_rows(folder, rule())
    assert contents() == first
    assert len(first) == 9


def test_several_at_once_plan_once(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    threads = [threading.Thread(target=prepare_rows, args=(folder, rule())) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert capfd.readouterr().err.count("rows: ") == 1


def training_rows(folder: Path) -> TrainingRows:
    prepare_rows(folder, rule())
    row_plan = open_rows(Corpus(folder, "train"), rule())
    order = mix_endless([row_plan.rows], np.ones(1), 3)
    return TrainingRows([row_plan], order, [ExampleBuilder(rule().data, Causal(), rule().context)], seed=3)


@pytest.mark.parametrize("hosts", [2, 4])
def test_any_number_of_hosts_reads_the_same_rows_from_any_step(folder: Path, hosts: int) -> None:
    rows = training_rows(folder)
    for step in (0, 5, 300):
        batch = training_batch(rows, 8, np.arange(8), step)
        local_batches: list[np.ndarray] = []
        for local_rows in np.split(np.arange(8), hosts):
            local_batches.append(training_batch(training_rows(folder), 8, local_rows, step)["tokens"])
        np.testing.assert_array_equal(np.concatenate(local_batches), batch["tokens"])


def test_workers_open_the_plan_and_hold_no_copy_of_it(folder: Path) -> None:
    plan = training_rows(folder).row_plans[0]
    copied = pickle.loads(pickle.dumps(plan))
    assert rows_read(copied) == rows_read(plan)
    corpus_bytes = len(pickle.dumps(plan.corpus))
    assert len(pickle.dumps(plan)) - len(pickle.dumps(rule())) - corpus_bytes < 200


def test_every_epoch_reads_every_row_once_in_another_order(folder: Path) -> None:
    rows = training_rows(folder)
    count = rows.row_plans[0].rows
    epochs = [[rows[epoch * count + n]["tokens"].tobytes() for n in range(count)] for epoch in (0, 1)]
    assert sorted(epochs[0]) == sorted(epochs[1])
    assert epochs[0] != epochs[1]


@pytest.mark.parametrize("packing", ["stream", "documents", "none"])
def test_prepare_prints_counts(
    packing: str, tiny_config: Path, prose: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """60 documents of 12 × 9 words: with 17 tokens in a row, all of them are cut."""
    settings = [
        f"data.packing={packing}",
        f"data.cache_dir={tmp_path}",
        "tokenizer=bytes",
        "data.validation_fraction=0",
    ]
    assert main(["prepare", str(tiny_config), "--json", *settings]) == 0
    counts = json.loads(capsys.readouterr().out)
    lengths = np.array([len(path.read_bytes()) + 1 for path in sorted(prose.glob("*.txt"))])
    assert (counts["documents"], counts["tokens"], counts["cut_documents"]) == (60, lengths.sum(), 60)
    # The windows of a stream leave room for a phase of up to 15 tokens.
    row_count = {"stream": (lengths.sum() - 16) // 16, "none": 60, "documents": counts["rows"]}[packing]
    assert counts["rows"] == row_count
    fill = {"stream": 1.0, "none": 1.0, "documents": lengths.sum() / (17 * counts["rows"])}[packing]
    assert counts["fill"] == fill > 0.97
    assert main(["prepare", str(tiny_config), *settings]) == 0
    line, folder = capsys.readouterr().out.splitlines()
    assert " ".join(line.split()).startswith(f"text 60 documents {lengths.sum():,} tokens {row_count:,} rows")
    assert folder == f"text: {counts['sources']['text']['folder']}"


@pytest.mark.parametrize(("packing", "cut"), [("stream", 2), ("documents", 1), ("none", 1)])
def test_documents_that_are_not_complete_in_one_row_are_counted(tmp_path: Path, packing: str, cut: int) -> None:
    """The documents 9-18 and 23-37 are in no window of 0-9, 8-17, 16-25; the latter is longer than a row."""
    (tmp_path / "text.txt").write_text("\n".join("x" * (length - 1) for length in (4, 5, 9, 2, 3, 14)))
    settings = {"files": str(tmp_path / "text.txt"), "document": "line", "cache_dir": str(tmp_path)}
    config = DataConfig.model_validate({**settings, "validation_fraction": 0.0, "prepare_processes": 1})
    folder = prepare_corpus(config.sources[0], config, Bytes())
    assert prepare_rows(folder, rule(8, packing=packing))["train"].cut_documents == cut


def test_pairs_that_are_rows_of_their_own_are_counted_by_their_inputs_and_targets() -> None:
    """Inputs are cut to 7 and targets to 5 tokens, and EOS follows both. The lengths of pairs say less."""
    corpus = corpus_of_parts((3, 2), (14, 1), (4, 9), (7, 5))
    data = DataConfig.model_validate({"packing": "none"})
    pairs = RowRule(data, TextToText(target_len=6), context(8, "encoder_decoder"))
    counts = count_documents(corpus, pairs)
    assert (counts.rows, counts.cut_documents) == (4, 2)
    assert counts.room_used == (4 + 8 + 5 + 8, 3 + 2 + 6 + 6)
    assert counts.room == (4 * 8, 4 * 6)
