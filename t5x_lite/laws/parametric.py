"""Parametric scaling laws: forms of log L with unknown constants, their derivatives, and where a search begins.

An optimizer does not see a law's published constants but `theta`: the same constants, transformed so that they are not
confined to positive values. `Law.constants` transforms them back.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from itertools import product
from typing import TypeAlias

import numpy as np
from jaxtyping import Bool, Float

from t5x_lite.laws.points import Points

Theta: TypeAlias = Float[np.ndarray, "rows unknowns"]
Inputs: TypeAlias = Float[np.ndarray, "inputs ... n"]
LossAndGradient: TypeAlias = tuple[Float[np.ndarray, "rows n"], Float[np.ndarray, "unknowns rows n"]]
Constants: TypeAlias = Float[np.ndarray, "rows symbols"]


class Law(ABC):
    """A parametric law. `symbols` names the published constants."""

    name: str
    formula: str
    symbols: tuple[str, ...]

    @abstractmethod
    def initial_guesses(self) -> Float[np.ndarray, "guesses unknowns"]:
        """Return a grid of values of theta to begin a search from."""

    @abstractmethod
    def log_loss(self, theta: Theta, inputs: Inputs) -> LossAndGradient:
        """Return log L and its derivatives with respect to theta.

        Args:
            theta: one set of unknowns per row.
            inputs: log N, log D, log C and log E, the same for every row, or of shape `[inputs, rows, n]`.
        """

    def constants(self, theta: Theta) -> Constants:
        """Return the published constants, in the order of `symbols`."""
        return theta


def _log_sum_exp(
    terms: Sequence[Float[np.ndarray, "rows n"]],
) -> tuple[Float[np.ndarray, "rows n"], list[Float[np.ndarray, "rows n"]]]:
    """Return the logarithm of the sum of the terms' exponentials, and each term's share of that sum."""
    maximum = np.maximum.reduce(terms)
    exponentials = [np.exp(term - maximum) for term in terms]
    total = sum(exponentials[1:], exponentials[0])
    shares = [exponential / total for exponential in exponentials]
    return maximum + np.log(total), shares


class Chinchilla(Law):
    """L = E + A/N^α + B/D^β (Hoffmann et al. 2022, §3.3); theta is log A, log B, log E, α, β."""

    name = "L(N, D)"
    formula = "E + A/N^α + B/D^β"
    symbols = ("A", "B", "E", "α", "β")

    def initial_guesses(self) -> Float[np.ndarray, "guesses unknowns"]:
        """Return the grid of Hoffmann et al. 2022, §D.3, of 4500 guesses."""
        log_factors = (0, 5, 10, 15, 20, 25)
        log_floors = (-1, -0.5, 0, 0.5, 1)
        exponents = (0, 0.5, 1, 1.5, 2)
        return np.array(list(product(log_factors, log_factors, log_floors, exponents, exponents)), float)

    def log_loss(self, theta: Theta, inputs: Inputs) -> LossAndGradient:
        log_a, log_b, log_e, alpha, beta = theta.T[..., None]
        size_term = log_a - alpha * inputs[0]
        data_term = log_b - beta * inputs[1]
        floor_term = log_e + 0 * inputs[0]
        value, shares = _log_sum_exp([size_term, data_term, floor_term])
        size_share, data_share, floor_share = shares
        gradient = [size_share, data_share, floor_share, -size_share * inputs[0], -data_share * inputs[1]]
        return value, np.stack(gradient)

    def constants(self, theta: Theta) -> Constants:
        return np.concatenate([np.exp(theta[:, :3]), theta[:, 3:]], -1)


class Kaplan(Law):
    """L = ((N_c/N)^(α_N/α_D) + D_c/D)^α_D (Kaplan et al. 2020, eq. 1.5).

    Theta is u·log N_c, log D_c, u = α_N/α_D, α_D.
    """

    name = "L(N, D), Kaplan"
    formula = "((N_c/N)^(α_N/α_D) + D_c/D)^α_D"
    symbols = ("N_c", "D_c", "α_N", "α_D")

    def initial_guesses(self) -> Float[np.ndarray, "guesses unknowns"]:
        log_scales = (10, 15, 20, 25, 30, 35)
        ratios = (0.3, 0.6, 1, 1.5)
        exponents = (0.03, 0.1, 0.3)
        guesses = []
        for log_n, log_d, ratio, alpha in product(log_scales, log_scales, ratios, exponents):
            guesses.append((ratio * log_n, log_d, ratio, alpha))
        return np.array(guesses, float)

    def log_loss(self, theta: Theta, inputs: Inputs) -> LossAndGradient:
        scaled_log_n, log_d, ratio, alpha = theta.T[..., None]
        log_sum, shares = _log_sum_exp([scaled_log_n - ratio * inputs[0], log_d - inputs[1]])
        size_share, data_share = shares
        gradient = [alpha * size_share, alpha * data_share, -alpha * size_share * inputs[0], log_sum]
        return alpha * log_sum, np.stack(gradient)

    def constants(self, theta: Theta) -> Constants:
        scaled_log_n, log_d, ratio, alpha = theta.T
        with np.errstate(all="ignore"):
            return np.stack([np.exp(scaled_log_n / ratio), np.exp(log_d), ratio * alpha, alpha], -1)


class Power(Law):
    """L = (X_c/X)^α for X one of N, D, C (Kaplan et al. 2020, eq. 1.1 to 1.3); theta is α·log X_c, α."""

    def __init__(self, letter: str) -> None:
        self.input = "NDC".index(letter)
        self.name = f"L({letter})"
        self.symbols = (f"{letter}_c", f"α_{letter}")
        self.formula = f"({letter}_c/{letter})^α_{letter}"

    def initial_guesses(self) -> Float[np.ndarray, "guesses unknowns"]:
        guesses = []
        for alpha, log_scale in product((0.03, 0.1, 0.3), (20, 35, 50)):
            guesses.append((alpha * log_scale, alpha))
        return np.array(guesses)

    def log_loss(self, theta: Theta, inputs: Inputs) -> LossAndGradient:
        scaled_log_x, alpha = theta.T[..., None]
        log_x = np.broadcast_to(inputs[self.input], (len(theta), inputs.shape[-1]))
        return scaled_log_x - alpha * log_x, np.stack([np.ones_like(log_x), -log_x])

    def constants(self, theta: Theta) -> Constants:
        with np.errstate(all="ignore"):
            return np.stack([np.exp(theta[:, 0] / theta[:, 1]), theta[:, 1]], -1)

    def pareto_frontier(self, points: Points) -> Bool[np.ndarray, " n"]:
        """Return a mask of the runs to fit: those that no run with as much or less of X beats."""
        log_x = points.log_inputs()[self.input]
        has_less = log_x < log_x[:, None]
        has_as_much_or_less = log_x <= log_x[:, None]
        is_lower = points.loss < points.loss[:, None]
        is_as_low_or_lower = points.loss <= points.loss[:, None]
        beats = (has_as_much_or_less & is_lower) | (has_less & is_as_low_or_lower)
        return ~beats.any(1)


class Clark(Law):
    """log10 L = a·log10 N + b·log10 Ê + c·log10 N·log10 Ê + d (Clark et al. 2022, eq. 6).

    Ê is the number of experts with saturation: 1/Ê = 1/(E - 1 + (1/E_start - 1/E_max)^-1) + 1/E_max. Theta is a, b, c,
    d·log 10, log (1/E_start - 1/E_max)^-1 and log E_max. All of these are natural logarithms, so theta's c is the
    published one divided by log 10.
    """

    name = "L(N, E)"
    formula = "10^(a·lg N + b·lg Ê + c·lg N·lg Ê + d)"
    symbols = ("a", "b", "c", "d", "E_start", "E_max")

    def initial_guesses(self) -> Float[np.ndarray, "guesses unknowns"]:
        grid = product((-0.2, -0.05), (-0.3, -0.05), (0, 0.02), (1, 3), (0, 1, 2), (4, 6, 8))
        return np.array(list(grid), float)

    def log_loss(self, theta: Theta, inputs: Inputs) -> LossAndGradient:
        a, b, c, d, log_offset, log_max = theta.T[..., None]
        shifted_experts = np.exp(inputs[3]) - 1 + np.exp(log_offset)
        experts = 1 / (1 / shifted_experts + np.exp(-log_max))
        log_experts = np.log(experts)
        log_n = np.broadcast_to(inputs[0], shifted_experts.shape)
        slope = b + c * log_n
        by_offset = slope * experts * np.exp(log_offset) / shifted_experts**2
        by_max = slope * experts * np.exp(-log_max)
        value = a * log_n + slope * log_experts + d
        gradient = [log_n, log_experts, log_n * log_experts, np.ones_like(log_n), by_offset, by_max]
        return value, np.stack(gradient)

    def constants(self, theta: Theta) -> Constants:
        a, b, c, d, log_offset, log_max = theta.T
        log_10 = math.log(10)
        first_experts = 1 / (np.exp(-log_offset) + np.exp(-log_max))
        return np.stack([a, b, c * log_10, d / log_10, first_experts, np.exp(log_max)], -1)
