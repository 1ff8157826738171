"""The forecast of the loss at the end of the run, in training."""

import time

import jax
import numpy as np
from jaxtyping import Float

from t5x_lite.evaluate.evaluation_model import EvaluationModel
from t5x_lite.evaluate.evaluators.evaluator import Evaluation
from t5x_lite.laws.forecast import forecast_loss
from t5x_lite.metrics_file import read_metrics

FORECASTS_PER_RUN = 20
"""Times at which the end is forecast, after equal numbers of steps."""
MAX_SHARE_OF_TIME = 0.01
"""Share of the time that forecasts may take; those of a run with very fast steps are left out until then."""


class Forecast:
    """Forecasts the mean training loss of the last steps, from the metrics so far. The first process does.

    Args:
        learning_rates: the learning rate of every step of the run.
    """

    def __init__(self, learning_rates: Float[np.ndarray, "steps"]) -> None:
        self._learning_rates = learning_rates
        self._status = ""
        self._next_time = 0.0

    @property
    def every_steps(self) -> int:
        """Return the number of steps from one forecast to the next."""
        return max(len(self._learning_rates) // FORECASTS_PER_RUN, 1)

    def run(self, model: EvaluationModel) -> Evaluation:
        """Return `predicted/…`; see `laws.forecast.forecast_loss`. Empty while there is no useful forecast."""
        started = time.perf_counter()
        if jax.process_index() > 0 or started < self._next_time:
            return Evaluation({}, status=self._status)
        records = read_metrics(model.run.folder, empty=True)
        forecast = forecast_loss(records, self._learning_rates)
        self._status = _describe(forecast)
        ended = time.perf_counter()
        self._next_time = ended + (ended - started) / MAX_SHARE_OF_TIME
        return Evaluation(forecast, status=self._status)


def _describe(forecast: dict[str, float]) -> str:
    if not forecast:
        return ""
    interval = f"{forecast['predicted/low']:.2f} to {forecast['predicted/high']:.2f}"
    return f"forecast of the last tenth's mean training loss: {forecast['predicted/loss']:.2f} ({interval})"
