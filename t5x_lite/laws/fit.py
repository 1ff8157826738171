"""Fitting a parametric law to points, with a bootstrap."""

from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Float

from t5x_lite.laws.estimates import Estimate, estimate_each
from t5x_lite.laws.parametric import Law
from t5x_lite.laws.points import Points

HUBER_DELTA = 1e-3
"""Residual at which the Huber loss turns from squares to absolute values (Hoffmann et al. 2022, §3.3)."""
MAX_GUESSES = 100
"""Initial guesses that are optimised: those with the lowest objective."""
TOLERANCES = {"maxiter": 1000, "ftol": 1e-12, "gtol": 1e-9}
"""Iterations of L-BFGS, the relative decrease of the value and the gradient's largest component that end it."""


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
    from threadpoolctl import threadpool_limits  # as `scipy.optimize` below

    count = len(points)
    guesses = law.initial_guesses()
    equal_weights = np.ones(count)
    first_values, _ = _huber_losses(law, points, equal_weights, guesses)
    lowest_first = np.argsort(first_values)
    rng = np.random.default_rng(seed)
    multiplicities = rng.multinomial(count, np.full(count, 1 / count), draws).astype(float)
    with threadpool_limits(1, user_api="blas"):
        theta, value = _minimise(law, points, equal_weights, guesses[lowest_first[:MAX_GUESSES]])
        bootstrap = np.empty((draws, len(theta)))
        for draw, weights in enumerate(multiplicities):
            bootstrap[draw], _ = _minimise(law, points, weights, theta[None])
    return Fit(law, theta, bootstrap, value * HUBER_DELTA, points)


def _minimise(
    law: Law, points: Points, weights: Float[np.ndarray, " n"], starts: Float[np.ndarray, "starts unknowns"]
) -> tuple[Float[np.ndarray, " unknowns"], float]:
    """Return the lowest minimum that L-BFGS finds from some starting points, and its value."""
    from scipy.optimize import minimize  # This import takes a second, for which a run's first step should not wait.

    def value_and_gradient(theta: Float[np.ndarray, " unknowns"]) -> tuple[float, Float[np.ndarray, " unknowns"]]:
        values, gradients = _huber_losses(law, points, weights, theta[None])
        return values[0], gradients[0]

    results = [minimize(value_and_gradient, start, jac=True, method="L-BFGS-B", options=TOLERANCES) for start in starts]
    lowest = results[np.nanargmin([result.fun for result in results])]
    return lowest.x, float(lowest.fun)


def _huber_losses(
    law: Law, points: Points, weights: Float[np.ndarray, " n"], theta: Float[np.ndarray, "rows unknowns"]
) -> tuple[Float[np.ndarray, " rows"], Float[np.ndarray, "rows unknowns"]]:
    """Return the weighted sum of Huber losses, divided by `HUBER_DELTA`, and its gradient, for each row of theta."""
    with np.errstate(all="ignore"):
        predicted, slopes = law.log_loss(theta, points.log_inputs())
        residuals = predicted - np.log(points.loss)
        distance = np.abs(residuals)
        quadratic = 0.5 * residuals**2 / HUBER_DELTA
        linear = distance - 0.5 * HUBER_DELTA
        huber = np.where(distance <= HUBER_DELTA, quadratic, linear)
        total = (weights * huber).sum(-1)
        values = np.where(np.isfinite(total), total, np.inf)
        huber_slopes = np.clip(residuals / HUBER_DELTA, -1, 1)
        gradients = np.einsum("prn,rn->rp", slopes, weights * huber_slopes)
    return values, gradients
