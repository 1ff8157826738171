"""Laws of the loss: how they are fitted to runs, and what they predict. Pure NumPy and SciPy.

Letters: N parameters, D tokens, C FLOPs, L loss in nats per token, E experts.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import product

import numpy as np
from scipy.special import ndtr, stdtrit

from t5x_lite.errors import UserError
from t5x_lite.laws.minimise import Objective, minimise

DELTA = 1e-3
"""Where the Huber loss turns from squares to absolute values (Hoffmann et al. 2022, §3.3)."""
STARTS = 500
"""Starts of a grid that are followed: those of the least objective."""
LEVEL = 0.95
"""Share of repetitions of a whole sweep in which an interval is meant to hold the true value."""


@dataclass(frozen=True)
class Points:
    """Runs, as float64 arrays `[n]`. `budget` is 0 for a point of no IsoFLOP grid; `experts` is 1 for a dense model."""

    parameters: np.ndarray
    tokens: np.ndarray
    flops: np.ndarray
    loss: np.ndarray
    budget: np.ndarray
    experts: np.ndarray
    names: tuple[str, ...]

    def where(self, chosen: np.ndarray) -> "Points":
        """Those of a mask or of a list of numbers."""
        numbers = np.arange(len(self.loss))[chosen]
        arrays = {name: value[numbers] for name, value in vars(self).items() if name != "names"}
        return Points(**arrays, names=tuple(self.names[n] for n in numbers))


class Law(ABC):
    """A form of log L with unknown constants. `x` holds log N, log D, log C and log E of points, `[4, n]`."""

    name: str
    formula: str
    symbols: tuple[str, ...]

    @abstractmethod
    def starts(self) -> np.ndarray:
        """Where the search begins, `[starts, parameters]`."""

    @abstractmethod
    def log_loss(self, theta: np.ndarray, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Log L `[rows, n]` for parameters `[rows, p]`, and its derivatives by them `[p, rows, n]`."""

    def constants(self, theta: np.ndarray) -> np.ndarray:
        """The published form of the parameters, `[rows, symbols]`."""
        return theta


def _softmax(*terms: np.ndarray) -> tuple[np.ndarray, list[np.ndarray]]:
    """Log of the sum of exponentials, and each one's share of it."""
    top = np.maximum.reduce(terms)
    parts = [np.exp(term - top) for term in terms]
    total = sum(parts[1:], parts[0])
    return top + np.log(total), [part / total for part in parts]


