"""Which losses are spikes."""

from pathlib import Path

import jax.numpy as jnp
import pytest

from t5x_lite import config as configuration
from t5x_lite.train.display import Display
from t5x_lite.train.goodput import Goodput
from t5x_lite.train.learning_rates import LearningRates
from t5x_lite.train.monitor import LossSpike, RunningLoss, StepCosts, StepMonitor
from t5x_lite.train.optimization import make_schedule


def test_a_loss_that_is_not_finite_is_no_spike(tiny_config: Path, tmp_path: Path) -> None:
    """Its update was skipped, so that there is nothing to go back for. 4 is 2 × the running mean, and 4.1 is above."""
    config = configuration.load(tiny_config, ["train.spike_factor=2.0"])
    rates = LearningRates(make_schedule(config.optimizer, config.train.steps), config.train.steps)
    running = RunningLoss(loss=2.0, steps=100)
    display = Display(config.train.steps, enabled=False)
    goodput = Goodput(tmp_path, writes=False)
    monitor = StepMonitor(config.train, StepCosts(config.stages, [1.0], 1.0), rates, display, None, running, goodput)

    def report(step: int, loss: float, skipped: int) -> None:
        metrics = {"loss": jnp.array(loss), "skipped_in_a_row": jnp.array(skipped)}
        monitor.add_step(step, metrics, started=0.0, data_seconds=0.0)
        monitor.report()

    for step, loss in enumerate((float("nan"), float("inf")), start=1):
        report(step, loss, skipped=step)
    assert running == RunningLoss(loss=2.0, steps=100)
    report(3, 4.0, skipped=0)
    assert running.steps == 101
    with pytest.raises(LossSpike, match="step 4: loss"):
        report(4, 4.1, skipped=0)
