"""A forecast of the training loss at the end of a run in progress, from its losses so far and its learning rates.

The law is L = L0 + A·S1^-α + B·η^β. S1 is the sum of the learning rates so far, in which the loss is a power law
(Tissue et al. 2024, eq. 1). η is the learning rate; the last term is what its decay takes away. Tissue et al. have
-C·S2 there, in which the loss follows the rate with a delay of about 1000 steps. That is little in a long run, and
more than short runs show. Learning rates are relative to their maximum.

One noisy curve does not determine these constants: least squares may find any L0. So they have priors. With one value
of α and of β the law is linear, and its Bayesian regression has a closed form. The forecast is the mean over a grid of
values, weighted by their evidence (Bayesian model averaging: Hoeting et al. 1999, eq. 1 and 2).

The interval is calibrated. Its half-width is a factor times the standard deviation; the factor is a quantile of the
errors of recorded runs, relative to their standard deviations (split conformal prediction: Vovk et al. 2005, §4.2; Lei
et al. 2018, §5.2). If a run is like the recorded ones, the interval contains its end with the probability
`estimates.CONFIDENCE`, even where law, priors and noise are not as assumed here.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from t5x_lite.laws.bayesian_regression import regress

END_SHARE = 0.1
"""Share of the steps, at the end of the run, whose mean loss is forecast."""
FIRST_SHARE = 0.3
"""Share of the steps before which there is no forecast: the earliest of the forecasts that were calibrated."""
SKIPPED_SHARE = 0.1
"""Share of the steps so far that is left out, because the law does not hold at the beginning."""
MAX_END_STEPS = 1000
"""Steps at the end of the run over which the terms of the law are averaged."""
NUM_BINS = 50
"""Bins of equally many losses, whose means are fitted."""
MIN_BINS = 10
"""Fewest bins that are fitted."""
EXPONENTS = tuple(product(np.linspace(0.1, 1.0, 10), (1.0, 1.5, 2.0)))
"""The values of α with those of β. All are equally likely before the losses are seen."""
PRIOR_MEAN = np.array([0.9, 0.3, 0.05])
PRIOR_DEVIATION = np.array([1.0, 0.5, 0.1])
"""Prior of the loss at the end, of the fall of A·S1^-α in the part that is seen, and of B, relative to the loss now."""
DRIFT = 0.02
"""Deviation of the curve from the law over a whole run, as a share of the loss, which grows like that of a random walk.

