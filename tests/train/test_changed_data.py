"""Runs whose files change between a stop and a resumption."""

import json
import os
from pathlib import Path

import pytest

from tests.conftest import lines, write_task
from tests.train.whole_runs import train

STEPS = ("train.steps=4", "checkpoint.every_steps=2", "tokenizer=bytes")
RESUMED = ("train.steps=6", "train.allow_changed_config=true")


@pytest.fixture
def text(tmp_path: Path) -> Path:
    path = tmp_path / "text.txt"
    path.write_text("".join(f"line {number} of a text of some length\n" for number in range(200)))
    return path


def stop_at(run_dir: Path, step: int) -> None:
    """Remove the checkpoints after a step, as if the run had been stopped there."""
    for folder in (run_dir / "checkpoints").iterdir():
        if folder.name.isdigit() and int(folder.name) > step:
            folder.rename(run_dir / f"removed-{folder.name}")


def test_a_run_resumes_on_the_text_that_it_began_with_and_on_no_other(
    tiny_config: Path, text: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    run_dir = tmp_path / "run"
    settings = (*STEPS, "data.document=line", f"data.cache_dir={tmp_path / 'cache'}", "checkpoint.keep=9")
    command = (tiny_config, run_dir, *settings)
    assert train(*command, f"data.files={text}") == 0
    stop_at(run_dir, 2)

    content = text.read_text()
    text.write_text(content.replace("line 7 of", "line 8 of"))  # as many tokens and documents
    capfd.readouterr()
    assert train(*command, f"data.files={text}") == 2
    message = capfd.readouterr().err.splitlines()[-1]
    assert "was trained on other data than the files hold now: text.train" in message
    assert "restore the files, choose another run_dir, or set train.allow_changed_config=true" in message
    assert [record["step"] for record in lines(run_dir)] == [1, 2, 3, 4]

    text.write_text(content)
    os.utime(text, (1, 1))  # as that of a copy on another machine
    assert train(*command, f"data.files={text}") == 0
    assert "resumed from step 2" in capfd.readouterr().err


def test_validation_on_a_training_file_is_said(
    tiny_config: Path, text: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    validation = tmp_path / "validation.txt"
    validation.write_bytes(text.read_bytes())
    settings = (*STEPS, f"data.cache_dir={tmp_path / 'cache'}", f"data.validation_files={validation}")
    assert train(tiny_config, tmp_path / "both", *settings, f"data.files={tmp_path}/*.txt") == 0
    assert f"data.validation_files: {validation} is training text too (data.files)" in capfd.readouterr().err
    assert train(tiny_config, tmp_path / "apart", *settings, f"data.files={text}") == 0
    assert "is training text too" not in capfd.readouterr().err


@pytest.mark.slow
def test_changed_data_of_a_task_can_be_accepted(
    tiny_config: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    write_task(tmp_path / "short.yaml")
    records = [{"text": word, "label": label} for word, label in (("fox", "yes"), ("dog", "no")) * 4]
    for name in ("train", "validation"):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    command = (
        tiny_config,
        tmp_path / "run",
        *STEPS,
        f"tasks={tmp_path / 'short.yaml'}",
        "objective.text_to_text.target_len=4",
        f"data.files={tmp_path / 'train.jsonl'}",
        f"data.validation_files={tmp_path / 'validation.jsonl'}",
    )
    assert train(*command) == 0
    (tmp_path / "train.jsonl").write_text(json.dumps(records[0]) + "\n")
    assert train(*command) == 0  # it is complete: no batch is missing
    assert train(*command, "train.steps=6") == 2
    capfd.readouterr()
    assert train(*command, *RESUMED) == 0
    errors = capfd.readouterr().err
    assert "continuing on changed data: short.train" in errors
    assert "resumed from step 4" in errors
