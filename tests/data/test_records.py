"""Records of tasks from every kind of file, mixed, as batches; and the errors for records that cannot serve."""

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
from backports import zstd
from pyarrow import parquet

from t5x_lite import config as configuration
from t5x_lite import tasks
from t5x_lite.data.byte_tokenizer import Bytes
from t5x_lite.data.files import open_tfds
from t5x_lite.data.pipeline import training_batch
from t5x_lite.data.record_files import read_record_file
from t5x_lite.data.records import TaskData, open_task_data
from t5x_lite.data.task_records import TaskRecords, read_task_records
from t5x_lite.data.training_data import PipelineSettings
from t5x_lite.errors import UserError
from t5x_lite.objectives import ExampleContext
from t5x_lite.objectives.supervised import Supervised
from t5x_lite.run_data import open_run_data

SENTENCES = ['he said "no", twice', "two\tparts", "ünï – 3", "plain"]
LABELS = ["yes", "no", "no", "yes"]
CLASSIFY: dict[str, Any] = {
    "about": "a test",
    "columns": {"text": "sentence", "label": "label"},
    "objective": {"classify": {"labels": ["no", "yes"]}},
    "inputs": "{text}",
    "metrics": ["accuracy"],
}
COMPRESS: dict[str, Callable[[bytes], bytes]] = {
    "": bytes,
    ".gz": gzip.compress,
    ".zst": zstd.compress,
}


def write_task(path: Path, **settings: Any) -> str:
    """Write the file of a task that classifies sentences, with some settings changed; return its name."""
    path.write_text(json.dumps({**CLASSIFY, **settings}))
    return str(path)


def load_config(folder: Path, names: str | list[str], *overrides: str) -> configuration.RunConfig:
    """The config of a decoder that learns tasks."""
    settings = {
        "model": {"layers": 1, "embed": 8, "heads": 2, "positions": "rotary"},
        "tokenizer": "bytes",
        "tasks": names,
        "data": {"files": f"{folder}/train.*", "validation_files": f"{folder}/train.*"},
        "train": {"steps": 9, "batch_size": 8, "seq_len": 48},
    }
    (folder / "config.yaml").write_text(json.dumps(settings))
    return configuration.load(folder / "config.yaml", overrides)


def open_tasks(config: configuration.RunConfig) -> TaskData:
    data = open_run_data(config, Bytes())
    assert isinstance(data, TaskData)
    return data


def serialise_sentences(file_format: str) -> bytes:
    """The sentences and their labels as the content of a file."""
    rows = [{"sentence": s, "label": label} for s, label in zip(SENTENCES, LABELS, strict=True)]
    if file_format == "jsonl":
        return "\n\n".join(map(json.dumps, rows)).encode()
    if file_format == "parquet":
        buffer = io.BytesIO()
        parquet.write_table(pyarrow.Table.from_pylist(rows), buffer)
        return buffer.getvalue()
    text = io.StringIO()
    if file_format == "csv":
        writer = csv.DictWriter(text, ["sentence", "label"])
        writer.writeheader()
        writer.writerows(rows)
    else:  # a field of TSV cannot have a tab; quotes are plain characters
        text.write("sentence\tlabel\n")
        for row in rows:
            if "\t" not in row["sentence"]:
                text.write(f"{row['sentence']}\t{row['label']}\n")
    return f"{text.getvalue()}\n".encode()


@pytest.mark.parametrize("ending", COMPRESS)
@pytest.mark.parametrize("file_format", ["tsv", "csv", "jsonl", "parquet"])
def test_records_are_the_same_in_every_kind_of_file(tmp_path: Path, file_format: str, ending: str) -> None:
    (tmp_path / f"train.{file_format}{ending}").write_bytes(COMPRESS[ending](serialise_sentences(file_format)))
    task = write_task(tmp_path / "sentences.yaml")
    records = read_task_records(task, load_config(tmp_path, task).data, "train")
    expected = [pair for pair in zip(SENTENCES, LABELS, strict=True) if file_format != "tsv" or "\t" not in pair[0]]
    assert [(records[n]["text"], records[n]["label"]) for n in range(len(records))] == expected
    assert records.name == "sentences"


