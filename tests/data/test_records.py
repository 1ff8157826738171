"""Records of tasks out of every kind of file, mixed, as batches; and what is said of those that cannot serve."""

import csv
import gzip
import io
import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cloudpickle
import numpy as np
import pyarrow
import pytest
import zstandard
from pyarrow import parquet

from t5x_lite import config as configuration
from t5x_lite import tasks
from t5x_lite.data.pipeline import training_batch
from t5x_lite.data.records import TaskData, open_task_data, read
from t5x_lite.data.tokenizer import Bytes
from t5x_lite.errors import UserError
from t5x_lite.objectives import ExampleContext
from t5x_lite.train.setup import open_data

SENTENCES = ['he said "no", twice', "two\tparts", "ünï – 3", "plain"]
LABELS = ["yes", "no", "no", "yes"]
CLASSIFY: dict[str, Any] = {
    "about": "a test",
    "columns": {"text": "sentence", "label": "label"},
    "objective": {"classify": {"labels": ["no", "yes"]}},
    "inputs": "{text}",
    "metrics": ["accuracy"],
}
PACK: dict[str, Callable[[bytes], bytes]] = {
    "": bytes,
    ".gz": gzip.compress,
    ".zst": zstandard.ZstdCompressor().compress,
}


def config_of(folder: Path, names: str | list[str], *overrides: str, **task: Any) -> configuration.RunConfig:
    """A decoder's config for tasks; of one that is given here, `name` is its file."""
    if task:
        (folder / str(names)).write_text(json.dumps({**CLASSIFY, **task}))
        names = str(folder / str(names))
    settings = {
        "model": {"layers": 1, "embed": 8, "heads": 2, "positions": "rotary"},
        "tokenizer": "bytes",
        "tasks": names,
        "data": {"files": f"{folder}/train.*", "validation_files": f"{folder}/train.*"},
        "train": {"steps": 9, "batch_size": 8, "seq_len": 48},
    }
    (folder / "config.yaml").write_text(json.dumps(settings))
    return configuration.load(folder / "config.yaml", overrides)


def opened(config: configuration.RunConfig) -> TaskData:
    data = open_data(config, Bytes())
    assert isinstance(data, TaskData)
    return data


def serialised(form: str) -> bytes:
    """The sentences and their labels as a file."""
    rows = [{"sentence": s, "label": label} for s, label in zip(SENTENCES, LABELS, strict=True)]
    if form == "jsonl":
        return "\n\n".join(map(json.dumps, rows)).encode()
    if form == "parquet":
        written = io.BytesIO()
        parquet.write_table(pyarrow.Table.from_pylist(rows), written)
        return written.getvalue()
    text = io.StringIO()
    if form == "csv":
        writer = csv.DictWriter(text, ["sentence", "label"])
        writer.writeheader()
        writer.writerows(rows)
    else:  # a tab cannot stand in TSV; quotes are plain characters there
        text.write(
            "sentence\tlabel\n" + "".join(f"{r['sentence']}\t{r['label']}\n" for r in rows if "\t" not in r["sentence"])
        )
    return f"{text.getvalue()}\n".encode()


@pytest.mark.parametrize("ending", PACK)
@pytest.mark.parametrize("form", ["tsv", "csv", "jsonl", "parquet"])
def test_records_are_the_same_in_every_kind_of_file(tmp_path: Path, form: str, ending: str) -> None:
    (tmp_path / f"train.{form}{ending}").write_bytes(PACK[ending](serialised(form)))
    config = config_of(tmp_path, "own.yaml", **CLASSIFY)
    found = read(config.tasks[0], config, "train")
    expected = [pair for pair in zip(SENTENCES, LABELS, strict=True) if form != "tsv" or "\t" not in pair[0]]
    assert [(found[n]["text"], found[n]["label"]) for n in range(len(found))] == expected
    assert found.name == "own"