class Chinchilla(Law):
    """L = E + A/N^α + B/D^β (Hoffmann et al. 2022, §3.3); parameters log A, log B, log E, α, β."""

    name, formula = "L(N, D)", "E + A/N^α + B/D^β"
    symbols = ("A", "B", "E", "α", "β")

    def starts(self) -> np.ndarray:
        """The grid of Hoffmann et al. 2022, §D.3: 4500 of them."""
        scale, exponent = (0, 5, 10, 15, 20, 25), (0, 0.5, 1, 1.5, 2)
        return np.array(list(product(scale, scale, (-1, -0.5, 0, 0.5, 1), exponent, exponent)), float)

    def log_loss(self, theta: np.ndarray, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        a, b, e, alpha, beta = theta.T[..., None]
        value, (of_n, of_d, rest) = _softmax(a - alpha * x[0], b - beta * x[1], e + 0 * x[0])
        return value, np.stack([of_n, of_d, rest, -of_n * x[0], -of_d * x[1]])

    def constants(self, theta: np.ndarray) -> np.ndarray:
        return np.concatenate([np.exp(theta[:, :3]), theta[:, 3:]], -1)


class Kaplan(Law):
    """L = ((N_c/N)^(α_N/α_D) + D_c/D)^α_D (Kaplan et al. 2020, eq. 1.5).

    Parameters u·log N_c, log D_c, u = α_N/α_D, α_D.
    """

    name, formula = "L(N, D), Kaplan", "((N_c/N)^(α_N/α_D) + D_c/D)^α_D"
    symbols = ("N_c", "D_c", "α_N", "α_D")

    def starts(self) -> np.ndarray:
        scale = (10, 15, 20, 25, 30, 35)
        grid = product(scale, scale, (0.3, 0.6, 1, 1.5), (0.03, 0.1, 0.3))
        return np.array([(u * n, d, u, alpha) for n, d, u, alpha in grid], float)

    def log_loss(self, theta: np.ndarray, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        p, q, u, alpha = theta.T[..., None]
        value, (of_n, of_d) = _softmax(p - u * x[0], q - x[1])
        return alpha * value, np.stack([alpha * of_n, alpha * of_d, -alpha * of_n * x[0], value])

    def constants(self, theta: np.ndarray) -> np.ndarray:
        p, q, u, alpha = theta.T
        with np.errstate(all="ignore"):
            return np.stack([np.exp(p / u), np.exp(q), u * alpha, alpha], -1)


class Power(Law):
    """L = (X_c/X)^α for one of N, D, C (Kaplan et al. 2020, eq. 1.1 to 1.3); parameters α·log X_c, α."""

    def __init__(self, letter: str) -> None:
        self.axis, self.name = "NDC".index(letter), f"L({letter})"
        self.symbols = (f"{letter}_c", f"α_{letter}")
        self.formula = f"({letter}_c/{letter})^α_{letter}"

    def starts(self) -> np.ndarray:
        return np.array([(alpha * scale, alpha) for alpha in (0.03, 0.1, 0.3) for scale in (20, 35, 50)])

    def log_loss(self, theta: np.ndarray, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        p, alpha = theta.T[..., None]
        along = np.broadcast_to(x[self.axis], (len(theta), x.shape[1]))
        return p - alpha * along, np.stack([np.ones_like(along), -along])

    def constants(self, theta: np.ndarray) -> np.ndarray:
        with np.errstate(all="ignore"):
            return np.stack([np.exp(theta[:, 0] / theta[:, 1]), theta[:, 1]], -1)

    def frontier(self, points: Points) -> np.ndarray:
        """Mask of the runs that no run of as much or less of N, D or C beats: what the power law is a law of."""
        along, loss = _logs(points)[self.axis], points.loss
        first, second = along[:, None], loss[:, None]
        beaten = ((along <= first) & (loss < second)) | ((along < first) & (loss <= second))
        return ~beaten.any(1)


class Clark(Law):
    """log10 L = a·log10 N + b·log10 Ê + c·log10 N·log10 Ê + d, Ê the experts, saturated (Clark et al. 2022, eq. 6).

    1/Ê = 1/(E - 1 + (1/E_start - 1/E_max)^-1) + 1/E_max. Parameters a, b, c, d·log 10, log (1/E_start - 1/E_max)^-1,
    log E_max, in natural logarithms.
    """

    name, formula = "L(N, E)", "10^(a·lg N + b·lg Ê + c·lg N·lg Ê + d)"
    symbols = ("a", "b", "c", "d", "E_start", "E_max")

    def starts(self) -> np.ndarray:
        grid = product((-0.2, -0.05), (-0.3, -0.05), (0, 0.02), (1, 3), (0, 1, 2), (4, 6, 8))
        return np.array(list(grid), float)

    def log_loss(self, theta: np.ndarray, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        a, b, c, d, first, last = theta.T[..., None]
        begun = np.exp(x[3]) - 1 + np.exp(first)
        many = 1 / (1 / begun + np.exp(-last))
        experts, n = np.log(many), np.broadcast_to(x[0], begun.shape)
        slope = b + c * n
        by_experts = [slope * many * np.exp(first) / begun**2, slope * many * np.exp(-last)]
        value = a * n + slope * experts + d
        return value, np.stack([n, experts, n * experts, np.ones_like(n), *by_experts])

    def constants(self, theta: np.ndarray) -> np.ndarray:
        a, b, c, d, first, last = theta.T
        ten = math.log(10)
        return np.stack([a, b, c * ten, d / ten, 1 / (np.exp(-first) + np.exp(-last)), np.exp(last)], -1)


@dataclass(frozen=True)
class Fit:
    """A law fitted to points: parameters `[p]`, those of the bootstrap's draws `[draws, p]`, the summed Huber loss."""

    law: Law
    theta: np.ndarray
    drawn: np.ndarray
    objective: float
    points: Points = field(repr=False)

    def constants(self) -> dict[str, dict[str, float | list[float]]]:
        """Each constant of the formula: value, standard error, interval."""
        values, symbols = self.law.constants(self.theta[None])[0], self.law.symbols
        return named(symbols, values, self.law.constants(self.drawn), len(self.points.loss), len(symbols))

    def loss(self, parameters: np.ndarray, tokens: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Loss `[n]` of dense runs, and that by every draw `[draws, n]`."""
        x = np.log([parameters, tokens, np.ones_like(tokens), np.ones_like(tokens)])
        return np.exp(self.law.log_loss(self.theta[None], x)[0][0]), np.exp(self.law.log_loss(self.drawn, x)[0])

    @property
    def residuals(self) -> np.ndarray:
        """Log L of the runs less that of the law."""
        return np.log(self.points.loss) - self.law.log_loss(self.theta[None], _logs(self.points))[0][0]


def fit(law: Law, points: Points, draws: int = 1000, seed: int = 0) -> Fit:
    """The least summed Huber loss of log residuals, from a grid of starts; the bootstrap begins from what is found.

    A draw takes as many points as there are, with replacement (Besiroglu et al. 2024, appendix).
    """
    count, x, target = len(points.loss), _logs(points), np.log(points.loss)

    def objective(weights: np.ndarray) -> Objective:
        def of(theta: np.ndarray, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
            with np.errstate(all="ignore"):
                value, slopes = law.log_loss(theta, x)
                rest, own = value - target, weights[rows] if len(weights) > 1 else weights
                far = np.abs(rest)
                huber = np.where(far <= DELTA, 0.5 * rest**2 / DELTA, far - 0.5 * DELTA)
                total = (own * huber).sum(-1)
                return np.where(np.isfinite(total), total, np.inf), np.einsum(
                    "prn,rn->rp", slopes, own * np.clip(rest / DELTA, -1, 1)
                )

        return of

    starts, first = law.starts(), objective(np.ones((1, count)))
    starts = starts[np.argsort(first(starts, np.arange(len(starts)))[0])[:STARTS]]
    found, values = minimise(first, starts)
    best = found[np.nanargmin(values)]
    counts = np.random.default_rng(seed).multinomial(count, np.full(count, 1 / count), draws).astype(float)
    drawn, _ = minimise(objective(counts), np.repeat(best[None], draws, 0))
    return Fit(law, best, drawn, float(np.nanmin(values)) * DELTA, points)


def _logs(points: Points) -> np.ndarray:
    return np.log([points.parameters, points.tokens, points.flops, points.experts])


def interval(drawn: np.ndarray, count: int, unknowns: int) -> list[float]:
    """The percentiles between which a value lies at `LEVEL`, set apart for few points (Hesterberg 2015, §5.3)."""
    free = max(count - unknowns, 1)
    tail = ndtr(math.sqrt(count / free) * stdtrit(free, (1 - LEVEL) / 2))
    good = drawn[np.isfinite(drawn)]
    return [float(value) for value in np.quantile(good, [tail, 1 - tail])] if len(good) else [math.nan, math.nan]


def _deviation(drawn: np.ndarray) -> float:
    scale = float(np.abs(drawn).max(initial=0.0)) or 1.0  # squares of constants such as C_c overflow
    return scale * float(np.std(drawn / scale, ddof=1)) if len(drawn) > 1 else math.nan


def named(
    symbols: Sequence[str], values: np.ndarray, drawn: np.ndarray, count: int, unknowns: int
) -> dict[str, dict[str, float | list[float]]]:
    """Values `[k]` and draws of them `[draws, k]` as {symbol: value, standard_error, interval}; see `interval`."""
    return {
        symbol: {
            "value": float(value),
            "standard_error": _deviation(column[np.isfinite(column)]),
            "interval": interval(column, count, unknowns),
        }
        for symbol, value, column in zip(symbols, values, drawn.T, strict=True)
    }


@dataclass(frozen=True)
class Cost:
    """C = κ·N^(1+γ)·D: what a token costs grows a little unlike N where FLOPs are counted; 6·N·D is κ = 6, γ = 0."""

    kappa: float = 6.0
    gamma: float = 0.0

    @classmethod
    def of(cls, points: Points) -> "Cost":
        """Least squares over the sizes in logarithms."""
        each = np.log(points.flops / points.parameters / points.tokens)
        n = np.log(points.parameters)
        gamma = float(np.polyfit(n, each, 1)[0]) if np.ptp(n) > 0 and np.ptp(each) > 1e-6 else 0.0
        return cls(float(np.exp(np.mean(each - gamma * n))), gamma)


def optimum(constants: Mapping[str, np.ndarray], flops: float, cost: Cost) -> np.ndarray:
    """N of the least L(N, D) that a budget pays for (Hoffmann et al. 2022, eq. 4, for the cost C = κ·N^(1+γ)·D)."""
    a, b, alpha, beta = (np.asarray(constants[s]) for s in ("A", "B", "α", "β"))
    grown = 1 + cost.gamma
    with np.errstate(all="ignore"):
        base = alpha * a / (grown * beta * b) * (flops / cost.kappa) ** beta
        return base ** (1 / (alpha + grown * beta))


def check(points: Points) -> None:
    """Refuse what no law of N and D can be fitted to.

    Raises:
        UserError: too few points, all of one size, or all of as many tokens.
    """
    count = len(points.loss)
    if count < 6:
        raise UserError(f"{count} points are too few for a law of five constants; fit needs 6 at least, with 3 sizes")
    for name, values in (("N, parameters", points.parameters), ("D, tokens", points.tokens)):
        distinct = len(np.unique(np.round(np.log(values), 3)))
        if distinct < 3:
            have = "one value" if distinct == 1 else "two values"
            raise UserError(
                f"the {count} points have {have} of {name} ({values.min():.4g} to {values.max():.4g}): a law of N and "
                "D needs 3 at least; add them to the sweep"
            )