def test_columns_of_files_without_a_header(tmp_path: Path) -> None:
    (tmp_path / "train.tsv").write_text("1\tgood\n0\tbad\n")
    task = write_task(tmp_path / "sentences.yaml")
    config = load_config(tmp_path, task, "data.columns=[label,sentence]")
    records = read_task_records(task, config.data, "train")
    assert [records[n] for n in range(2)] == [{"text": "good", "label": "1"}, {"text": "bad", "label": "0"}]


def test_columns_may_be_lists_and_inside_others(tmp_path: Path) -> None:
    record = {"p": "because", "a": {"one": "x", "two": [1, 2]}, "b": "y", "label": 1}
    (tmp_path / "train.jsonl").write_text(json.dumps(record))
    columns = {"text": ["p", "b"], "label": "label", "several": "a/two"}
    task = write_task(tmp_path / "sentences.yaml", columns=columns)
    records = read_task_records(task, load_config(tmp_path, task).data, "train")
    assert records[0] == {"text": ["because", "y"], "label": 1, "several": [1, 2]}


def test_tfds_builders_are_read(tmp_path: Path) -> None:
    """A builder of SQuAD's form, whose answers are lists inside a feature."""
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
                answers = [{"text": "ü", "answer_start": 4}] * n
                yield n, {"question": f"q{n}", "context": "the ü.", "answers": answers}

    TinyAnswers(data_dir=tmp_path, file_format="array_record").download_and_prepare()
    tfds.core.utils.file_utils.add_data_dir(tmp_path)
    squad = {**tasks.find_task("squad").model_dump(mode="json"), "tfds": "tiny_answers"}
    no_files = ("data.files=[]", "data.validation_files=[]")
    task = write_task(tmp_path / "answers.yaml", **squad)
    task_records = read_task_records(task, load_config(tmp_path, task, *no_files).data, "validation")
    records = sorted((task_records[n] for n in range(len(task_records))), key=lambda record: record["question"])
    assert records[2] == {"question": "q2", "context": "the ü.", "answers": ["ü", "ü"], "starts": [4, 4]}
    assert records[0]["answers"] == records[0]["starts"] == []
    assert task_records.task.reference(records[2]) == ["ü", "ü"]
    assert task_records.task.text(records[2]) == ("question: q2 context: the ü.", "ü")
    task = write_task(tmp_path / "answers.yaml", **{**squad, "splits": {"train": "tr"}})
    with pytest.raises(UserError, match=r"task .*answers.yaml: TFDS cannot give tiny_answers \(tr\)"):
        read_task_records(task, load_config(tmp_path, task, *no_files).data, "train")


def test_the_builder_of_glue_is_known_without_tensorflow() -> None:
    import tensorflow_datasets as tfds

    def load(name: str, split: str) -> list[dict[str, Any]]:
        """Look up the builder, and return one record instead of a download."""
        assert tfds.builder_cls(name.partition("/")[0]).__name__ == "Glue"
        return [{"sentence": b"good", "label": np.int64(1), "idx": np.int32(0)}]

    task = tasks.find_task("sst2")
    assert task.tfds is not None
    raw_records = open_tfds(task.tfds, task.splits.train, load=load)
    records = TaskRecords("sst2", task, raw_records, describe_location=str)
    assert records[0] == {"text": "good", "label": 1}


SIZES = {"a": 10, "b": 40, "c": 160}
OpenTasks = Callable[..., TaskData]