def test_columns_of_files_without_a_header_lists_and_parts(tmp_path: Path) -> None:
    (tmp_path / "train.tsv").write_text("1\tgood\n0\tbad\n")
    config = config_of(tmp_path, "own.yaml", "data.columns=[label,sentence]", **CLASSIFY)
    found = read(config.tasks[0], config, "train")
    assert [found[n] for n in range(2)] == [{"text": "good", "label": "1"}, {"text": "bad", "label": "0"}]
    (tmp_path / "train.tsv").unlink()
    row = {"p": "because", "a": {"one": "x", "two": [1, 2]}, "b": "y", "label": 1}
    (tmp_path / "train.jsonl").write_text(json.dumps(row))
    columns = {"text": ["p", "b"], "label": "label", "several": "a/two"}
    config = config_of(tmp_path, "own.yaml", columns=columns)
    assert read(config.tasks[0], config, "train")[0] == {"text": ["because", "y"], "label": 1, "several": [1, 2]}


def test_tfds_builders_are_read(tmp_path: Path) -> None:
    """One of SQuAD's form, whose answers are lists inside a feature."""
    import tensorflow_datasets as tfds

    class TinyAnswers(tfds.core.GeneratorBasedBuilder):
        VERSION = tfds.core.Version("1.0.0")

        def _info(self) -> Any:
            answers = tfds.features.Sequence({"text": tfds.features.Text(), "answer_start": np.int32})
            text = {name: tfds.features.Text() for name in ("question", "context")}
            features = tfds.features.FeaturesDict({**text, "answers": answers})
            return tfds.core.DatasetInfo(builder=self, features=features)

        def _split_generators(self, manager: Any) -> Any:
            return {"train": self._generate_examples(), "validation": self._generate_examples()}

        def _generate_examples(self) -> Any:
            for n in range(3):
                found = [{"text": "ü", "answer_start": 4}] * n
                yield n, {"question": f"q{n}", "context": "the ü.", "answers": found}

    TinyAnswers(data_dir=tmp_path, file_format="array_record").download_and_prepare()
    tfds.core.utils.file_utils.add_data_dir(tmp_path)
    own = {**tasks.find_task("squad").model_dump(mode="json"), "tfds": "tiny_answers"}
    no_files = ("data.files=[]", "data.validation_files=[]")
    config = config_of(tmp_path, "own.yaml", *no_files, **own)
    found = read(config.tasks[0], config, "validation")
    records = sorted((found[n] for n in range(len(found))), key=lambda record: record["question"])
    assert records[2] == {"question": "q2", "context": "the ü.", "answers": ["ü", "ü"], "starts": [4, 4]}
    assert records[0]["answers"] == records[0]["starts"] == []
    assert found.task.reference(records[2]) == ["ü", "ü"]
    assert found.task.text(records[2]) == ("question: q2 context: the ü.", "ü")
    bad = config_of(tmp_path, "own.yaml", *no_files, **{**own, "splits": {"train": "tr"}})
    with pytest.raises(UserError, match=r"task .*own.yaml: TFDS cannot give tiny_answers \(tr\)"):
        read(bad.tasks[0], bad, "train")


