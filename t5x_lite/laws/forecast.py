"""Where the loss of a run in progress will end, from its curve so far and its whole schedule.

L(s) = L0 + A·S1^-α - C·S2 (Tissue et al. 2024, eq. 1): S1 is the sum of the learning rates so far, S2 that of their
falls, of which step k's fades by λ a step. Rates are taken relative to the peak.
"""

from collections.abc import Mapping, Sequence
from itertools import product
from typing import Any

import numpy as np

from t5x_lite.laws.law import Law, Points, fit, interval

LAMBDA = 0.999
"""How much of a fall of the rate is left to work after one step (Tissue et al. 2024, §3)."""
BINS = 60
"""Stretches of equal length whose mean losses are fitted."""
SEEN = 0.1
"""Share of the run, and of the whole schedule's S2, before which nothing is foretold: C would be a guess."""
FEWEST = 15
DRAWS = 100


class Annealing(Law):
    """Log (L0 + A·S1^-α - C·S2) of x = (log S1, log S2); parameters log L0, log A, α, log C."""

    def starts(self) -> np.ndarray:
        return np.array(list(product((-1, 0, 1), (0, 2, 4), (0.2, 0.5, 1), (-12, -9, -6))), float)

    def log_loss(self, theta: np.ndarray, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        floor, a, alpha, c = theta.T[..., None]
        low, curve, fall = np.exp(floor), np.exp(a - alpha * x[0]), np.exp(c + x[1])
        value = np.maximum(low + curve - fall, 1e-6)
        return np.log(value), np.stack([low + 0 * curve, curve, -curve * x[0], -fall]) / value


def annealing(rates: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """S1 and S2 after each step, for the learning rates of all steps."""
    from scipy.signal import lfilter  # a second to import, which a run's first step need not wait for

    shares = rates / rates.max()
    falls = np.maximum(-np.diff(shares, prepend=shares[0]), 0)
    momentum = lfilter([1.0], [1.0, -LAMBDA], falls)
    return np.cumsum(shares), np.cumsum(momentum) + 1e-9


def forecast_loss(lines: Sequence[Mapping[str, Any]], rates: np.ndarray) -> dict[str, float]:
    """`predicted/loss` of the last step's training, with an interval (`predicted/low`, `/high`), and its `/tokens`.

    Empty before enough is seen: a tenth of the run and of the schedule's fall, and a few losses after the warm-up.

    Args:
        lines: metrics of the run so far.
        rates: the learning rate of every step of the run `[steps]`.
    """
    first, second = annealing(rates)
    warm = int(np.argmax(rates)) + 1
    known = [(line["step"], line["loss"], line["tokens"]) for line in lines if line.get("loss") is not None]
    step, loss, tokens = np.array(known, float).T if known else np.zeros((3, 1))
    now = int(step[-1])
    begun = step > max(warm, SEEN * now)
    unseen = second[-1] > 1e-6 and second[now - 1] < SEEN * second[-1]
    if begun.sum() < FEWEST or now < SEEN * len(rates) or unseen:
        return {}
    bins = [part for part in np.array_split(np.flatnonzero(begun), BINS) if len(part)]
    middle = np.array([round(step[part].mean()) - 1 for part in bins])
    means = np.array([loss[part].mean() for part in bins])
    one = np.ones(len(bins))
    points = Points(first[middle], second[middle], one, means, 0 * one, one, ("",) * len(bins))
    found = fit(Annealing(), points, DRAWS)
    value, drawn = found.loss(first[-1:], second[-1:])
    low, high = interval(drawn[:, 0], len(bins), 4)
    end = tokens[-1] / now * len(rates)
    return {"predicted/loss": float(value[0]), "predicted/low": low, "predicted/high": high, "predicted/tokens": end}
