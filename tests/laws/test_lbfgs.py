"""The batched minimiser against SciPy's, which solves one problem per call."""

import numpy as np
from scipy.optimize import minimize

from t5x_lite.laws.lbfgs import minimise


def rosenbrock(x: np.ndarray, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Rosenbrock's function of every row, and its gradient."""
    left = x[:, :-1]
    right = x[:, 1:]
    values = (100 * (right - left**2) ** 2 + (1 - left) ** 2).sum(-1)
    gradients = np.zeros_like(x)
    gradients[:, :-1] += -400 * left * (right - left**2) - 2 * (1 - left)
    gradients[:, 1:] += 200 * (right - left**2)
    return values, gradients


def rosenbrock_at(x: np.ndarray) -> tuple[float, np.ndarray]:
    """Rosenbrock's function of one point, and its gradient."""
    values, gradients = rosenbrock(x[None], np.zeros(1, int))
    return values[0], gradients[0]


def test_a_batch_reaches_minima_as_low_as_those_of_scipy() -> None:
    """Rosenbrock's valley in three dimensions, from many starting points."""
    starts = np.random.default_rng(0).uniform(-2, 2, (6, 3))
    points, values = minimise(rosenbrock, starts)
    for start, point, value in zip(starts, points, values, strict=True):
        scipy_result = minimize(rosenbrock_at, start, jac=True, method="L-BFGS-B")
        assert value <= scipy_result.fun + 1e-9
        np.testing.assert_allclose(point, 1, atol=1e-3)
