"""The model of a run in training, as evaluators take it."""

from jax.sharding import Mesh
from jaxtyping import Array, PyTree

from t5x_lite.api import Model
from t5x_lite.data.training_data import TrainingData
from t5x_lite.models.loss_terms import Batch, LossTerms
from t5x_lite.run_dir import Run
from t5x_lite.train.state import TrainState
from t5x_lite.train.steps import Steps
from t5x_lite.train.watchdog import Watchdog


class TrainingModel(Model):
    """A model whose weights change from one evaluation to the next, while its compiled functions stay.

    Args:
        run: the run.
        data: its opened data.
        mesh: its devices.
        steps: its compiled steps.
        watchdog: is reset with every batch of the validation split.
    """

    def __init__(self, run: Run, data: TrainingData, mesh: Mesh, steps: Steps, watchdog: Watchdog) -> None:
        super().__init__(run, 0, {}, mesh)
        self.data = data
        self._steps = steps
        self._watchdog = watchdog
        self._state = steps.state

    def update(self, step: int, state: TrainState) -> None:
        """Take the weights of a step."""
        self.step = step
        self._state = state
        self._params = None

    def release(self) -> None:
        """Forget the weights, so that their memory is free for a restored state."""
        self.update(0, self._steps.state)

    @property
    def params(self) -> PyTree[Array]:
        """The weights, a nested dict of arrays."""
        if self._params is None:
            self._params = self._steps.join(self._state.params, self._state.frozen)
        return self._params

    def loss_terms(self, batch: Batch) -> LossTerms:
        """Return the terms of the loss of a batch, as in evaluation."""
        self._watchdog.reset()
        return self._steps.evaluate((self._state.params, self._state.frozen), batch)
