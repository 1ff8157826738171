"""The forecast in training: the words that are shown, and how often it is made."""

import json
import re
import time
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import numpy as np
import pytest

from t5x_lite.evaluate.evaluation_model import EvaluationModel
from t5x_lite.train.display import Display
from t5x_lite.train.forecast import Forecast
from tests.conftest import lines
from tests.train.whole_runs import train

STEPS = 1000


def model_of_run(folder: Path, last_step: int) -> EvaluationModel:
    """A model whose run has the metrics of a loss that falls as the law says: L = 2 + 4·s^-0.5 at a constant rate."""
    lines = []
    for step in range(1, last_step + 1):
        lines.append(json.dumps({"step": step, "loss": 2 + 4 * step**-0.5, "tokens": 8 * step}) + "\n")
    (folder / "metrics.jsonl").write_text("".join(lines))
    return cast(EvaluationModel, SimpleNamespace(run=SimpleNamespace(folder=folder)))


def test_the_words_say_which_loss_is_forecast(tmp_path: Path) -> None:
    forecast = Forecast(np.ones(STEPS))
    assert forecast.every_steps == 50
    evaluation = forecast.run(model_of_run(tmp_path, 800))
    assert set(evaluation.metrics) == {"predicted/loss", "predicted/low", "predicted/high", "predicted/tokens"}
    # The mean of 2 + 4/√s over the last tenth is 2.1298.
    assert evaluation.metrics["predicted/loss"] == pytest.approx(2.1298, abs=0.01)
    words = r"forecast of the last tenth's mean training loss: 2\.13 \(2\.\d\d to 2\.\d\d\)"
    assert re.fullmatch(words, evaluation.status)


def test_nothing_is_said_while_there_is_no_forecast(tmp_path: Path) -> None:
    evaluation = Forecast(np.ones(STEPS)).run(model_of_run(tmp_path, 100))
    assert evaluation.metrics == {}
    assert evaluation.status == ""


def test_words_vanish_when_there_is_no_forecast_any_more(capfd: pytest.CaptureFixture[str]) -> None:
    metrics = {"loss": 2.5, "tokens_per_second": 10.0, "mfu": 0.5}
    with Display(20) as display:
        for step, status in ((1, ""), (2, "forecast"), (3, "")):
            display.set_status("source", status)
            display.show_step(step, metrics)
    first, second, third = [line for line in capfd.readouterr().err.splitlines() if line.startswith("step ")]
    assert first.endswith("MFU 50.0%")  # the time before it is that of compilation
    assert second.endswith(" left · forecast")
    assert third.endswith(" left")


def test_forecasts_take_a_hundredth_of_the_time_at_most(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first forecast takes two seconds. The next one waits for 200 more, in which its words stay."""
    times = iter([0.0, 2.0, 201.0, 203.0, 204.0])
    monkeypatch.setattr(time, "perf_counter", lambda: next(times))
    forecast = Forecast(np.ones(STEPS))
    model = model_of_run(tmp_path, 800)
    first = forecast.run(model)
    assert first.metrics
    too_early = forecast.run(model)
    assert too_early.metrics == {}
    assert too_early.status == first.status
    assert forecast.run(model).metrics


@pytest.mark.slow
def test_a_run_writes_and_shows_its_forecasts(
    tiny_config: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    run_dir = tmp_path / "run"
    settings = ("train.steps=100", "optimizer.learning_rate=0.0001", "checkpoint.every_steps=100")
    assert train(tiny_config, run_dir, *settings) == 0
    steps = [record["step"] for record in lines(run_dir) if "predicted/loss" in record]
    assert steps
    assert all(step % 5 == 0 for step in steps)
    assert 30 <= steps[0] <= steps[-1] <= 95
    assert "forecast of the last tenth's mean training loss: " in capfd.readouterr().err
