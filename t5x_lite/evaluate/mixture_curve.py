"""The shares of the sources of a run over its tokens, as a report draws them."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from t5x_lite.data.mixture_file import StageShares


@dataclass(frozen=True)
class MixtureCurve:
    """The stages of a run that have begun.

    Attributes:
        stages: their names.
        begins: tokens of the run before each.
        end: tokens of the run so far.
        sources: names of the sources.
        shares: share of each source in the rows of each stage.
    """

    stages: list[str]
    begins: list[float]
    end: float
    sources: list[str]
    shares: Float[np.ndarray, "stages sources"]

    @classmethod
    def of(cls, stages: Sequence[StageShares], last_step: int) -> "MixtureCurve":
        """Return the curve of a run up to its last step."""
        past_stages = [stage for stage in stages if stage.first_step < last_step]
        borders = [*(stage.first_step for stage in past_stages), last_step]
        tokens = 0.0
        begins = []
        for stage, steps in zip(past_stages, np.diff(borders).tolist(), strict=True):
            begins.append(tokens)
            tokens += steps * stage.batch_size * stage.seq_len
        sources = list(stages[0].shares)
        shares = np.array([[stage.shares[source] for source in sources] for stage in past_stages], np.float64)
        return cls([stage.name for stage in past_stages], begins, tokens, sources, shares)

    def steps(self) -> tuple[Float[np.ndarray, "corners"], Float[np.ndarray, "sources corners"]]:
        """Return tokens and shares at the corners of the curve: the beginning and the end of each stage."""
        borders = np.array([*self.begins, self.end])
        corners = np.stack([borders[:-1], borders[1:]], axis=1).ravel()
        return corners, np.repeat(self.shares, 2, axis=0).T