@pytest.fixture
def open_three_tasks(tmp_path: Path) -> OpenTasks:
    """Opens three tasks of 10, 40 and 160 records, whose inputs begin with their names."""
    names: list[str] = []
    for name, size in SIZES.items():
        names.append(write_task(tmp_path / f"{name}.yaml", inputs=name + " {text}"))
        lines = [json.dumps({"sentence": f"{n}", "label": n % 2}) for n in range(size)]
        (tmp_path / f"{name}.jsonl").write_text("\n".join(lines))
    files = f"{tmp_path}/{{task}}.jsonl"

    def open_with(*overrides: str) -> TaskData:
        config = load_config(tmp_path, names, f"data.files={files}", f"data.validation_files={files}", *overrides)
        return open_tasks(config)

    return open_with


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
    open_three_tasks: OpenTasks, overrides: tuple[str, ...], rates: tuple[float, ...]
) -> None:
    """Raffel et al. 2020, §3.5.2: min(e, K) over their sum; raised to 1/T and renormalised; equal."""
    rows = open_three_tasks(*overrides).rows()
    counts = Counter(chr(rows[g]["tokens"][0] - Bytes.first) for g in range(600))
    for name, rate in zip(SIZES, rates, strict=True):
        assert counts[name] / 600 == pytest.approx(rate / sum(rates), abs=0.01)


def test_a_batch_is_a_function_of_seed_and_step(open_three_tasks: OpenTasks) -> None:
    rows = open_three_tasks().rows()
    all_rows = np.arange(8)
    in_worker = cloudpickle.loads(cloudpickle.dumps(rows))  # as a worker process gets them
    for step in (0, 7, 60):
        batch = training_batch(rows, 8, all_rows, step)
        for rows_of_hosts in (np.split(all_rows, 2), np.split(all_rows, 8)):
            host_batches = [training_batch(in_worker, 8, local_rows, step) for local_rows in rows_of_hosts]
            for name, value in batch.items():
                np.testing.assert_array_equal(np.concatenate([part[name] for part in host_batches]), value)
    batch = training_batch(rows, 8, all_rows, 7)
    other = training_batch(open_three_tasks("train.seed=1").rows(), 8, all_rows, 7)
    assert any((other[name] != value).any() for name, value in batch.items())


def test_each_epoch_has_every_record_once_in_another_order(tmp_path: Path) -> None:
    texts = [f"{n:02d}" for n in range(16)]
    (tmp_path / "train.jsonl").write_text("\n".join(json.dumps({"sentence": t, "label": 0}) for t in texts))
    task = write_task(tmp_path / "sentences.yaml")
    rows = open_tasks(load_config(tmp_path, task, "task_form=head")).rows()
    decoded = [Bytes().decode(rows[g]["tokens"]) for g in range(2 * 16)]
    first_epoch = decoded[:16]
    second_epoch = decoded[16:]
    assert sorted(first_epoch) == sorted(second_epoch) == texts
    assert first_epoch != second_epoch != texts


def test_each_wording_of_a_task_is_as_likely_and_drawn_again_in_each_epoch(tmp_path: Path) -> None:
    """Wei et al. 2022, §2.1: an example is formatted by a template that is chosen at random for it."""
    texts = [f"{n:03d}" for n in range(200)]
    (tmp_path / "train.jsonl").write_text("\n".join(json.dumps({"sentence": t, "label": "no"}) for t in texts))
    task = write_task(tmp_path / "sentences.yaml", inputs="a{text}", instructions=["b{text}", "c{text}"])
    data = open_tasks(load_config(tmp_path, task, "task_form=text"))
    rows = data.rows()
    wordings = [Bytes().decode(rows[g]["tokens"])[:4] for g in range(600)]
    assert [Bytes().decode(data.rows()[g]["tokens"])[:4] for g in (0, 599)] == [wordings[0], wordings[599]]
    counts = Counter(wording[0] for wording in wordings)
    # 200 expected of each, with a standard deviation of sqrt(600 · 1/3 · 2/3) = 11.5.
    assert counts.keys() == {"a", "b", "c"}
    assert all(abs(count - 200) < 4 * 11.5 for count in counts.values())
    assert len(set(wordings)) > 400  # of 600: the chance that a text has one wording in all three epochs is 1/9
    evaluated = [features["tokens"][0] for _, features in data.validation().examples(data.held_out[0])]
    assert {Bytes().decode(np.array([token])) for token in evaluated} == {"a"}


