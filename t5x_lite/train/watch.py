"""Watch: reads each step's metrics one step late, so that the device never waits for the host, and judges them."""

import math
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jax

from t5x_lite.errors import Diverged
from t5x_lite.train.config import TrainConfig
from t5x_lite.train.goodput import Goodput
from t5x_lite.train.metrics import Display, MetricsWriter

RUNNING_DECAY = 0.98
"""Decay of the running mean of the loss that a spike is measured against."""
RUNNING_STEPS = 50
"""Steps before the running mean is trusted."""


class LossSpike(Exception):
    """The loss jumped above `train.spike_factor` of its running mean."""


@dataclass(frozen=True)
class StepCost:
    """What turns seconds into tokens per second and MFU: per step, and the peak of all devices together."""

    tokens: int
    flops: float
    peak: float


@dataclass
class RunningLoss:
    """The running mean of the loss and the steps that went into it; saved, so that a resumed run judges alike."""

    loss: float = 0.0
    steps: int = 0

    def add(self, loss: float) -> None:
        keep = min(RUNNING_DECAY, self.steps / (self.steps + 1))
        self.loss, self.steps = keep * self.loss + (1 - keep) * loss, self.steps + 1


@dataclass
class StepMonitor:
    """Holds the newest step's metrics until the next step is under way, then writes, shows and judges them."""

    config: TrainConfig
    rates: StepCost
    learning_rates: Any
    display: Display
    writer: MetricsWriter | None
    running: RunningLoss
    goodput: Goodput
    last_step: int = 0
    _pending: tuple[int, Mapping[str, jax.Array], float] | None = None
    _ready: tuple[int, dict[str, float]] | None = None
    _mark: float = 0.0

    def begun(self, step: int, metrics: Mapping[str, jax.Array], started: float, waited: float) -> None:
        """A step was handed to the device; `started` is when its turn began, `waited` seconds went to its batch."""
        if self._pending is None:
            self._mark = started
        else:
            self.settle()
        self._pending = (step, metrics, waited)
        self.last_step = step

    def settle(self, more: Mapping[str, float] | None = None) -> None:
        """Write the pending step, with what was measured after it.

        Raises:
            Diverged: too many updates in a row were not finite.
            Spike: see the class.
        """
        self.read()
        if self._ready is None:
            return
        (step, values), self._ready = self._ready, None
        values |= more or {}
        self.display.step(step, values)
        if self.writer and (more or step % self.config.log_every_steps == 0 or step == self.config.steps):
            self.writer.write(step, values)
        self._judge(step, values)

    def read(self) -> None:
        """Wait for the pending step and take its time, before an evaluation or a save makes the clock run on."""
        if self._pending is None:
            return
        (step, metrics, waited), self._pending = self._pending, None
        values = {name: value.tolist() for name, value in jax.device_get(dict(metrics)).items()}
        now = time.perf_counter()
        seconds, self._mark = now - self._mark, now
        self.goodput.seconds["data"] += waited
        self.goodput.seconds["step"] += seconds - waited
        values |= {
            "tokens": step * self.rates.tokens,
            "learning_rate": float(self.learning_rates[step - 1]),
            "tokens_per_second": self.rates.tokens / seconds,
            "mfu": self.rates.flops / seconds / self.rates.peak,
            "data_wait_fraction": waited / seconds,
            "seconds_per_step": seconds,
        }
        self._ready = (step, values)

    def _judge(self, step: int, values: Mapping[str, float]) -> None:
        in_a_row = values["skipped_in_a_row"]
        if in_a_row >= self.config.nonfinite_limit:
            raise Diverged(
                f"step {step}: loss or gradient was not finite for {in_a_row} steps in a row (train.nonfinite_limit); "
                "lower optimizer.learning_rate, lengthen optimizer.warmup_steps or tighten optimizer.clip_norm"
            )
        if in_a_row == 1:
            self.display.say(f"step {step}: loss or gradient not finite, update skipped")
        factor, loss = self.config.spike_factor, values["loss"]
        if factor and self.running.steps >= RUNNING_STEPS and not loss <= factor * self.running.loss:
            raise LossSpike(
                f"step {step}: loss {loss:.4f} is above {factor} × its running mean {self.running.loss:.4f}"
            )
        if math.isfinite(loss):
            self.running.add(loss)
