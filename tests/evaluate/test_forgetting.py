"""`report --before`: scores of an adapted run before and after, against `eval` of the runs themselves."""

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

import t5x_lite
from t5x_lite.cli import main
from t5x_lite.evaluate import forgetting
from t5x_lite.trees import flatten_names, unflatten_names
from tests.conftest import lines, write_task


@pytest.fixture(scope="module")
def tuned_run(tmp_path_factory: pytest.TempPathFactory, tiny_config: Path, tiny_run: Path) -> Path:
    """A run that adapts `tiny_run` to backward text by LoRA."""
    folder = tmp_path_factory.mktemp("forgetting")
    text = "vain in black opal quartz wizards seven mix while dog lazy over jumps fox"
    words = text.split()
    for number in range(42):
        shift = number % len(words)
        sentence = " ".join(words[shift:] + words[:shift])
        (folder / f"{number}.txt").write_text(f"{sentence} " * (3 + number // len(words)))
    overrides = [
        f"run_dir={folder / 'tuned'}",
        f"adapt.from={tiny_run}",
        "adapt.method=lora",
        f"data.files={folder / '*.txt'}",
        "optimizer.learning_rate=0.1",
    ]
    assert main(["train", str(tiny_config), *overrides]) == 0
    return folder / "tuned"


def test_before_and_after_are_the_scores_of_both_models_on_both_texts(
    tuned_run: Path, tiny_run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["report", str(tuned_run), "--before", "--to", str(tuned_run / "report.png")]) == 0
    table = capsys.readouterr().out
    scores = {}
    for score in json.loads((tuned_run / "before_after.json").read_text()):
        scores[score["evaluation"], score["metric"]] = score
    old_text = scores["adapted run", "eval/loss"]
    new_text = scores["run", "eval/loss"]
    assert old_text["before"] == pytest.approx(lines(tiny_run)[-1]["eval/loss"], abs=1e-6)
    assert new_text["after"] == pytest.approx(lines(tuned_run)[-1]["eval/loss"], abs=1e-6)
    assert abs(old_text["after"] - old_text["before"]) > 1e-3
    perplexity = scores["adapted run", "eval/perplexity"]
    assert perplexity["after"] == pytest.approx(np.exp(old_text["after"]), rel=1e-5)
    change = old_text["after"] - old_text["before"]
    numbers = f"{old_text['before']:.4f} | {old_text['after']:.4f} | {change:+.4f}"
    assert f"| tuned | adapted run | `eval/loss` | {numbers} |" in table
    # The merged weights are a plain model of the old run, whose loss on the old text must be the same.
    plain = t5x_lite.load(tiny_run)
    tuned = t5x_lite.load(tuned_run)
    merged = tuned.config.method.merged_weights(flatten_names(tuned.params))
    assert merged is not None
    expected = type(plain)(plain.run, plain.step, unflatten_names(merged), plain.mesh).evaluate()["loss"]
    assert old_text["after"] == pytest.approx(expected, abs=1e-4)


def test_evaluations_that_the_adapted_model_has_no_outputs_for_are_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A classifier has no scores of tokens, which the masked language model that it adapts is evaluated by."""
    before = SimpleNamespace(evaluate=lambda: {"accuracy": 0.5})
    config = SimpleNamespace(adapt=SimpleNamespace(source="runs/bert"), model=SimpleNamespace(outputs=()))
    after = SimpleNamespace(config=config, before_adaptation=lambda: before, evaluate=lambda: {"accuracy": 0.75})
    source = SimpleNamespace(config=SimpleNamespace(model=SimpleNamespace(outputs=("tokens",)), objective="masked"))
    monkeypatch.setattr(forgetting, "load", lambda folder: after)
    monkeypatch.setattr(forgetting, "open_run", lambda folder: source)
    scores = list(forgetting.compare_run(tmp_path / "sst2"))
    assert scores == [forgetting.ComparedScore("sst2", "run", "eval/accuracy", 0.5, 0.75)]
    assert "the evaluations of runs/bert are left out: they need the outputs tokens" in caplog.text


def test_a_run_that_adapts_none_is_refused(tiny_run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["report", str(tiny_run), "--before"]) == 2
    assert "adapts no other run (its config has no `adapt`)" in capsys.readouterr().err


@pytest.mark.parametrize("method", ["prompt", "prefix"])
def test_soft_tokens_forget_nothing(
    method: str, tmp_path: Path, tiny_config: Path, tiny_run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """They come before the texts of a task, whose weights are those of the adapted run."""
    write_task(tmp_path / "task.yaml")
    (tmp_path / "train.jsonl").write_text("".join(f'{{"text": "{n}", "label": {n % 2}}}\n' for n in range(8)))
    words = [f"run_dir={tmp_path}/run", f"adapt.from={tiny_run}", f"adapt.method={{{method}: {{length: 3}}}}"]
    words += [
        f"tasks={tmp_path}/task.yaml",
        "task_form=text",
        "train.steps=2",
        "eval.every_steps=2",
        "train.seq_len=32",
    ]
    words += [f"data.{key}={tmp_path}/train.jsonl" for key in ("files", "validation_files")]
    assert main(["train", str(tiny_config), *words]) == 0
    assert main(["report", f"{tmp_path}/run", "--before", "--to", f"{tmp_path}/report.png"]) == 0
    scores = json.loads((tmp_path / "run/before_after.json").read_text())
    (loss,) = [score for score in scores if score["evaluation"] == "adapted run" and score["metric"] == "eval/loss"]
    assert loss["before"] == loss["after"] == pytest.approx(lines(tiny_run)[-1]["eval/loss"], abs=1e-6)
    # What the run scores and generates is read after them: a text without them has another probability.
    model = t5x_lite.load(f"{tmp_path}/run")
    base = t5x_lite.load(tiny_run)
    assert model.score("the quick brown fox") != pytest.approx(base.score("the quick brown fox"), abs=1e-3)