def test_validation_has_every_record_in_order_and_fills_the_last_batch(
    open_three_tasks: OpenTasks, tmp_path: Path
) -> None:
    validation = open_three_tasks(f"tasks={tmp_path}/a.yaml").validation()
    batches = list(validation.batches(np.arange(8)))
    assert [float(batch["loss_weights"].any(1).sum()) for batch in batches] == [8, 2]
    texts = [Bytes().decode(row[2:3]) for batch in batches for row in batch["tokens"] if row.any()]
    assert texts == [str(n) for n in range(10)]


def test_validation_is_limited_for_each_task(open_three_tasks: OpenTasks) -> None:
    validation = open_three_tasks("eval.batches=2", "eval.batch_size=4").validation()
    assert len(list(validation.batches(np.arange(4)))) == 3 * 2
    assert [batch["tokens"].shape[0] for batch in validation.batches(np.array([1]))] == [1] * 6


def test_answers_that_are_not_in_their_context_are_counted(tmp_path: Path) -> None:
    rows = [{"question": "q", "context": "abc", "answers": {"text": ["b"], "answer_start": [n]}} for n in (1, 2, 1)]
    (tmp_path / "train.jsonl").write_text("\n".join(map(json.dumps, rows)))
    squad = {**tasks.find_task("squad").model_dump(mode="json"), "objective": {"extract": {"question_len": 4}}}
    task = write_task(tmp_path / "answers.yaml", **squad)
    config = load_config(tmp_path, task, "model.family=encoder")
    vocabulary = Bytes().vocabulary()
    vocabulary = type(vocabulary)(**{**vars(vocabulary), "named": {"[CLS]": 1, "[SEP]": 2}})
    context = ExampleContext(16, vocabulary, "encoder")
    settings = PipelineSettings(config.data, config.require_objective(), context, seed=0, validation_batch_size=8)
    data = open_task_data(settings, Bytes(), config.tasks)
    assert list(data.skipped()) == [
        "task answers: 1 of 3 training records skipped: an answer that is not in its context at the place that is given"
    ]
    training_rows = data.rows()
    assert sorted(float(training_rows[g]["loss_weights"]) for g in range(3)) == [0, 1, 1]
    assert [number for number, _ in data.validation().examples(data.held_out[0])] == [0, 1, 2]


def test_records_that_are_longer_than_a_row_are_counted(tmp_path: Path) -> None:
    """Two texts of 3 and 30 bytes in rows of 16."""
    (tmp_path / "train.tsv").write_text("sentence\tlabel\nabc\tno\n" + "x" * 30 + "\tno\n")
    task = write_task(tmp_path / "sentences.yaml")
    data = open_tasks(load_config(tmp_path, task, "train.seq_len=16", "task_form=head", "model.family=decoder"))
    assert list(data.truncated()) == [
        "task sentences: 1 of 2 training records do not fit into train.seq_len 16 and lose tokens"
    ]


def test_labels_in_another_order_are_those_of_the_task_by_their_names(tmp_path: Path) -> None:
    """The task's 0 is `no`; the run's 0 is YES, as in an imported classifier."""
    for split in ("train", "validation"):
        (tmp_path / f"{split}.tsv").write_text("sentence\tlabel\nfirst\t0\nsecond\tyes\n")
    task = write_task(tmp_path / "ordered.yaml")
    overrides = ("objective.classify.labels=['YES', 'NO']", "task_form=head", "model.family=decoder")
    data = open_tasks(load_config(tmp_path, task, *overrides))
    assert isinstance(data.objective, Supervised)
    records = data.held_out[0]
    assert [data.objective.reference(records[number]) for number in range(len(records))] == [1, 0]


