"""The command line as scripts and people meet it."""

import json
from pathlib import Path

import pytest

from t5x_lite.cli import main
from tests.conftest import Shell


def test_eval_prints_one_json_object_and_nothing_else(tiny_run: Path, t5x_lite: Shell, tmp_path: Path) -> None:
    done = t5x_lite("eval", tiny_run, "--json", f"data.cache_dir={tmp_path}")  # an empty cache: it tokenises anew
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["step"] == 12
    assert {"eval/loss", "eval/perplexity", "eval/bits_per_byte"} <= found.keys()


def test_eval_takes_overrides_and_a_step(tiny_run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["eval", str(tiny_run), "eval.batches=1", "--step=8", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["step"] == 8
    assert found["eval/tokens"] <= 4 * 16


def test_a_wrong_word_is_one_line(tiny_run: Path, tiny_config: Path, capfd: pytest.CaptureFixture[str]) -> None:
    for arguments in (
        ["train", str(tiny_config), "train.stpes=3"],
        ["train", str(tiny_config), "--stpes=3"],
        ["eval", str(tiny_run), "train.stpes=3"],
        ["eval", str(tiny_run.parent)],
        ["report", str(tiny_run), "x=1"],
        ["report", str(tiny_run.parent)],
    ):
        assert main(arguments) == 2
        errors = capfd.readouterr().err.strip().splitlines()
        assert len(errors) == 1
        assert errors[0].startswith("t5x-lite: ")


def test_every_setting_is_listed(tiny_config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", str(tiny_config), "--help-config"]) == 0
    listed = capsys.readouterr().out
    for key in ("data.files", "model.layers", "train.batch_size", "optimizer.schedule.wsd.decay", "mesh.pipeline"):
        assert f"\n{key} " in listed
    assert "(sequences)" in listed


def test_prepare_and_tokenizer_make_what_train_uses(
    tiny_config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cache = f"data.cache_dir={tmp_path}/cache"
    assert main(["tokenizer", str(tiny_config), cache, f"run_dir={tmp_path}/run"]) == 0
    assert (tmp_path / "run/tokenizer.model").is_file()
    assert main(["prepare", str(tiny_config), cache]) == 0
    folder = Path(capsys.readouterr().out.splitlines()[-1].partition(": ")[2])
    assert (folder / "corpus.json").is_file()
    assert main(["train", str(tiny_config), cache, f"run_dir={tmp_path}/run", "train.steps=2"]) == 0
    assert "tokenising" not in capsys.readouterr().err


def test_a_report_of_several_runs_is_a_picture(tiny_run: Path, tmp_path: Path) -> None:
    assert main(["report", str(tiny_run), str(tiny_run), "--to", str(tmp_path / "both.png")]) == 0
    assert (tmp_path / "both.png").read_bytes().startswith(b"\x89PNG")


def test_the_module_runs_as_the_command_does(t5x_lite: Shell) -> None:
    done = t5x_lite("--help")
    assert done.returncode == 0
    for command in ("train", "prepare", "tokenizer", "eval", "generate", "report"):
        assert command in done.stdout
