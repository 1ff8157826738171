"""Exports with their model cards, and uploads to a server on this machine that answers as the Hub does."""

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from t5x_lite.cli import main
from t5x_lite.convert.huggingface import export_hf
from tests.conftest import REPOSITORY, lines
from tests.convert.hub_server import TOKEN, FakeHub, serve_hub

pytest.importorskip("huggingface_hub", reason="the extra hub is not installed")


@pytest.fixture(scope="module")
def export(tiny_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of an export of a run that was trained here."""
    return export_hf(tiny_run, tmp_path_factory.mktemp("export") / "small-gpt")


def sections(card: str) -> dict[str, str]:
    """Return the sections of a model card by their titles."""
    return dict(re.findall(r"^## (\w+)\n\n(.*?)(?=^## |\Z)", card, flags=re.MULTILINE | re.DOTALL))


def test_the_card_says_what_was_trained_on_what_with_which_result(export: Path, tiny_run: Path) -> None:
    card = (export / "README.md").read_text()
    _, metadata, _ = card.split("---\n", 2)
    assert yaml.safe_load(metadata) == {
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
        "tags": ["t5x_lite", "jax", "gpt2"],
    }
    config = yaml.safe_load((tiny_run / "config.yaml").read_text())
    assert "\n# small-gpt\n" in card
    parts = sections(card)
    assert 'AutoModelForCausalLM.from_pretrained("small-gpt")' in parts["Use"]
    assert config["data"]["files"][0] in parts["Data"]
    last = lines(tiny_run)[-1]
    steps = config["train"]["steps"]
    assert f"| steps | {steps} of {steps} |" in parts["Training"]
    assert f"| tokens | {last['tokens']:,} |" in parts["Training"]
    assert f"| `loss` | {last['loss']:.4g} |" in parts["Results"]
    evaluation = [line for line in lines(tiny_run) if "eval/loss" in line][-1]
    assert f"| `eval/loss` | {evaluation['eval/loss']:.4g} |" in parts["Results"]
    assert "![Training curves](report.png)" in card
    assert (export / "report.png").read_bytes().startswith(b"\x89PNG")
    assert f"t5x-lite export hf {tiny_run} FOLDER --step {steps}" in parts["Commands"]
    (shown_config,) = re.findall(r"```yaml\n(.*?)```", parts["Commands"], flags=re.DOTALL)
    assert yaml.safe_load(shown_config) == config


def test_scores_of_the_exported_step_are_results(tiny_run: Path, tmp_path: Path) -> None:
    steps = lines(tiny_run)[-1]["step"]
    folder = tiny_run / "eval" / str(steps)
    folder.mkdir(parents=True, exist_ok=True)
    scores = folder / "scores.json"
    scores.write_text(json.dumps({"eval/lambada/acc": 0.25}))
    try:
        export_hf(tiny_run, tmp_path)
    finally:
        scores.unlink()
    assert "| `eval/lambada/acc` | 0.25 |" in sections((tmp_path / "README.md").read_text())["Results"]


@pytest.mark.slow
def test_transformers_generates_by_the_exported_settings(export: Path, tiny_run: Path, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers", reason="the extra hf is not installed")
    theirs = transformers.AutoModelForCausalLM.from_pretrained(export).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(export)
    # Transformers marks settings that it derived from config.json itself.
    assert not theirs.generation_config._from_model_config
    assert theirs.generation_config.eos_token_id == tokenizer.eos_token_id
    assert theirs.generation_config.pad_token_id == tokenizer.pad_token_id
    inputs = tokenizer("the quick brown", return_tensors="pt")
    output = theirs.generate(**inputs, do_sample=False, max_new_tokens=8)[0]
    import t5x_lite

    expected = t5x_lite.load(tiny_run).generate("the quick brown", tokens=8, temperature=0)[0]
    assert (
        tokenizer.decode(output[inputs["input_ids"].shape[1] :], skip_special_tokens=True).strip() == expected.strip()
    )
    # What weights came with goes out again.
    settings = json.loads((export / "generation_config.json").read_text())
    assert main(["import", "hf", str(export), str(tmp_path / "plain")]) == 0
    (export / "generation_config.json").write_text(json.dumps({**settings, "do_sample": True, "temperature": 0.6}))
    try:
        assert main(["import", "hf", str(export), str(tmp_path / "run")]) == 0
    finally:
        (export / "generation_config.json").write_text(json.dumps(settings))
    export_hf(tmp_path / "run", tmp_path / "out")
    again = json.loads((tmp_path / "out" / "generation_config.json").read_text())
    assert again == {**settings, "do_sample": True, "temperature": 0.6}
    card = (tmp_path / "out" / "README.md").read_text()
    assert "imported into t5x_lite and exported again" in card
    assert "Results" not in card
    assert not (tmp_path / "out" / "report.png").exists()


@pytest.mark.slow
def test_llama_cpp_reads_the_special_tokens_the_card_and_the_settings(export: Path, tmp_path: Path) -> None:
    gguf = pytest.importorskip("gguf", reason="llama.cpp's Python package is not installed")
    folder = tmp_path / "small-gpt"
    shutil.copytree(export, folder)
    settings = json.loads((folder / "generation_config.json").read_text())
    (folder / "generation_config.json").write_text(json.dumps({**settings, "temperature": 0.6}))
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    ids = {token["content"]: token["id"] for token in tokenizer["added_tokens"]}
    special = gguf.SpecialVocab(folder).special_token_ids
    assert special == {"bos": ids["</s>"], "eos": ids["</s>"], "pad": ids["<pad>"], "unk": ids["<unk>"]}
    assert {name: settings[f"{name}_token_id"] for name in ("bos", "eos", "pad")}.items() <= special.items()
    metadata = gguf.Metadata.load(model_path=folder)
    assert metadata.tags == ["t5x_lite", "jax", "gpt2", "text-generation"]
    assert metadata.sampling_temp == 0.6


@pytest.fixture
def fake_hub() -> Iterator[FakeHub]:
    with serve_hub() as hub:
        yield hub


def push(hub: FakeHub, home: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """Run `t5x-lite export hf` with the Hub's client directed to the server."""
    environment = {**os.environ, "HF_ENDPOINT": hub.url, "HF_HUB_OFFLINE": "0", "HF_HOME": str(home)}
    environment.pop("HF_TOKEN", None)
    command = [sys.executable, "-m", "t5x_lite", "export", "hf", *words]
    return subprocess.run(command, cwd=REPOSITORY, env=environment, capture_output=True, text=True, check=False)


@pytest.mark.slow
def test_an_export_is_uploaded_with_the_stored_token(tiny_run: Path, tmp_path: Path, fake_hub: FakeHub) -> None:
    home = tmp_path / "home"
    home.mkdir()
    (home / "token").write_text(TOKEN)
    out = tmp_path / "out"
    out.mkdir()
    (out / ".env").write_text("PASSWORD=x")
    (out / "notes.bin").write_bytes(b"private")
    done = push(fake_hub, home, str(tiny_run), str(out), "--push", "org/name", "--private")
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == [str(out), f"{fake_hub.url}/org/name"]
    assert [(body["organization"], body["name"], body["visibility"]) for body in fake_hub.created] == [
        ("org", "name", "private")
    ]
    expected = {path.name for path in out.iterdir()} - {".env", "notes.bin"}
    assert expected >= {"README.md", "config.json", "generation_config.json", "model.safetensors", "report.png"}
    assert fake_hub.files == {name: (out / name).read_bytes() for name in expected}
    assert b'from_pretrained("org/name")' in fake_hub.files["README.md"]
    assert fake_hub.authorizations == {f"Bearer {TOKEN}"}
    assert TOKEN not in done.stdout + done.stderr
    fake_hub.may_write = False
    done = push(fake_hub, home, str(tiny_run), str(out), "--push", "org/name")
    assert done.returncode == 2
    (error,) = [line for line in done.stderr.splitlines() if line.startswith("t5x-lite: ")]
    assert "--push org/name: cannot be uploaded" in error
    assert "token that may write" in error
    assert TOKEN not in done.stdout + done.stderr


def test_what_stands_in_the_way_of_an_upload_is_said_before_the_export(
    tiny_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    export = ["export", "hf", str(tiny_run), str(out)]
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    for words, message in (
        (["--push", "org/name"], "--push org/name: cannot be uploaded to the Hugging Face Hub"),
        (["--push", "name"], "--push name: is not ORG/NAME"),
        (["--push", "org/name@main"], "is not ORG/NAME"),
        (["--private"], "name it by --push"),
    ):
        assert main([*export, *words]) == 2
        errors = capsys.readouterr().err.strip().splitlines()
        assert len(errors) == 1
        assert message in errors[0]
    assert main(["export", "megatron", "x", str(out), "--push", "org/name"]) == 2
    assert "are for models (export hf)" in capsys.readouterr().err
    monkeypatch.setattr("t5x_lite.extras.find_spec", lambda name: None)
    assert main([*export, "--push", "org/name"]) == 2
    assert "pip install 't5x_lite[hub]'" in capsys.readouterr().err
    assert not out.exists()
