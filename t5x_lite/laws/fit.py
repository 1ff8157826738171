"""Fitting a parametric law to points, with a bootstrap."""

from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Float, Int

from t5x_lite.laws.estimates import Estimate, estimate_each
from t5x_lite.laws.lbfgs import Objective, minimise
from t5x_lite.laws.parametric import Law
from t5x_lite.laws.points import Points

HUBER_DELTA = 1e-3
"""Residual at which the Huber loss turns from squares to absolute values (Hoffmann et al. 2022, §3.3)."""
MAX_GUESSES = 500
"""Initial guesses that are optimised: those with the lowest objective."""


@dataclass(frozen=True)
class NotFitted:
    """The reason why something could not be fitted."""

    reason: str


@dataclass(frozen=True)
class Fit:
    """A law fitted to points.

    `theta` holds the unknowns as the optimizer sees them, `bootstrap` those of every bootstrap sample. `objective` is
    the sum of Huber losses.
    """

    law: Law
    theta: Float[np.ndarray, " unknowns"]
    bootstrap: Float[np.ndarray, "draws unknowns"]
    objective: float
    points: Points = field(repr=False)

    def all_theta(self) -> Float[np.ndarray, "rows unknowns"]:
        """Return `theta` as the first row, and `bootstrap` below it."""
        return np.vstack([self.theta, self.bootstrap])

    def constants(self) -> dict[str, Estimate]:
        """Return each constant of the formula."""
        values = self.law.constants(self.theta[None])[0]
        samples = self.law.constants(self.bootstrap)
        return estimate_each(self.law.symbols, values, samples, len(self.points), len(self.law.symbols))

    def predict_loss(
        self, parameters: Float[np.ndarray, " n"], tokens: Float[np.ndarray, " n"]
    ) -> tuple[Float[np.ndarray, " n"], Float[np.ndarray, "draws n"]]:
        """Return the loss of dense runs, and that by every bootstrap sample."""
        ones = np.ones_like(tokens)
        inputs = np.log([parameters, tokens, ones, ones])
        log_loss, _ = self.law.log_loss(self.theta[None], inputs)
        log_samples, _ = self.law.log_loss(self.bootstrap, inputs)
        return np.exp(log_loss[0]), np.exp(log_samples)

    @property
    def residuals(self) -> Float[np.ndarray, " n"]:
        """Log L of the runs minus log L of the law."""
        log_loss, _ = self.law.log_loss(self.theta[None], self.points.log_inputs())
        return np.log(self.points.loss) - log_loss[0]


def fit_law(law: Law, points: Points, draws: int = 1000, seed: int = 0) -> Fit:
    """Minimise the sum of Huber losses of the residuals of log L, from a grid of initial guesses.

    A bootstrap sample draws as many points as there are, with replacement (Besiroglu et al. 2024, appendix), and is
    fitted from the minimum of all points.

    Args:
        law: the law.
        points: the runs.
        draws: number of bootstrap samples; 0 fits the points alone.
        seed: seed of the bootstrap.
    """
    count = len(points)
    guesses = law.initial_guesses()
    equal_weights = np.broadcast_to(np.ones(count), (len(guesses), count))
    objective = _huber_objective(law, points, equal_weights)
    first_values, _ = objective(guesses, np.arange(len(guesses)))
    lowest_first = np.argsort(first_values)
    theta_of_guesses, values = minimise(objective, guesses[lowest_first[:MAX_GUESSES]])
    theta = theta_of_guesses[np.nanargmin(values)]

    rng = np.random.default_rng(seed)
    multiplicities = rng.multinomial(count, np.full(count, 1 / count), draws).astype(float)
    starts = np.repeat(theta[None], draws, axis=0)
    bootstrap, _ = minimise(_huber_objective(law, points, multiplicities), starts)
    return Fit(law, theta, bootstrap, float(np.nanmin(values)) * HUBER_DELTA, points)


def _huber_objective(law: Law, points: Points, weights: Float[np.ndarray, "problems n"]) -> Objective:
    """Return a function that computes the weighted sum of Huber losses, divided by `HUBER_DELTA`, and its gradient.

    Args:
        law: the law.
        points: the runs.
        weights: the weight of every run in each problem.
    """
    inputs = points.log_inputs()
    log_loss = np.log(points.loss)

    def objective(
        theta: Float[np.ndarray, "rows unknowns"], rows: Int[np.ndarray, " rows"]
    ) -> tuple[Float[np.ndarray, " rows"], Float[np.ndarray, "rows unknowns"]]:
        with np.errstate(all="ignore"):
            predicted, slopes = law.log_loss(theta, inputs)
            residuals = predicted - log_loss
            distance = np.abs(residuals)
            quadratic = 0.5 * residuals**2 / HUBER_DELTA
            linear = distance - 0.5 * HUBER_DELTA
            huber = np.where(distance <= HUBER_DELTA, quadratic, linear)
            row_weights = weights[rows]
            total = (row_weights * huber).sum(-1)
            values = np.where(np.isfinite(total), total, np.inf)
            huber_slopes = np.clip(residuals / HUBER_DELTA, -1, 1)
            gradients = np.einsum("prn,rn->rp", slopes, row_weights * huber_slopes)
        return values, gradients

    return objective
