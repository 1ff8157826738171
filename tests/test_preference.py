"""Preference optimisation from the command line."""

import json
from pathlib import Path

import pytest

from t5x_lite import config as configuration
from t5x_lite.errors import UserError
from tests.conftest import REPOSITORY, Shell, lines

CONFIG = REPOSITORY / "configs/finetune/preference.yaml"


def write_comparisons(path: Path) -> Path:
    """Comparisons that `the` always wins."""
    with path.open("w") as file:
        for number in range(16):
            file.write(json.dumps({"prompt": f"{number} ", "chosen": "the", "rejected": "a of"}) + "\n")
    return path


def settings(base: Path, folder: Path, comparisons: Path) -> list[str]:
    return [
        f"adapt.from={base}",
        f"run_dir={folder / 'run'}",
        f"data.files={comparisons}",
        f"data.validation_files={comparisons}",
        "optimizer.learning_rate=0.003",
        "optimizer.warmup_steps=0",
        "train={steps: 10, batch_size: 8, seq_len: 24, log_every_steps: 5}",
        "checkpoint.every_steps=5",
        "eval.every_steps=5",
    ]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("loss", "method"),
    [("dpo", "reference"), ("dpo", "lora"), ("ipo", "reference"), ("ipo", "lora"), ("orpo", "full"), ("orpo", "lora")],
)
def test_a_run_learns_what_wins_and_resumes(
    loss: str, method: str, tiny_run: Path, tmp_path: Path, t5x_lite: Shell
) -> None:
    overrides = settings(tiny_run, tmp_path, write_comparisons(tmp_path / "comparisons.jsonl"))
    overrides += [f"adapt.method={method}", f"objective.preference.method={loss}"]
    if method == "lora":
        overrides[4] = "optimizer.learning_rate=0.03"
    done = t5x_lite("train", CONFIG, *overrides)
    assert done.returncode == 0, done.stderr
    first, last = lines(tmp_path / "run")
    assert last["eval/preference/accuracy"] == 1
    assert last["eval/preference/reward_margin"] > first["eval/preference/reward_margin"]
    assert last["loss"] < first["loss"]

    # Without its last checkpoint the run does the same steps again, with the reference it began with.
    checkpoints = tmp_path / "run/checkpoints"
    (checkpoints / "10").rename(tmp_path / "10")
    resumed = t5x_lite("train", CONFIG, *overrides)
    assert resumed.returncode == 0, resumed.stderr
    assert "resumed from step 5" in resumed.stderr
    again = lines(tmp_path / "run")[-1]
    assert again["loss"] == last["loss"]
    assert again["eval/preference/reward_margin"] == last["eval/preference/reward_margin"]

    answer = t5x_lite("generate", tmp_path / "run", "--prompt", "99 ", "--temperature", 0, "--tokens", 2)
    assert answer.returncode == 0, answer.stderr
    exported = t5x_lite("export", "hf", tmp_path / "run", tmp_path / "hf")
    assert exported.returncode == 0, exported.stderr


@pytest.mark.slow
@pytest.mark.parametrize(
    ("record", "message"),
    [
        ({"prompt": "a", "chosen": "b"}, "no column 'rejected' (found prompt, chosen)"),
        ({"prompt": "a", "chosen": "b", "rejected": "b"}, "`chosen` and `rejected` are equal"),
        ({"prompt": "a", "chosen": "", "rejected": "b"}, "`chosen` is empty, so that the comparison has no winner"),
    ],
)
def test_bad_comparisons_are_refused_before_training(
    record: dict[str, str], message: str, tiny_run: Path, tmp_path: Path, t5x_lite: Shell
) -> None:
    comparisons = write_comparisons(tmp_path / "comparisons.jsonl")
    with comparisons.open("a") as file:
        file.write(json.dumps(record) + "\n")
    done = t5x_lite("train", CONFIG, *settings(tiny_run, tmp_path, comparisons))
    assert done.returncode == 2
    assert "comparisons.jsonl:17: task preference" in done.stderr
    assert message in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert not (tmp_path / "run").exists()


def adapted(tmp_path: Path, *overrides: str) -> configuration.RunConfig:
    (tmp_path / "config.yaml").write_text(configuration.dump(configuration.load("llama/7b")))
    return configuration.load(CONFIG, [f"adapt.from={tmp_path}", *overrides])


def test_losses_with_a_reference_need_a_method_that_keeps_it(tmp_path: Path) -> None:
    for method in ("full", "prompt"):
        with pytest.raises(UserError, match="compares the model with the one that it adapts"):
            adapted(tmp_path, f"adapt.method={method}")
        adapted(tmp_path, f"adapt.method={method}", "objective.preference.method=orpo")
    for method in ("lora", "ia3", "pfeiffer", "reference"):
        config = adapted(tmp_path, f"adapt.method={method}")
        assert config.model.head is None
        assert config.objective is not None
        assert config.objective.name == "preference"