def test_a_prompt_that_a_reward_model_would_not_read_is_refused(tmp_path: Path) -> None:
    records = [{"prompt": "a", "chosen": "b", "rejected": "c"}, {"prompt": "a", "chosen": "b", "rejected": "b"}]
    text = [json.dumps(record) for record in records]
    (tmp_path / "train.jsonl").write_text("\n".join(text))
    for name, message in (
        ("reward", r"train.jsonl:1: task reward: `prompt` is not read by the task; set tasks=reward_prompt"),
        ("reward_prompt", r"train.jsonl:2: task reward_prompt: `chosen` and `rejected` are equal"),
    ):
        with pytest.raises(UserError, match=message):
            open_tasks(load_config(tmp_path, name, "task_form=head"))


BAD_INPUT: dict[str, tuple[dict[str, Any], str, tuple[str, ...], str]] = {
    "label": (
        {},
        "sentence\tlabel\nx\tno\ny\tmaybe\n",
        (),
        r"train.tsv:3: task bad: label 'maybe' is not one of",
    ),
    "column": ({}, "text\tlabel\nx\tno\n", (), r"train.tsv:2: task bad: no column 'sentence' \(found text, label\)"),
    "count": ({}, "sentence\tlabel\nx\tno\ty\n", (), r"train.tsv:2: 3 columns, expected 2"),
    "carriage return": ({}, "sentence\tlabel\nx\tno\ny\rz\tno\n", (), "train.tsv:3: .*a carriage return inside"),
    "none": ({}, "sentence\tlabel\n", (), "task bad: has no train records in .*train"),
    "validation": (
        {},
        "sentence\tlabel\nx\tno\n",
        ("data.validation_files=[]",),
        "data.validation_files must say",
    ),
    "files": ({}, "", ("data.files=[]", "data.validation_files=[]"), "names no TFDS builder; give data.files"),
    "no task": ({}, "", ("tasks=sst3",), "no task 'sst3'; did you mean sst2"),
    "instructions without inputs": ({"inputs": "", "instructions": ["a {text}"]}, "", (), "beside `inputs`"),
    "no task at all": ({}, "", ("tasks=zzzzzz",), "no task 'zzzzzz'; there are ag_news, .*wsc. A YAML file"),
    "no file of a task": ({}, "", ("tasks=none.yaml",), "tasks: there is no file none.yaml"),
    "heads": ({}, "", ("tasks=[sst2,cola]", "task_form=head"), "learnt together in text form alone"),
    "no text": ({}, "", ("tasks=[sst2,conll2003]", "model.family=encoder_decoder"), "conll2003 has no text form"),
    "head of T5": ({}, "", ("task_form=head", "model.family=encoder_decoder"), "a head is for an encoder or a decoder"),
    "settings of a head": (
        {},
        "",
        ("tasks=sst2", "objective.classify.pool=mean", "model.family=decoder"),
        "objective.classify: a model of family decoder learns sst2 as text; set task_form=head",
    ),
    "half seen": ({}, "", ("tasks=wic", "task_form=head"), "a head would not see word of wic; it is learnt as text"),
    "long targets": ({"target_len": 48}, "sentence\tlabel\nx\tno\n", (), "no room for inputs beside target_len 48"),
    "last label": ({}, "sentence\tlabel\nx\tno\ny\tmeh\n", (), "train.tsv:3: task bad: label 'meh' is not one of"),
    "text form": (
        {},
        "sentence\tlabel\nx\tno\ny\tmeh\n",
        ("task_form=text",),
        "train.tsv:3: task bad: label 'meh' is not one of",
    ),
    "role": ({"inputs": "{other}"}, "", (), "`columns` has no role other"),
}


@pytest.mark.parametrize("case", BAD_INPUT)
def test_bad_input_is_one_line_that_says_where(case: str, tmp_path: Path) -> None:
    settings, text, overrides, message = BAD_INPUT[case]
    (tmp_path / "train.tsv").write_text(text)
    task = write_task(tmp_path / "bad.yaml", **settings)
    with pytest.raises(UserError, match=message) as caught:
        open_tasks(load_config(tmp_path, task, *overrides))
    assert "\n" not in str(caught.value)


