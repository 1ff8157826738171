"""Trends of a metric over the runs of a sweep: does it fall with scale, does it rise, and from which size on.

A metric falls significantly if two things hold. By Kendall's rank correlation (Kendall 1938; over ordered sizes this is
Mann's test against trend, 1945), one-sided, the fall over the runs is not a chance order, with p at most 5 % after
Holm's correction (1979) for all curves of a figure. And the interval of the slope, by a bootstrap of the examples, is
below zero, so that the fall is not a chance of the examples. Such a metric scales inversely (McKenzie et al. 2023).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float
from scipy.stats import kendalltau

SIGNIFICANCE = 0.05
"""Largest p of a significant trend."""
TAILS = (0.025, 0.975)
"""Quantiles of bootstrap samples that are an interval of 95 %."""


@dataclass(frozen=True)
class Trend:
    """The trend of a metric over sizes.

    Attributes:
        slope: change for ten times the size, by least squares.
        interval: of the slope, from the bootstrap; None without examples.
        p_fall: one-sided p of a fall, where a fall is for the worse.
        p_rise: the same of a rise.
    """

    slope: float
    interval: tuple[float, float] | None
    p_fall: float
    p_rise: float


def fit_trend(
    sizes: Float[np.ndarray, " runs"],
    values: Float[np.ndarray, " runs"],
    samples: Float[np.ndarray, "draws runs"] | None,
    sign: int,
) -> Trend | None:
    """Return the trend of a metric; None where fewer than three runs or two sizes show none.

    Args:
        sizes: N or C of each run.
        values: the metric of each run.
        samples: bootstrap samples of the metric.
        sign: 1 if higher is better, -1 if lower is better.
    """
    if len(sizes) < 3 or len(np.unique(sizes)) < 2:
        return None
    decades = np.log10(sizes)
    weights = decades - decades.mean()
    weights /= np.sum(weights**2)
    interval = None
    if samples is not None:
        low, high = np.quantile(samples @ weights, TAILS)
        interval = (float(low), float(high))
    p_fall = _one_sided_p(sizes, sign * values, "less")
    p_rise = _one_sided_p(sizes, sign * values, "greater")
    return Trend(float(values @ weights), interval, p_fall, p_rise)


def _one_sided_p(sizes: Float[np.ndarray, " runs"], values: Float[np.ndarray, " runs"], alternative: str) -> float:
    if np.ptp(values) == 0:
        return 1.0
    return float(kendalltau(sizes, values, alternative=alternative).pvalue)


def adjust_holm(p_values: Sequence[float]) -> list[float]:
    """Return p values that are corrected for their number (Holm 1979)."""
    order = np.argsort(p_values, kind="stable")
    adjusted = [1.0] * len(p_values)
    largest = 0.0
    for rank, number in enumerate(order.tolist()):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[number]))
        adjusted[number] = largest
    return adjusted


def falls(trend: Trend, adjusted_p: float, sign: int) -> bool:
    """Return whether a metric becomes significantly worse with size.

    Args:
        trend: the trend.
        adjusted_p: its `p_fall` after the correction.
        sign: 1 if higher is better, -1 if lower is better.
    """
    if adjusted_p > SIGNIFICANCE:
        return False
    if trend.interval is None:
        return True
    return max(sign * trend.interval[0], sign * trend.interval[1]) < 0


def count_flat(samples: Float[np.ndarray, "draws sizes"]) -> int:
    """Return how many of the smallest sizes have a metric that is not significantly above that of the smallest.

    Args:
        samples: bootstrap samples of the metric, with the same examples for all sizes, from the smallest size on.
    """
    low, _ = np.quantile(samples - samples[:, :1], TAILS, axis=0)
    (above,) = np.nonzero(low > 0)
    return int(above[0]) if len(above) else samples.shape[1]
