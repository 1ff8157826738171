"""The finished runs that laws are fitted to.

Letters, here and in the other files: N parameters, D tokens, C FLOPs, L loss in nats per token, E experts.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int

from t5x_lite.errors import UserError

MIN_POINTS = 6
"""One more than the constants of L = E + A/N^α + B/D^β."""
MIN_DISTINCT = 3
"""Fewest different values of N, and of D. With fewer, an exponent cannot be separated from its factor and from E."""


@dataclass(frozen=True)
class Points:
    """Finished runs, one per entry.

    `budget` holds the FLOPs of the run's IsoFLOP budget, or 0 if it has none. `experts` is 1 for a dense model.
    """

    parameters: Float[np.ndarray, " n"]
    tokens: Float[np.ndarray, " n"]
    flops: Float[np.ndarray, " n"]
    loss: Float[np.ndarray, " n"]
    budget: Float[np.ndarray, " n"]
    experts: Float[np.ndarray, " n"]
    names: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.loss)

    def select(self, chosen: Bool[np.ndarray, " n"] | Int[np.ndarray, " chosen"]) -> "Points":
        """Return the runs of a mask or of a list of indices."""
        indices = np.arange(len(self))[chosen]
        return Points(
            parameters=self.parameters[indices],
            tokens=self.tokens[indices],
            flops=self.flops[indices],
            loss=self.loss[indices],
            budget=self.budget[indices],
            experts=self.experts[indices],
            names=tuple(self.names[index] for index in indices),
        )

    def log_inputs(self) -> Float[np.ndarray, "4 n"]:
        """Return log N, log D, log C and log E."""
        return np.log([self.parameters, self.tokens, self.flops, self.experts])


def check_points(points: Points) -> None:
    """Refuse points that do not determine a law of N and D.

    Raises:
        UserError: too few points, or too few different values of N, of D or of the loss.
    """
    count = len(points)
    if count < MIN_POINTS:
        raise UserError(
            f"{count} points are too few for a law of five constants; fit needs at least {MIN_POINTS}, with 3 sizes"
        )
    if np.ptp(points.loss) == 0:
        raise UserError(f"the {count} points have one loss, {points.loss[0]:.4g}, of which no law can be fitted")
    _check_distinct(points.parameters, "N, parameters")
    _check_distinct(points.tokens, "D, tokens")


def _check_distinct(values: Float[np.ndarray, " n"], name: str) -> None:
    distinct = len(np.unique(np.round(np.log(values), 3)))
    if distinct >= MIN_DISTINCT:
        return
    count = "one value" if distinct == 1 else "two values"
    raise UserError(
        f"the {len(values)} points have {count} of {name} ({values.min():.4g} to {values.max():.4g}): a law of N and D "
        f"needs at least {MIN_DISTINCT}; add them to the sweep"
    )
