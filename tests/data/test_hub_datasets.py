"""Data sets of the Hugging Face Hub: local folders read by its library, and calls of the Hub recorded."""

import json
from pathlib import Path
from types import SimpleNamespace

import pytest

from t5x_lite.cli import main
from t5x_lite.data import hub_datasets
from t5x_lite.data.config import SourceConfig
from t5x_lite.data.sources import units
from t5x_lite.data.unit_readers import documents
from t5x_lite.errors import UserError

pytest.importorskip("datasets", reason="the extra hfdata is not installed")

import datasets

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep what the library caches out of the home folder."""
    hub_datasets._load_once.cache_clear()
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "datasets_cache")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A data set of two splits in JSON lines; the training split has three files of four records."""
    folder = tmp_path / "stories"
    folder.mkdir()
    for number in range(3):
        records = [{"story": f"story {number}.{line} é", "id": line} for line in range(4)]
        name = f"train-{number:05d}-of-00003.jsonl"
        (folder / name).write_text("".join(json.dumps(record) + "\n" for record in records))
    (folder / "validation.jsonl").write_text(json.dumps({"story": "held out", "id": 0}) + "\n")
    return folder


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("hf://a/b", ("a/b", "", "", "train")),
        ("hf://a/b@v1.2#en/test", ("a/b", "v1.2", "en", "test")),
        ("hf://a/b#validation", ("a/b", "", "", "validation")),
        ("hf://b@refs/pr/3", ("b", "refs/pr/3", "", "train")),
        ("hf:///data/x#train", ("/data/x", "", "", "train")),
    ],
)
def test_a_name_has_a_revision_a_config_and_a_split(url: str, expected: tuple[str, str, str, str]) -> None:
    dataset = hub_datasets.parse(url)
    assert (dataset.name, dataset.revision, dataset.config, dataset.split) == expected
    assert hub_datasets.parse(dataset.url) == dataset


def test_wrong_names_and_two_splits_are_refused() -> None:
    for url in ("hf://", "hf://a/b#c/d/e", "hf://a/b#", "hf://a/b@"):
        with pytest.raises(UserError, match="is not hf://ORG/NAME"):
            hub_datasets.parse(url)
    with pytest.raises(UserError, match="names a split, and so does"):
        hub_datasets.parse("hf://a/b#test", "validation")
    with pytest.raises(UserError, match=r"not files of data\.format=jsonl"):
        units(SourceConfig(files=("hf://a/b",), format="jsonl"))


def test_each_shard_is_a_unit_and_its_documents_are_the_records(folder: Path) -> None:
    source = SourceConfig(files=(f"hf://{folder}#train",), field=("story",))
    pieces = units(source)
    assert [(unit.start, unit.stop) for unit in pieces] == [(0, 1), (1, 2), (2, 3)]
    texts = [[text for _, text in documents(unit)] for unit in pieces]
    assert texts == [[f"story {number}.{line} é" for line in range(4)] for number in range(3)]
    assert isinstance(hub_datasets.open_dataset(hub_datasets.parse(source.files[0])), datasets.IterableDataset)


def test_a_corpus_of_a_changed_folder_is_another(folder: Path) -> None:
    source = SourceConfig(files=(f"hf://{folder}#train",), field=("story",))
    before = units(source)[0].identity
    assert units(source)[0].identity == before
    (folder / "train-00000-of-00003.jsonl").write_text(json.dumps({"story": "new", "id": 0}) + "\n")
    assert units(source)[0].identity != before


