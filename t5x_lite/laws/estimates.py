"""A fitted value with its uncertainty, from bootstrap samples."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float
from scipy.special import ndtr, stdtrit

CONFIDENCE = 0.95
"""Share of repetitions of the sweep in which an interval should contain the true value."""


@dataclass(frozen=True)
class Estimate:
    """A value, the standard deviation of its bootstrap samples, and a confidence interval (low, high)."""

    value: float
    standard_error: float
    interval: tuple[float, float]


def percentile_interval(
    samples: Float[np.ndarray, " draws"], num_points: int, num_unknowns: int
) -> tuple[float, float]:
    """Return percentiles of the bootstrap samples, further apart where few points were fitted (Hesterberg 2015, §5.3).

    Args:
        samples: values, of which those that are not finite are left out.
        num_points: points of the fit.
        num_unknowns: unknowns of the fit.
    """
    degrees_of_freedom = max(num_points - num_unknowns, 1)
    quantile = math.sqrt(num_points / degrees_of_freedom) * stdtrit(degrees_of_freedom, (1 - CONFIDENCE) / 2)
    tail = ndtr(quantile)
    finite = samples[np.isfinite(samples)]
    if len(finite) == 0:
        return math.nan, math.nan
    low, high = np.quantile(finite, [tail, 1 - tail])
    return float(low), float(high)


def _standard_error(samples: Float[np.ndarray, " draws"]) -> float:
    finite = samples[np.isfinite(samples)]
    if len(finite) < 2:
        return math.nan
    # Squares of constants such as C_c overflow.
    scale = float(np.abs(finite).max()) or 1.0
    return scale * float(np.std(finite / scale, ddof=1))


def estimate_each(
    names: Sequence[str],
    values: Float[np.ndarray, " names"],
    samples: Float[np.ndarray, "draws names"],
    num_points: int,
    num_unknowns: int,
) -> dict[str, Estimate]:
    """Return each value with its uncertainty, by name; see `percentile_interval` for the last two arguments."""
    estimates = {}
    for name, value, column in zip(names, values, samples.T, strict=True):
        interval = percentile_interval(column, num_points, num_unknowns)
        estimates[name] = Estimate(float(value), _standard_error(column), interval)
    return estimates
