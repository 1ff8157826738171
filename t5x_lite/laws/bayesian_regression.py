"""Bayesian linear regression with a Gaussian prior and white noise (Bishop 2006, §3.3 and §3.5)."""

import math
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float


@dataclass(frozen=True)
class Posterior:
    """The unknowns after the targets are seen.

    Attributes:
        mean: their means.
        covariance: their covariance.
        log_evidence: log probability of the targets, up to a constant for the same targets and prior.
        residual_variance: mean square of the residuals, by the degrees of freedom that are left if two are used up.
    """

    mean: Float[np.ndarray, " unknowns"]
    covariance: Float[np.ndarray, "unknowns unknowns"]
    log_evidence: float
    residual_variance: float


def regress(
    inputs: Float[np.ndarray, "points unknowns"],
    targets: Float[np.ndarray, " points"],
    prior_mean: Float[np.ndarray, " unknowns"],
    prior_deviation: Float[np.ndarray, " unknowns"],
    noise: float,
) -> Posterior:
    """Return the posterior of the unknowns of `targets = inputs @ unknowns` with noise.

    Args:
        inputs: the factors of the unknowns.
        targets: the sums of the products, with noise.
        prior_mean: mean of each unknown before the targets are seen.
        prior_deviation: their standard deviations; they are independent.
        noise: standard deviation of the noise.
    """
    prior_precision = np.diag(prior_deviation**-2.0)
    precision = prior_precision + inputs.T @ inputs / noise**2
    covariance = np.linalg.inv(precision)
    mean = covariance @ (prior_precision @ prior_mean + inputs.T @ targets / noise**2)
    residuals = targets - inputs @ mean
    squares = float(residuals @ residuals)
    surprise = float((((mean - prior_mean) / prior_deviation) ** 2).sum())
    _, log_determinant = np.linalg.slogdet(precision)
    log_evidence = -0.5 * (squares / noise**2 + surprise + float(log_determinant)) - len(targets) * math.log(noise)
    return Posterior(mean, covariance, log_evidence, squares / (len(targets) - 2))
