"""A forecast of the final training loss of a run in progress, from its losses so far and its learning rates.

The law is L(s) = L0 + A·S1^-α - C·S2 (Tissue et al. 2024, eq. 1). S1 is the sum of the learning rates up to step s. S2
is the sum of a momentum of their decreases: at every step the momentum is multiplied by λ, and the decrease of the
learning rate is added to it. Learning rates are relative to their maximum.
"""

from collections.abc import Mapping, Sequence
from itertools import product
from typing import Any

import numpy as np
from jaxtyping import Float

from t5x_lite.laws.estimates import percentile_interval
from t5x_lite.laws.fit import fit_law
from t5x_lite.laws.parametric import Inputs, Law, LossAndGradient, Theta
from t5x_lite.laws.points import Points

DECAY = 0.999
"""λ, by which the momentum decays at every step (Tissue et al. 2024, §3)."""
NUM_BINS = 60
"""Bins of equally many steps, whose mean losses are fitted."""
MIN_SHARE = 0.1
"""Share of the run, and of the final S2, below which there is no forecast because C is not determined.

The same share of the steps so far is left out of the fit.
"""
MIN_LOSSES = 15
"""Fewest losses that are fitted."""
DRAWS = 100
"""Bootstrap samples."""


class AnnealingLaw(Law):
    """L = L0 + A·S1^-α - C·S2; the inputs are log S1 and log S2, theta is log L0, log A, α, log C."""

    name = "L(S1, S2)"
    formula = "L0 + A/S1^α - C·S2"
    symbols = ("log L0", "log A", "α", "log C")

    def initial_guesses(self) -> Float[np.ndarray, "guesses unknowns"]:
        grid = product((-1, 0, 1), (0, 2, 4), (0.2, 0.5, 1), (-12, -9, -6))
        return np.array(list(grid), float)

    def log_loss(self, theta: Theta, inputs: Inputs) -> LossAndGradient:
        log_floor, log_a, alpha, log_c = theta.T[..., None]
        floor = np.exp(log_floor)
        power_term = np.exp(log_a - alpha * inputs[0])
        annealing_term = np.exp(log_c + inputs[1])
        loss = np.maximum(floor + power_term - annealing_term, 1e-6)
        gradient = [floor + 0 * power_term, power_term, -power_term * inputs[0], -annealing_term]
        return np.log(loss), np.stack(gradient) / loss


def annealing_sums(
    learning_rates: Float[np.ndarray, " steps"],
) -> tuple[Float[np.ndarray, " steps"], Float[np.ndarray, " steps"]]:
    """Return S1 and S2 after each step."""
    from scipy.signal import lfilter  # This import takes a second, for which a run's first step should not wait.

    relative_rates = learning_rates / learning_rates.max()
    decreases = np.maximum(-np.diff(relative_rates, prepend=relative_rates[0]), 0)
    momentum = lfilter([1.0], [1.0, -DECAY], decreases)
    return np.cumsum(relative_rates), np.cumsum(momentum) + 1e-9


def forecast_loss(
    records: Sequence[Mapping[str, Any]], learning_rates: Float[np.ndarray, " steps"]
) -> dict[str, float]:
    """Forecast the training loss of the last step.

    Args:
        records: the run's metrics so far, of which `step`, `loss` and `tokens` are read.
        learning_rates: the learning rate of every step of the whole run.

    Returns:
        `predicted/loss` with its confidence interval `predicted/low` to `predicted/high`, and `predicted/tokens`, the
        tokens at the last step. Empty until a tenth of the run and of the final S2 is over, and there are some losses
        after the warm-up.
    """
    losses = [record for record in records if record.get("loss") is not None]
    if not losses:
        return {}
    step = np.array([record["step"] for record in losses], float)
    loss = np.array([record["loss"] for record in losses], float)
    sum_1, sum_2 = annealing_sums(learning_rates)
    last_step = int(step[-1])
    warmup_steps = int(np.argmax(learning_rates)) + 1
    is_fitted = step > max(warmup_steps, MIN_SHARE * last_step)
    has_little_annealing = sum_2[-1] > 1e-6 and sum_2[last_step - 1] < MIN_SHARE * sum_2[-1]
    if is_fitted.sum() < MIN_LOSSES or last_step < MIN_SHARE * len(learning_rates) or has_little_annealing:
        return {}

    points = _bin_losses(step[is_fitted], loss[is_fitted], sum_1, sum_2)
    fit = fit_law(AnnealingLaw(), points, DRAWS)
    prediction, samples = fit.predict_loss(sum_1[-1:], sum_2[-1:])
    low, high = percentile_interval(samples[:, 0], len(points), len(fit.theta))
    tokens = float(losses[-1]["tokens"]) / last_step * len(learning_rates)
    return {
        "predicted/loss": float(prediction[0]),
        "predicted/low": low,
        "predicted/high": high,
        "predicted/tokens": tokens,
    }


def _bin_losses(
    step: Float[np.ndarray, " losses"],
    loss: Float[np.ndarray, " losses"],
    sum_1: Float[np.ndarray, " steps"],
    sum_2: Float[np.ndarray, " steps"],
) -> Points:
    """Return the mean loss of each bin as a point whose N and D are S1 and S2 at the middle of the bin."""
    middle_indices = []
    mean_losses = []
    for indices in np.array_split(np.arange(len(step)), NUM_BINS):
        if len(indices) > 0:
            middle_indices.append(round(step[indices].mean()) - 1)
            mean_losses.append(loss[indices].mean())
    ones = np.ones(len(mean_losses))
    return Points(
        parameters=sum_1[middle_indices],
        tokens=sum_2[middle_indices],
        flops=ones,
        loss=np.array(mean_losses),
        budget=np.zeros(len(mean_losses)),
        experts=ones,
        names=("",) * len(mean_losses),
    )