def test_prepare_tokenises_a_data_set_and_its_validation_split(
    folder: Path, tiny_config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [f"data.files=hf://{folder}", "data.validation_split=validation", "data.field=story", "tokenizer=bytes"]
    words += [f"data.cache_dir={tmp_path}/cache", "data.prepare_processes=1", "train.seq_len=4", "--json"]
    assert main(["prepare", str(tiny_config), *words]) == 0
    prepared = json.loads(capsys.readouterr().out)["sources"]["text"]
    assert prepared["train"]["documents"] == 12
    assert prepared["train"]["tokens"] == 12 * (len("story 0.0 é".encode()) + 1)
    assert prepared["validation"]["tokens"] == len("held out") + 1


def test_a_missing_field_names_the_record(folder: Path) -> None:
    source = SourceConfig(files=(f"hf://{folder}#validation",))
    with pytest.raises(UserError, match=r"shard 0 record 0: no field 'text' \(found story, id\); set data.field"):
        list(documents(units(source)[0]))


def test_the_hub_is_asked_for_the_commit_once_and_for_a_stream(monkeypatch: pytest.MonkeyPatch) -> None:
    questions: list[tuple[str, str | None]] = []

    def dataset_info(self: object, name: str, revision: str | None) -> SimpleNamespace:
        questions.append((name, revision))
        return SimpleNamespace(sha=COMMIT)

    calls = []

    def load_dataset(path: str, name: str | None, **options: object) -> datasets.IterableDataset:
        calls.append((path, name, options))
        return datasets.Dataset.from_dict({"text": ["x", "y"]}).to_iterable_dataset(num_shards=2)

    monkeypatch.setattr("huggingface_hub.HfApi.dataset_info", dataset_info)
    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    pieces = units(SourceConfig(files=("hf://org/set@v1#en/test",), split="test"))
    assert questions == [("org/set", "v1")]
    assert [unit.path for unit in pieces] == [f"hf://org/set@{COMMIT}#en/test"] * 2
    assert COMMIT in pieces[0].identity
    assert [text for unit in pieces for _, text in documents(unit)] == ["x", "y"]
    assert calls == [("org/set", "en", {"split": "test", "revision": COMMIT, "streaming": True})]
    assert len(questions) == 1


def test_a_complete_corpus_is_found_by_the_commit_alone(
    tiny_config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    commits = [COMMIT]
    opened = []

    def load_dataset(path: str, name: str | None, **options: object) -> datasets.IterableDataset:
        opened.append(options["revision"])
        return datasets.Dataset.from_dict({"text": ["some text", "more"]}).to_iterable_dataset(num_shards=2)

    monkeypatch.setattr("huggingface_hub.HfApi.dataset_info", lambda *_, **__: SimpleNamespace(sha=commits[-1]))
    monkeypatch.setattr(datasets, "load_dataset", load_dataset)

    def prepare() -> str:
        hub_datasets._load_once.cache_clear()
        opened.clear()
        words = ["data.files=hf://org/set", "tokenizer=bytes", f"data.cache_dir={tmp_path}/cache", "train.seq_len=4"]
        assert main(["prepare", str(tiny_config), *words, "data.prepare_processes=1", "--json"]) == 0
        return str(json.loads(capsys.readouterr().out)["sources"]["text"]["folder"])

    first = prepare()
    assert set(opened) == {COMMIT}
    assert prepare() == first
    assert not opened
    commits.append(COMMIT[::-1])
    assert prepare() != first
    assert set(opened) == {COMMIT[::-1]}


def test_without_a_network_prepare_ends_with_one_line(
    tiny_config: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    for url in ("hf://no/such", f"hf://no/such@{COMMIT}"):
        assert main(["prepare", str(tiny_config), f"data.files={url}", "tokenizer=bytes"]) == 2
        errors = capsys.readouterr().err.strip().splitlines()
        assert len(errors) == 1
        assert "hf://no/such" in errors[0]
        assert "check the name and the network" in errors[0]


def test_a_missing_library_is_named(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    monkeypatch.setattr("t5x_lite.extras.find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"needs datasets: pip install 't5x_lite\[hfdata\]'"):
        units(SourceConfig(files=(f"hf://{folder}",)))
    with pytest.raises(UserError, match=r"needs datasets"):
        units(SourceConfig(files=("hf://org/set",)))