def test_files_that_cannot_be_read_are_named(tmp_path: Path) -> None:
    task = write_task(tmp_path / "sentences.yaml")
    data = load_config(tmp_path, task).data
    for name in ("train.tsv.gz", "train.parquet", "train.csv.zst", "train.jsonl"):
        (tmp_path / name).write_bytes(b"not what the name says")
        with pytest.raises(UserError, match=name):
            read_task_records(task, data, "train")
        (tmp_path / name).unlink()


@pytest.mark.parametrize("name", ["a.jsonl", "a.json"])
def test_surrogates_without_a_partner_are_replaced(name: str, tmp_path: Path) -> None:
    """JSON may hold half of an emoji, which UTF-8 cannot (RFC 8259, §8.2)."""
    record = '{"text": "a \\ud83d b", "list": ["\\uDE00", "\\ud83d\\ude00"]}'
    (tmp_path / name).write_text(f"[{record}]" if name.endswith(".json") else record)
    ((_, value),) = read_record_file(str(tmp_path / name), ())
    assert value == {"text": "a \ufffd b", "list": ["\ufffd", "\U0001f600"]}


def test_records_that_are_not_utf8_are_refused(tmp_path: Path) -> None:
    (tmp_path / "train.tsv").write_bytes("sentence\tlabel\nwell\tno\ncafé\tno\n".encode("latin-1"))
    task = write_task(tmp_path / "sentences.yaml")
    with pytest.raises(UserError, match=r"train\.tsv:3: is not UTF-8 at byte 4 \(0xe9\); convert the file"):
        read_task_records(task, load_config(tmp_path, task).data, "train")


def test_a_field_may_be_longer_than_pythons_limit(tmp_path: Path) -> None:
    long = "x" * 200_000
    (tmp_path / "train.csv").write_text(f"sentence,label\n{long},1\n")
    task = write_task(tmp_path / "sentences.yaml")
    assert read_task_records(task, load_config(tmp_path, task).data, "train")[0]["text"] == long


@pytest.mark.parametrize("form", ["text", "head"])
def test_a_null_in_a_record_is_refused(form: str, tmp_path: Path) -> None:
    lines = [{"sentence": "good", "label": 1}, {"sentence": None, "label": 0}]
    (tmp_path / "train.jsonl").write_text("\n".join(map(json.dumps, lines)))
    task = write_task(tmp_path / "nulls.yaml")
    config = load_config(tmp_path, task, f"task_form={form}", "model.family=decoder")
    with pytest.raises(
        UserError, match=r"train.jsonl:2: task nulls: sentence is null; remove the record or complete it"
    ):
        open_tasks(config)


def test_a_date_that_python_cannot_hold_is_named(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    when = pyarrow.array([2**52, -(2**52)], pyarrow.timestamp("ms"))
    parquet.write_table(pyarrow.table({"sentence": ["a", "b"], "label": [0, 1], "at": when}), tmp_path / "a.parquet")
    with pytest.raises(UserError, match=r"a.parquet: row group 0 has a value that cannot be read"):
        read_record_file(str(tmp_path / "a.parquet"), ())


def test_a_record_of_a_text_task_without_a_target_is_named(tmp_path: Path) -> None:
    lines = [{"sentence": "a", "answers": ["b"]}, {"sentence": "c", "answers": []}]
    (tmp_path / "train.jsonl").write_text("\n".join(map(json.dumps, lines)))
    columns = {"text": "sentence", "answers": "answers"}
    task = write_task(tmp_path / "open.yaml", columns=columns, objective="text_to_text", targets="{answers}")
    with pytest.raises(UserError, match=r"train.jsonl:2: task open: its list 'answers', the target, is empty"):
        open_tasks(load_config(tmp_path, task))
