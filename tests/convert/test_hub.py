"""Models of the Hugging Face Hub, whose client is replaced by one that records its calls."""

from pathlib import Path

import pytest

from t5x_lite.cli import main
from t5x_lite.convert import hub
from t5x_lite.errors import UserError

huggingface_hub = pytest.importorskip("huggingface_hub", reason="the extra hub is not installed")

FILES_OF_A_MODEL = [
    ".gitattributes",
    "1_Pooling/config.json",
    "README.md",
    "chat_template.jinja",
    "config.json",
    "flax_model.msgpack",
    "handler.py",
    "model-00001-of-00002.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "rust_model.ot",
    "tf_model.h5",
    "tokenizer.json",
    "tokenizer.model",
    "training_args.bin",
    "vocab.txt",
]


def test_only_files_that_run_no_code_are_downloaded() -> None:
    from huggingface_hub.utils import filter_repo_objects

    selected = filter_repo_objects(FILES_OF_A_MODEL, allow_patterns=hub.SAFE_FILES)
    assert list(selected) == [
        "1_Pooling/config.json",
        "chat_template.jinja",
        "config.json",
        "model-00001-of-00002.safetensors",
        "model.safetensors.index.json",
        "tokenizer.json",
        "tokenizer.model",
        "vocab.txt",
    ]


def test_a_name_of_the_hub_is_downloaded_and_imported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    calls = []

    def snapshot_download(name: str, revision: str | None, allow_patterns: list[str]) -> str:
        calls.append((name, revision, allow_patterns))
        (tmp_path / "config.json").write_text('{"model_type": "of_another_kind"}')
        return str(tmp_path)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    assert main(["import", "hf", "org/name@v1.0", str(tmp_path / "run")]) == 2
    assert calls == [("org/name", "v1.0", hub.SAFE_FILES)]
    assert f"{tmp_path}/config.json: model_type 'of_another_kind' is not" in capsys.readouterr().err


def test_a_folder_is_never_looked_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub, "snapshot_download", None)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "org").mkdir()
    for name in ("org", "org/missing", str(tmp_path / "x")):
        assert hub.find_model(Path(name)) == Path(name)


def test_without_a_network_the_import_ends_with_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    assert main(["import", "hf", "no_such_org/no_such_name", str(tmp_path / "run")]) == 2
    errors = capsys.readouterr().err.strip().splitlines()
    assert len(errors) == 1
    assert "no_such_org/no_such_name: is not a folder, and cannot be downloaded" in errors[0]
    assert not (tmp_path / "run").exists()


def test_a_missing_client_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("t5x_lite.extras.find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"pip install 't5x_lite\[hub\]'"):
        hub.find_model(Path("no_such_org/no_such_name"))
