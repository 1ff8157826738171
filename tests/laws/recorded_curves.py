"""Recorded training curves, and forecasts of their ends.

`recorded_curves.npz` has runs of the quickstart configs, of the quickstart sweep, and of two of configs/finetune that
train from fresh weights. A name ends with the seed. Runs whose seed is a multiple of 3 test the interval, the others
determine its factor. Those of seed 0 were recorded by `t5x-lite train` and `sweep`, in full size:

* quickstart, quickstart_t5, quickstart_bert: configs/NAME.yaml; `query_norm` with `model.query_key_norm: head`,
  `next_sentence` with BERT's objective on pairs, `post_norm` with its norms;
* sweep_trunk: the long runs of configs/sweeps/quickstart.yaml, of which the runs branch off, by width;
* notebook: the runs of docs/notebooks/scaling_law.ipynb, by width;
* quickstart_contrastive and quickstart_scratch (also seeds 1 and 2): configs/finetune/NAME.yaml on the texts of SST-2,
  the latter at a rate of 0.0002.

The others were recorded by tools/record_curves.py:

* small: 2 layers, width 48, 3 heads, MLP of 128, vocabulary of 1024, 200 steps;
* tiny: 2 layers, width 32, 2 heads, MLP of 96, vocabulary of 1024, 240 steps of 16 sequences of 128 tokens;
* micro: as tiny, with a vocabulary of 512 and sequences of 64 tokens; low_rate: at a rate of 0.003; cosine: with that
  schedule;
* stable_decay: the tiny decoder with the schedule `wsd: {decay: 0.2}`;
* sweep: the smallest size of configs/sweeps/quickstart.yaml, 1000 steps.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float, Int

from t5x_lite.laws.estimates import CONFIDENCE
from t5x_lite.laws.forecast import CONFORMAL_FACTOR, END_SHARE, MAX_HALF_WIDTH, predict_end

SHARES = (0.3, 0.5, 0.7, 0.9)
"""Shares of a run after which its end is forecast."""


@dataclass(frozen=True)
class RecordedForecast:
    """A forecast of an end that is known.

    Attributes:
        error: prediction minus truth, as a share of the prediction.
        deviation: estimated standard deviation of the error.
    """

    error: float
    deviation: float

    @property
    def half_width(self) -> float:
        return CONFORMAL_FACTOR * self.deviation

    @property
    def is_right(self) -> bool:
        return abs(self.error) <= self.half_width

    @property
    def is_shown(self) -> bool:
        return self.half_width <= MAX_HALF_WIDTH


@dataclass(frozen=True)
class Curve:
    """A recorded run: the steps with their losses, and the learning rate of every step."""

    name: str
    steps: Int[np.ndarray, " losses"]
    losses: Float[np.ndarray, " losses"]
    learning_rates: Float[np.ndarray, " steps"]

    @property
    def seed(self) -> int:
        return int(self.name.rpartition("_")[2])

    @property
    def end(self) -> float:
        """The mean loss of the last tenth."""
        return float(self.losses[self.steps > (1 - END_SHARE) * len(self.learning_rates)].mean())

    def forecast(self, share: float) -> RecordedForecast | None:
        """Forecast the end after a share of the run."""
        is_seen = self.steps <= share * len(self.learning_rates)
        predicted = predict_end(self.steps[is_seen], self.losses[is_seen], self.learning_rates)
        if predicted is None:
            return None
        return RecordedForecast((predicted.loss - self.end) / predicted.loss, predicted.deviation / predicted.loss)

    def forecasts(self) -> list[RecordedForecast]:
        """Return the forecasts after all of `SHARES`."""
        return [forecast for share in SHARES if (forecast := self.forecast(share))]

    def records(self, share: float) -> list[dict[str, float]]:
        """Return the metrics of a share of the run."""
        records = []
        for step, loss in zip(self.steps, self.losses, strict=True):
            if step <= share * len(self.learning_rates):
                records.append({"step": int(step), "loss": float(loss), "tokens": 64 * int(step)})
        return records


def conformal_factor(curves: Sequence[Curve]) -> float:
    """Return the factor with which intervals contain the ends of 95 of 100 runs like those (Lei et al. 2018, §2.2).

    The score of a run is the largest error of its forecasts in deviations, so that all its intervals contain the end
    together. Of n scores the factor is the k-th smallest, where k = ceil((n + 1) · 95 %).
    """
    scores = []
    for curve in curves:
        scores.append(max(abs(forecast.error) / forecast.deviation for forecast in curve.forecasts()))
    rank = math.ceil((len(scores) + 1) * CONFIDENCE)
    return sorted(scores)[rank - 1]


def _read_curves() -> list[Curve]:
    arrays = np.load(Path(__file__).parent / "recorded_curves.npz")
    curves = []
    for name in sorted({key.split("/")[0] for key in arrays}):
        parts = (arrays[f"{name}/{part}"] for part in ("steps", "loss", "learning_rates"))
        curves.append(Curve(name, *parts))
    return curves


CALIBRATION = [curve for curve in _read_curves() if curve.seed % 3 > 0]
HELD_OUT = [curve for curve in _read_curves() if curve.seed % 3 == 0]
