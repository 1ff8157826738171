"""The posterior of a linear model, against its definition as an integral and as least squares."""

import numpy as np
import pytest
from scipy.stats import multivariate_normal

from t5x_lite.laws.bayesian_regression import regress

RNG = np.random.default_rng(0)
INPUTS = RNG.standard_normal((12, 3))
TARGETS = INPUTS @ [1.0, -2.0, 0.5] + 0.3 * RNG.standard_normal(12)
PRIOR_MEAN = np.array([0.5, 0.0, 1.0])
PRIOR_DEVIATION = np.array([2.0, 0.7, 0.1])


def test_the_mean_is_that_of_least_squares_with_the_prior_as_further_points() -> None:
    posterior = regress(INPUTS, TARGETS, PRIOR_MEAN, PRIOR_DEVIATION, 0.3)
    rows = np.vstack([INPUTS / 0.3, np.diag(1 / PRIOR_DEVIATION)])
    values = np.concatenate([TARGETS / 0.3, PRIOR_MEAN / PRIOR_DEVIATION])
    solution, *_ = np.linalg.lstsq(rows, values, rcond=None)
    np.testing.assert_allclose(posterior.mean, solution)
    np.testing.assert_allclose(posterior.covariance, np.linalg.pinv(rows) @ np.linalg.pinv(rows).T)
    residuals = TARGETS - INPUTS @ solution
    assert posterior.residual_variance == pytest.approx((residuals**2).sum() / 10)


def test_differences_of_the_log_evidence_are_those_of_the_marginal_distribution() -> None:
    """The targets are Gaussian with the covariance of the prior through the inputs, and of the noise."""
    others = RNG.standard_normal((12, 3))
    differences = []
    expected = []
    for inputs, noise in ((INPUTS, 0.3), (others, 0.3), (INPUTS, 0.6)):
        differences.append(regress(inputs, TARGETS, PRIOR_MEAN, PRIOR_DEVIATION, noise).log_evidence)
        covariance = inputs @ np.diag(PRIOR_DEVIATION**2) @ inputs.T + noise**2 * np.eye(12)
        expected.append(multivariate_normal(inputs @ PRIOR_MEAN, covariance).logpdf(TARGETS))
    np.testing.assert_allclose(np.diff(differences), np.diff(expected))
