"""Published laws, and points that follow them."""

from pathlib import Path

import numpy as np

from t5x_lite.laws.compute_optimal import TrainingCost, optimal_parameters
from t5x_lite.laws.points import Points
from t5x_lite.sweep.csv_points import read_csv

BESIROGLU = {"A": 482.01, "B": 2085.43, "E": 1.8172, "α": 0.3478, "β": 0.3658}
"""Besiroglu et al. 2024, table 1."""
BESIROGLU_NOTEBOOK = {"A": 477.84, "B": 2143.86, "E": 1.8172, "α": 0.34731, "β": 0.36718}
"""The minimum in their notebook."""
BESIROGLU_ERRORS = {"A": 124.58, "B": 1293.23, "E": 0.03, "α": 0.02, "β": 0.02}
"""Their standard errors, rounded by them to the digits shown."""


def read_chinchilla_points(real_data: Path) -> Points:
    """Points that Besiroglu et al. 2024 read off a figure of Hoffmann et al. 2022, without the five highest losses."""
    points = read_csv(real_data / "chinchilla" / "svg_extracted_data.csv").points
    assert len(points) == 245
    return points.select(np.argsort(points.loss)[:-5])


def build_points(
    parameters: np.ndarray, tokens: np.ndarray, loss: np.ndarray, budget: np.ndarray | None = None
) -> Points:
    """Dense runs that cost 6·N·D."""
    if budget is None:
        budget = np.zeros_like(loss)
    names = tuple(str(index) for index in range(len(loss)))
    return Points(parameters, tokens, 6 * parameters * tokens, loss, budget, np.ones_like(loss), names)


def besiroglu_loss(parameters: np.ndarray | float, tokens: np.ndarray | float) -> np.ndarray | float:
    """L(N, D) of Besiroglu et al. 2024."""
    law = BESIROGLU
    return law["E"] + law["A"] / parameters ** law["α"] + law["B"] / tokens ** law["β"]


def besiroglu_constants() -> dict[str, np.ndarray]:
    """The constants, as arrays of one row."""
    return {name: np.array([value]) for name, value in BESIROGLU.items()}


def isoflop_runs(seed: int, noise: float = 0.002, budgets: int = 4, sizes: int = 5) -> Points:
    """IsoFLOP runs around the best sizes of the published law, with noise on log L."""
    flops = np.repeat(np.geomspace(1e19, 1e22, budgets), sizes)
    best_at_one_flop = optimal_parameters(besiroglu_constants(), 1.0, TrainingCost())
    exponent = BESIROGLU["β"] / (BESIROGLU["α"] + BESIROGLU["β"])
    relative_sizes = np.tile(np.exp(np.linspace(-1.2, 1.2, sizes)), budgets)
    parameters = best_at_one_flop * flops**exponent * relative_sizes
    tokens = flops / 6 / parameters
    noise_factors = np.exp(noise * np.random.default_rng(seed).standard_normal(len(parameters)))
    loss = besiroglu_loss(parameters, tokens) * noise_factors
    return build_points(parameters, tokens, np.asarray(loss), flops)