A curve may turn in a way that the law does not have: that of BERT falls late, and a decay may take effect with a delay.
"""
CONFORMAL_FACTOR = 2.9
"""Half-width of the interval in deviations: that of recorded runs (tools/forecast_table.py), rounded up."""
MAX_HALF_WIDTH = 0.05
"""Largest half-width, as a share of the loss, that is worth a line."""
SMALLEST_RATE = 1e-9
"""Relative rate that stands for zero, with which a warm-up may begin: a power of no progress is infinite."""
NOISE_ROUNDS = 3
"""Estimates of the noise, each from the residuals of the fits with the one before."""
SMALLEST_NOISE = 1e-6
"""Deviation of the noise of a curve without noise."""


@dataclass(frozen=True)
class EndOfRun:
    """The mean loss of the end of a run, and the standard deviation of its error."""

    loss: float
    deviation: float


@dataclass(frozen=True)
class FittedLaw:
    """The law with one value of α and β, fitted to the losses so far.

    Attributes:
        end_loss: the mean loss of the end.
        variance: of its error, if the law is right.
        log_evidence: log probability of the losses, up to a constant.
        residual_variance: mean square of the residuals.
    """

    end_loss: float
    variance: float
    log_evidence: float
    residual_variance: float


def forecast_loss(
    records: Sequence[Mapping[str, Any]], learning_rates: Float[np.ndarray, " steps"]
) -> dict[str, float]:
    """Forecast the mean training loss of the last tenth of the steps.

    Args:
        records: the run's metrics so far, of which `step`, `loss` and `tokens` are read.
        learning_rates: the learning rate of every step of the whole run.

    Returns:
        `predicted/loss` with its interval, `predicted/low` to `predicted/high`, and `predicted/tokens`, the tokens at
        the last step. Empty before `FIRST_SHARE` of the run, and while the interval is too wide (`MAX_HALF_WIDTH`).
    """
    num_steps = len(learning_rates)
    measured = [record for record in records if _is_measured(record, num_steps)]
    if not measured:
        return {}
    steps = np.array([record["step"] for record in measured], int)
    losses = np.array([record["loss"] for record in measured], float)
    end = predict_end(steps, losses, learning_rates)
    if end is None:
        return {}
    half_width = CONFORMAL_FACTOR * end.deviation
    if half_width > MAX_HALF_WIDTH * end.loss:
        return {}
    return {
        "predicted/loss": end.loss,
        "predicted/low": end.loss - half_width,
        "predicted/high": end.loss + half_width,
        "predicted/tokens": float(measured[-1]["tokens"]) / int(steps[-1]) * num_steps,
    }


def _is_measured(record: Mapping[str, Any], num_steps: int) -> bool:
    """Return whether a record has a loss: it was finite, and the batch had something to predict."""
    values = [record.get("step"), record.get("tokens"), record.get("loss")]
    if not all(isinstance(value, int | float) and 0 < value < math.inf for value in values):
        return False
    return bool(record["step"] <= num_steps)


def predict_end(
    steps: Int[np.ndarray, " losses"], losses: Float[np.ndarray, " losses"], learning_rates: Float[np.ndarray, " steps"]
) -> EndOfRun | None:
    """Predict the mean loss of the last tenth of the steps. None while too little of the run is seen.

    Args:
        steps: the steps whose losses are known, ascending.
        losses: their losses.
        learning_rates: the learning rate of every step of the whole run.
    """
    num_steps = len(learning_rates)
    now = int(steps[-1])
    warmup_steps = int(np.argmax(learning_rates)) + 1
    is_fitted = steps > max(warmup_steps, SKIPPED_SHARE * now)
    if now < FIRST_SHARE * num_steps or is_fitted.sum() < MIN_BINS:
        return None
    bin_steps, bin_losses = _mean_of_bins(steps[is_fitted], losses[is_fitted])
    if not learning_rates[bin_steps[0] : bin_steps[-1]].any():
        return None
    loss_now = float(bin_losses[-(len(bin_losses) // 4) :].mean())
    fits, noise = _fit_exponents(bin_steps, bin_losses / loss_now, learning_rates / learning_rates.max())

    weights = _evidence_weights(fits)
    end_losses = np.array([fit.end_loss for fit in fits])
    mean = float(weights @ end_losses)
    variance = float(weights @ (np.array([fit.variance for fit in fits]) + (end_losses - mean) ** 2))
    steps_of_bin = (bin_steps[-1] - bin_steps[0]) / (len(bin_steps) - 1)
    noise_variance = noise**2 * steps_of_bin / (END_SHARE * num_steps)
    drift_variance = (DRIFT * mean) ** 2 * (1 - now / num_steps)
    deviation = math.sqrt(variance + noise_variance + drift_variance)
    return EndOfRun(mean * loss_now, deviation * loss_now)


def _mean_of_bins(
    steps: Int[np.ndarray, " losses"], losses: Float[np.ndarray, " losses"]
) -> tuple[Int[np.ndarray, " bins"], Float[np.ndarray, " bins"]]:
    """Return the middle step and the mean loss of up to `NUM_BINS` bins."""
    bin_steps = []
    bin_losses = []
    for indices in np.array_split(np.arange(len(steps)), min(NUM_BINS, len(steps))):
        bin_steps.append(round(steps[indices].mean()))
        bin_losses.append(losses[indices].mean())
    return np.array(bin_steps), np.array(bin_losses)


def _fit_exponents(
    bin_steps: Int[np.ndarray, " bins"],
    bin_losses: Float[np.ndarray, " bins"],
    rates: Float[np.ndarray, " steps"],
) -> tuple[list[FittedLaw], float]:
    """Fit the law with each pair of α and β.

    Args:
        bin_steps: the steps of the losses.
        bin_losses: losses relative to the loss now.
        rates: the learning rate of every step of the whole run, relative to the maximum.

    Returns:
        The fits, and the deviation of the noise of a bin: that of its fits, weighted by their evidence.
    """
    noise = float(np.std(np.diff(bin_losses))) / math.sqrt(2) + SMALLEST_NOISE
    fits = []
    summed_rates = np.cumsum(np.maximum(rates, SMALLEST_RATE))
    end_steps = np.linspace(len(rates) - math.ceil(END_SHARE * len(rates)) + 1, len(rates), MAX_END_STEPS)
    steps = np.concatenate([bin_steps, np.unique(np.rint(end_steps).astype(int))])
    for _ in range(NOISE_ROUNDS):
        fits = [
            _fit_law(exponents, bin_losses, summed_rates[steps - 1], rates[steps - 1], noise) for exponents in EXPONENTS
        ]
        weights = _evidence_weights(fits)
        noise = math.sqrt(weights @ np.array([fit.residual_variance for fit in fits])) + SMALLEST_NOISE
    return fits, noise


def _evidence_weights(fits: Sequence[FittedLaw]) -> Float[np.ndarray, " fits"]:
    """Return the probability of each fit, if all are equally likely before the losses are seen."""
    log_evidence = np.array([fit.log_evidence for fit in fits])
    weights = np.exp(log_evidence - log_evidence.max())
    return weights / weights.sum()


def _fit_law(
    exponents: tuple[float, float],
    bin_losses: Float[np.ndarray, " bins"],
    summed_rates: Float[np.ndarray, " bins_and_end"],
    rates: Float[np.ndarray, " bins_and_end"],
    noise: float,
) -> FittedLaw:
    """Fit the law with one pair of α and β and one deviation of the noise; see `_fit_exponents`.

    `summed_rates` and `rates` are those of the steps of the bins, and after these of steps at the end of the run.
    """
    alpha, beta = exponents
    num_bins = len(bin_losses)
    power = summed_rates**-alpha
    power /= power[0] - power[num_bins - 1]
    terms = np.stack([power, rates**beta], axis=1)
    # Relative to the end, the first unknown is the loss of the end.
    terms -= terms[num_bins:].mean(axis=0)
    inputs = np.column_stack([np.ones(num_bins), terms[:num_bins]])
    posterior = regress(inputs, bin_losses, PRIOR_MEAN, PRIOR_DEVIATION, noise)
    variance = float(posterior.covariance[0, 0])
    return FittedLaw(float(posterior.mean[0]), variance, posterior.log_evidence, posterior.residual_variance)