def test_glues_builder_is_known_without_tensorflow(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import tensorflow_datasets as tfds

    def data_source(name: str, split: str) -> list[dict[str, Any]]:
        """The look-up of the builder, and one record instead of a download."""
        assert tfds.builder_cls(name.partition("/")[0]).__name__ == "Glue"
        return [{"sentence": b"good", "label": np.int64(1), "idx": np.int32(0)}]

    monkeypatch.setattr(tfds, "data_source", data_source)
    config = config_of(tmp_path, "sst2", "data.files=[]", "data.validation_files=[]")
    assert read("sst2", config, "train")[0] == {"text": "good", "label": 1}


SIZES = {"a": 10, "b": 40, "c": 160}


@pytest.fixture
def three(tmp_path: Path) -> Callable[..., TaskData]:
    """Three tasks of 10, 40 and 160 records, whose inputs begin with their names."""
    for name, size in SIZES.items():
        (tmp_path / f"{name}.yaml").write_text(json.dumps({**CLASSIFY, "inputs": name + " {text}"}))
        lines = [json.dumps({"sentence": f"{n}", "label": n % 2}) for n in range(size)]
        (tmp_path / f"{name}.jsonl").write_text("\n".join(lines))
    files = f"{tmp_path}/{{task}}.jsonl"
    names = [f"{tmp_path}/{name}.yaml" for name in SIZES]

    def made(*overrides: str) -> TaskData:
        return opened(config_of(tmp_path, names, f"data.files={files}", f"data.validation_files={files}", *overrides))

    return made


@pytest.mark.parametrize(
    ("overrides", "rates"),
    [
        ((), (10, 40, 160)),
        (("data.mixture_limit=40",), (10, 40, 40)),
        (("data.mixture_alpha=0.5",), (10**0.5, 40**0.5, 160**0.5)),
        (("data.mixture_alpha=0.5", "data.mixture_limit=90"), (10**0.5, 40**0.5, 90**0.5)),
        (("data.mixture_alpha=0",), (1, 1, 1)),
    ],
)
def test_tasks_are_mixed_at_t5s_rates(
    three: Callable[..., TaskData], overrides: tuple[str, ...], rates: tuple[float, ...]
) -> None:
    """Raffel et al. 2020, §3.5.2: min(e, K) over their sum; raised to 1/T and renormalised; equal."""
    rows = three(*overrides).rows()
    seen = Counter(chr(rows[g]["tokens"][0] - Bytes.first) for g in range(600))
    for name, rate in zip(SIZES, rates, strict=True):
        assert seen[name] / 600 == pytest.approx(rate / sum(rates), abs=0.01)


def test_a_batch_is_a_function_of_seed_and_step(three: Callable[..., TaskData]) -> None:
    rows, whole = three().rows(), np.arange(8)
    for step in (0, 7, 60):
        batch = training_batch(rows, 8, whole, step)
        again = cloudpickle.loads(cloudpickle.dumps(rows))  # as a worker process gets it
        for split in (np.split(whole, 2), np.split(whole, 8)):
            parts = [training_batch(again, 8, local, step) for local in split]
            for name, value in batch.items():
                np.testing.assert_array_equal(np.concatenate([part[name] for part in parts]), value)
    other = training_batch(three("train.seed=1").rows(), 8, whole, 7)
    assert any((other[name] != value).any() for name, value in training_batch(rows, 8, whole, 7).items())


def test_each_epoch_has_every_record_once_in_an_order_of_its_own(tmp_path: Path) -> None:
    texts = [f"{n:02d}" for n in range(16)]
    (tmp_path / "train.jsonl").write_text("\n".join(json.dumps({"sentence": t, "label": 0}) for t in texts))
    data = opened(config_of(tmp_path, "own.yaml", "task_form=head", **CLASSIFY))
    rows = data.rows()
    epochs = [[Bytes().decode(rows[g]["tokens"]) for g in range(e * 16, e * 16 + 16)] for e in (0, 1)]
    assert sorted(epochs[0]) == sorted(epochs[1]) == texts
    assert epochs[0] != epochs[1] != texts


def test_validation_has_every_record_in_order_and_fills_the_last_batch(three: Callable[..., TaskData]) -> None:
    batches = list(three("tasks=" + three().config.tasks[0]).validation().batches(np.arange(8)))
    assert [float(batch["loss_weights"].any(1).sum()) for batch in batches] == [8, 2]
    texts = [Bytes().decode(row[2:3]) for batch in batches for row in batch["tokens"] if row.any()]
    assert texts == [str(n) for n in range(10)]
    short = three("eval.batches=2", "eval.batch_size=4").validation()
    assert len(list(short.batches(np.arange(4)))) == 3 * 2
    assert [batch["tokens"].shape[0] for batch in short.batches(np.array([1]))] == [1] * 6


def test_answers_that_are_not_in_their_context_are_counted(tmp_path: Path) -> None:
    rows = [{"question": "q", "context": "abc", "answers": {"text": ["b"], "answer_start": [n]}} for n in (1, 2, 1)]
    (tmp_path / "train.jsonl").write_text("\n".join(map(json.dumps, rows)))
    name = tmp_path / "own.yaml"
    own = {**tasks.find_task("squad").model_dump(mode="json"), "objective": {"extract": {"question_len": 4}}}
    name.write_text(json.dumps(own))
    config = config_of(tmp_path, str(name), "model.family=encoder")
    vocabulary = Bytes().vocabulary()
    vocabulary = type(vocabulary)(**{**vars(vocabulary), "named": {"[CLS]": 1, "[SEP]": 2}})
    data = open_task_data(config, Bytes(), ExampleContext(16, vocabulary, "encoder"))
    assert list(data.skipped()) == [
        "task own: 1 of 3 training records skipped: an answer that is not in its context at the place that is given"
    ]
    rows_of = data.rows()
    assert sorted(float(rows_of[g]["loss_weights"]) for g in range(3)) == [0, 1, 1]
    assert [number for number, _ in data.validation().examples(data.held_out[0])] == [0, 1, 2]


BAD: dict[str, tuple[dict[str, Any], str, tuple[str, ...], str]] = {
    "label": (
        {},
        "sentence\tlabel\nx\tno\ny\tmaybe\n",
        (),
        r"train.tsv:3: task own: label 'maybe' is not one of",
    ),
    "column": ({}, "text\tlabel\nx\tno\n", (), r"train.tsv:2: task own wants the column 'sentence', found text, label"),
    "count": ({}, "sentence\tlabel\nx\tno\ty\n", (), r"train.tsv:2: 3 columns, expected 2"),
    "none": ({}, "sentence\tlabel\n", (), "task own: has no train records"),
    "validation": (
        {},
        "sentence\tlabel\nx\tno\n",
        ("data.validation_files=[]",),
        "data.validation_files must say",
    ),
    "files": ({}, "", ("data.files=[]", "data.validation_files=[]"), "names no TFDS builder; give data.files"),
    "no task": ({}, "", ("tasks=sst3",), "no task 'sst3'; did you mean sst2"),
    "no task at all": ({}, "", ("tasks=zzzzzz",), "no task 'zzzzzz'; there are ag_news, boolq, .*wsc. A YAML file"),
    "heads": ({}, "", ("tasks=[sst2,cola]", "task_form=head"), "learnt together in text form alone"),
    "no text": ({}, "", ("tasks=[sst2,conll2003]", "model.family=encoder_decoder"), "conll2003 has no text form"),
    "head of T5": ({}, "", ("task_form=head", "model.family=encoder_decoder"), "a head is for an encoder or a decoder"),
    "half seen": ({}, "", ("tasks=wic", "task_form=head"), "a head would not see word of wic; it is learnt as text"),
    "long targets": ({"target_len": 48}, "sentence\tlabel\nx\tno\n", (), "no room for inputs beside target_len 48"),
    "role": ({"inputs": "{other}"}, "", (), "`columns` has no role other"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_line_that_says_where(case: str, tmp_path: Path) -> None:
    task, text, overrides, message = BAD[case]
    (tmp_path / "train.tsv").write_text(text)
    (tmp_path / "own.yaml").write_text(json.dumps({**CLASSIFY, **task}))
    with pytest.raises(UserError, match=message) as caught:
        rows = opened(config_of(tmp_path, str(tmp_path / "own.yaml"), *overrides)).rows()
        _ = rows[0], rows[1]
    assert "\n" not in str(caught.value)


def test_files_that_cannot_be_read_are_named(tmp_path: Path) -> None:
    for name in ("train.tsv.gz", "train.parquet", "train.csv.zst", "train.jsonl"):
        (tmp_path / name).write_bytes(b"not what the name says")
        config = config_of(tmp_path, "own.yaml", **CLASSIFY)
        with pytest.raises(UserError, match=name):
            read(config.tasks[0], config, "train")
        (tmp_path / name).unlink()
    long = "x" * 200_000  # more than Python's own limit of a field
    (tmp_path / "train.csv").write_text(f"sentence,label\n{long},1\n")
    assert read(config.tasks[0], config, "train")[0]["text"] == long
