"""The metrics of each step: read one step late, so that the device never waits for the host, written, and judged."""

import math
import time
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from typing import cast

import jax
import numpy as np
from jaxtyping import Array

from t5x_lite.data.stages import stage_number, tokens_until
from t5x_lite.errors import Diverged
from t5x_lite.train.config import TrainConfig
from t5x_lite.train.display import Display
from t5x_lite.train.goodput import Goodput
from t5x_lite.train.learning_rates import LearningRates
from t5x_lite.train.metrics import MetricsWriter, MetricValue
from t5x_lite.train.step_costs import StepCosts

RUNNING_MEAN_DECAY = 0.98
"""Decay per step of the running mean of the loss, against which a spike is measured."""
RUNNING_MEAN_STEPS = 50
"""Steps before the running mean is trusted."""
SPEED_STEPS = 10
"""Steps over which the speed is averaged, or `train.log_every_steps` if these are more.

A single step says little: after a pause of the host, those that the device has computed meanwhile seem to take no time.
"""


class LossSpike(Exception):
    """The loss rose above `train.spike_factor` times its running mean."""


@dataclass
class RunningLoss:
    """The running mean of the loss and the number of steps in it.

    Checkpoints hold it, so that a resumed run judges its losses alike.
    """

    loss: float = 0.0
    steps: int = 0

    def add(self, loss: float) -> None:
        """Add the loss of a step."""
        decay = min(RUNNING_MEAN_DECAY, self.steps / (self.steps + 1))
        self.loss = decay * self.loss + (1 - decay) * loss
        self.steps += 1


@dataclass(frozen=True)
class PendingStep:
    """A step that the device computes.

    Attributes:
        step: its number.
        batch: the number of its batch, from 0.
        metrics: its metrics, on the device.
        data_seconds: time that its batch was waited for.
    """

    step: int
    batch: int
    metrics: Mapping[str, Array]
    data_seconds: float


class StepMonitor:
    """Holds the metrics of the newest step until the next one has been started, then writes, shows and judges them.

    Args:
        config: settings of the loop.
        costs: of the steps.
        learning_rates: the learning rate of each step of the run.
        display: shows the steps.
        writer: writes the metrics, in the first process.
        running_loss: the running mean so far.
        goodput: adds up where the time goes.

    Attributes:
        last_step: the newest step that was started.
    """

    def __init__(
        self,
        config: TrainConfig,
        costs: StepCosts,
        learning_rates: LearningRates,
        display: Display,
        writer: MetricsWriter | None,
        running_loss: RunningLoss,
        goodput: Goodput,
    ) -> None:
        self.last_step = 0
        self._config = config
        self._costs = costs
        self._learning_rates = learning_rates
        self._display = display
        self._writer = writer
        self._running_loss = running_loss
        self._goodput = goodput
        self._pending: PendingStep | None = None
        self._finished: tuple[int, dict[str, MetricValue]] | None = None
        self._last_read = 0.0
        # Seconds of the newest steps of a stage, and the part of them in which their batches were waited for.
        self._recent_seconds: deque[tuple[float, float]] = deque(maxlen=max(config.log_every_steps, SPEED_STEPS))
        self._recent_stage = 0
        self._empty_batches = 0

    def add_step(
        self, step: int, batch: int, metrics: Mapping[str, Array], started: float, data_seconds: float
    ) -> None:
        """Register a step that was handed to the device, and report the step before it.

        Args:
            step: its number.
            batch: the number of its batch, from 0, which batches that were passed over after a spike count for.
            metrics: its metrics, on the device.
            started: time at which the loop turned to the step.
            data_seconds: time that its batch was waited for.
        """
        if self._pending is None:
            self._last_read = started
        self.report()
        self._pending = PendingStep(step, batch, metrics, data_seconds)
        self.last_step = step

    def report(self, more_metrics: Mapping[str, float] | None = None) -> None:
        """Write, show and judge the pending step, with metrics that were measured after it.

        Raises:
            Diverged: too many updates in a row were not finite.
            LossSpike: see there.
        """
        self.read()
        if self._finished is None:
            return
        step, metrics = self._finished
        self._finished = None
        metrics.update(more_metrics or {})
        numbers = cast(dict[str, float], metrics)
        self._display.show_step(step, numbers)
        is_logged = step % self._config.log_every_steps == 0 or step == self._config.steps
        if self._writer and (is_logged or more_metrics):
            self._writer.write(step, metrics)
        self._check_loss(step, numbers)

    def read(self) -> None:
        """Wait for the pending step and stop its clock, before something else takes time."""
        if self._pending is None:
            return
        pending = self._pending
        self._pending = None
        metrics = {name: value.tolist() for name, value in jax.device_get(dict(pending.metrics)).items()}
        now = time.perf_counter()
        seconds = now - self._last_read
        self._last_read = now
        self._goodput.seconds["data"] += pending.data_seconds
        self._goodput.seconds["step"] += seconds - pending.data_seconds
        stage = stage_number(self._costs.stages, pending.batch)
        if stage != self._recent_stage:
            self._recent_stage = stage
            self._recent_seconds.clear()
        self._recent_seconds.append((seconds, pending.data_seconds))
        mean_seconds, mean_data_seconds = np.mean(self._recent_seconds, axis=0).tolist()
        metrics["tokens"] = tokens_until(self._costs.stages, pending.step)
        metrics["learning_rate"] = self._learning_rates.newest(pending.step, metrics.get("skipped", 0))
        metrics["tokens_per_second"] = self._costs.stages[stage].batch_tokens / mean_seconds
        metrics["mfu"] = self._costs.flops[stage] / mean_seconds / self._costs.peak_flops
        metrics["data_wait_fraction"] = mean_data_seconds / mean_seconds
        metrics["seconds_per_step"] = mean_seconds
        self._finished = (pending.step, metrics)

    def _check_loss(self, step: int, metrics: Mapping[str, float]) -> None:
        skipped_in_a_row = metrics["skipped_in_a_row"]
        if skipped_in_a_row >= self._config.nonfinite_limit:
            raise Diverged(
                f"step {step}: loss or gradient was not finite for {skipped_in_a_row} steps in a row "
                "(train.nonfinite_limit); lower optimizer.learning_rate, lengthen optimizer.warmup_steps or tighten "
                "optimizer.clip_norm"
            )
        if skipped_in_a_row == 1:
            self._display.print(f"step {step}: loss or gradient not finite, update skipped")
        factor = self._config.spike_factor
        loss = metrics["loss"]
        # Equal rewards make the loss of a policy 0.
        if loss == 0.0 and "reward" not in metrics:
            self._empty_batches += 1
            self._display.print(f"step {step}: the batch has nothing to predict ({self._empty_batches} so far)")
        mean = self._running_loss
        if not math.isfinite(loss):
            return  # the update was skipped, and is no spike
        if factor and mean.steps >= RUNNING_MEAN_STEPS and loss > factor * mean.loss:
            raise LossSpike(f"step {step}: loss {loss:.4f} is above {factor} × its running mean {mean.loss:.4f}")
        mean.add(loss)
