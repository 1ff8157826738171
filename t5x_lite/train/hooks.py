"""Hooks of the train loop: evaluators that run at regular steps."""

from collections.abc import Sequence
from dataclasses import dataclass

import jax

from t5x_lite.config import RunConfig
from t5x_lite.evaluate.evaluators.evaluator import RunsOnModel
from t5x_lite.train.display import Display
from t5x_lite.train.forecast import Forecast
from t5x_lite.train.goodput import Goodput
from t5x_lite.train.learning_rates import LearningRates
from t5x_lite.train.state import TrainState
from t5x_lite.train.stragglers import Stragglers
from t5x_lite.train.training_model import TrainingModel
from t5x_lite.train.watchdog import Watchdog

MOST_FORECAST_STEPS = 10**7
"""Steps of the longest run whose final loss is forecast, which needs the learning rates of all steps in memory."""


@dataclass(frozen=True, eq=False)
class Hook:
    """An evaluator and the steps after which it runs.

    Attributes:
        evaluator: what runs.
        every_steps: steps between its runs.
        on_last_step: it also runs after the last step of the run, or else never there.
    """

    evaluator: RunsOnModel
    every_steps: int
    on_last_step: bool = True

    def is_due(self, step: int, last_step: int) -> bool:
        """Return whether it runs after a step."""
        if step == last_step:
            return self.on_last_step
        return step % self.every_steps == 0


def hooks_of_run(
    config: RunConfig, goodput: Goodput, stragglers: Stragglers, learning_rates: LearningRates
) -> list[Hook]:
    """Return the evaluators of a run, and what the loop itself reports."""
    hooks = []
    for evaluator in config.evaluators:
        hooks.append(Hook(evaluator, evaluator.every_steps or config.eval.every_steps))
    hooks.append(Hook(goodput, config.eval.every_steps))
    # The law of the forecast is that of one mixture.
    is_alike = len(config.stages) == 1
    if config.adapt is None and is_alike and len(learning_rates) <= MOST_FORECAST_STEPS:
        forecast = Forecast(learning_rates.all())
        hooks.append(Hook(forecast, forecast.every_steps, on_last_step=False))
    if jax.process_count() > 1:
        hooks.append(Hook(stragglers, config.train.health_every_steps))
    return hooks


@dataclass(frozen=True)
class HookRunner:
    """Runs hooks on the weights of a step.

    Attributes:
        model: takes the weights.
        watchdog: is stopped meanwhile.
        goodput: counts the time as `evaluation`.
        display: shows the results.
    """

    model: TrainingModel
    watchdog: Watchdog
    goodput: Goodput
    display: Display

    def run(self, hooks: Sequence[Hook], step: int, state: TrainState) -> dict[str, float]:
        """Run the hooks that are due after a step, and return their metrics."""
        metrics: dict[str, float] = {}
        self.model.update(step, state)
        for hook in hooks:
            # Only the batches of the validation split reset the watchdog: other evaluators may take any time.
            self.watchdog.stop()
            with self.goodput.measure("evaluation"):
                evaluation = hook.evaluator.run(self.model)
            metrics.update(evaluation.metrics)
            self.display.set_status(hook, evaluation.status)
            if evaluation.summary:
                self.display.print(f"step {step}: {evaluation.summary}")
        self.watchdog.reset()
        return metrics
