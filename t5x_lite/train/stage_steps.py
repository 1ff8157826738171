"""The batches of a run, each with the compiled train step for its shape."""

import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import TypeAlias

from jaxtyping import Array

from t5x_lite.data.pipeline import training_batches
from t5x_lite.data.stages import Stage, stage_number
from t5x_lite.data.training_data import ExampleSequence
from t5x_lite.models.loss_terms import Batch
from t5x_lite.parallel import mesh as meshes
from t5x_lite.parallel.compiler_options import compile_lowered
from t5x_lite.train.rollout_step import RolloutStep
from t5x_lite.train.state import TrainState
from t5x_lite.train.steps import Steps, make_steps
from t5x_lite.train.training_model import TrainingModel

BATCHES_AHEAD = 2
"""Batches that are sent to the devices before the step that takes them."""

CompiledStep: TypeAlias = Callable[[TrainState, Batch], tuple[TrainState, dict[str, Array]]]
"""Maps a state, which it consumes, and a batch of one shape to the next state and the metrics of the step."""


class StageSteps:
    """The train step and the batches of each stage of a run.

    Args:
        model: the run's model on its devices.
        examples: training examples in the order of each stage.
        steps: the steps for batches of the run's own shape.
    """

    def __init__(self, model: TrainingModel, examples: Sequence[ExampleSequence], steps: Steps) -> None:
        self.stages = model.run.config.stages
        self._model = model
        self._run = model.run
        self._examples = examples
        self._mesh = model.mesh
        self._steps = steps
        self._compiled: dict[tuple[int, int], CompiledStep] = {}

    def compile(self, first: int) -> float:
        """Compile the train step for each shape of a batch from batch `first` on; return the seconds that it took."""
        started = time.perf_counter()
        for number in range(stage_number(self.stages, first), len(self.stages)):
            stage = self.stages[number]
            if stage.shape not in self._compiled:
                self._compiled[stage.shape] = self._compile_stage(stage, self._examples[number])
        return time.perf_counter() - started

    def _compile_stage(self, stage: Stage, examples: ExampleSequence) -> CompiledStep:
        config = self._run.config
        first_example = examples[stage.first_step * stage.batch_size]
        batch = meshes.batch_shapes(self._mesh, first_example, stage.batch_size)
        steps = self._steps
        if stage.shape != (config.train.batch_size, config.train.seq_len):
            steps = make_steps(config.of_stage(stage), self._run.spec, self._mesh)
        if config.policy_objective is not None:
            return RolloutStep(self._run, self._mesh, steps, self._model.rewards, batch)
        return compile_lowered(steps.train.lower(self._steps.state, batch))

    def batches(self, first: int, end: int) -> Iterator[tuple[CompiledStep, Batch]]:
        """Yield global batches `[first, end)`, of which some are on their way to the devices already.

        Each comes with the step that trains on it, which `compile` has compiled.
        """
        sent: deque[tuple[CompiledStep, Batch]] = deque()
        for number in range(stage_number(self.stages, first), len(self.stages)):
            stage = self.stages[number]
            stage_end = end
            if number + 1 < len(self.stages):
                stage_end = min(end, self.stages[number + 1].first_step)
            local_rows = meshes.local_rows(self._mesh, stage.batch_size)
            data = self._run.config.data
            stage_first = max(first, stage.first_step)
            if stage_first >= stage_end:
                break
            for local_batch in training_batches(
                self._examples[number], stage.batch_size, local_rows, stage_first, stage_end, data
            ):
                batch = meshes.to_global(self._mesh, local_batch, stage.batch_size)
                sent.append((self._compiled[stage.shape], batch))
                if len(sent) > BATCHES_AHEAD:
                    yield sent.popleft()
        yield from sent
