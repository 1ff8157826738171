"""The forecast of the final loss, in training."""

import jax
import numpy as np
from jaxtyping import Float

from t5x_lite.evaluate.curves import read_metrics
from t5x_lite.evaluate.evaluation_model import EvaluationModel
from t5x_lite.evaluate.evaluators.evaluator import Evaluation
from t5x_lite.laws.forecast import forecast_loss


class Forecast:
    """Forecasts the training loss of the last step, from the metrics so far. The first process does.

    Args:
        learning_rates: the learning rate of every step of the run.
    """

    def __init__(self, learning_rates: Float[np.ndarray, "steps"]) -> None:
        self._learning_rates = learning_rates

    def run(self, model: EvaluationModel) -> Evaluation:
        """Return `predicted/…`; see `laws.forecast.forecast_loss`. Empty while too little is known."""
        if jax.process_index() > 0:
            return Evaluation({})
        records = read_metrics(model.run.folder, empty=True)
        forecast = forecast_loss(records, self._learning_rates)
        if not forecast:
            return Evaluation({})
        low = forecast["predicted/low"]
        high = forecast["predicted/high"]
        return Evaluation(forecast, status=f"ends at {forecast['predicted/loss']:.3f} ({low:.3f} to {high:.3f})")
