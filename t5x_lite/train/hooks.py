"""Hooks of the train loop: evaluators that run at regular steps."""

from dataclasses import dataclass

from t5x_lite.config import RunConfig
from t5x_lite.evaluate.evaluators.evaluator import RunsOnModel


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


def evaluation_hooks(config: RunConfig) -> list[Hook]:
    """Return the hooks of the evaluators of a run."""
    hooks = []
    for evaluator in config.evaluators:
        hooks.append(Hook(evaluator, evaluator.every_steps or config.eval.every_steps))
    return hooks
