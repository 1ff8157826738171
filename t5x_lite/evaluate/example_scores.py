"""Scores of the single examples of a task, and the metrics of the task that are computed from them.

In records of `RUN/eval/STEP` they are under `scores`, as far as the task has them:

* `correct`: 1 if the answer is right: the choice with the highest likelihood, or a text that matches exactly;
* `log_likelihood`: of the right answer given the prompt, in nats, and `tokens`, its number of tokens;
* `brier` and `confidence`: of tasks with choices, from the softmax over the log-likelihoods of the choices.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from jaxtyping import Float

from t5x_lite.evaluate.calibration import calibration_error

Scores: TypeAlias = dict[str, float]
"""The scores of one example by name."""
ExampleScores: TypeAlias = dict[str, Float[np.ndarray, " examples"]]
"""The scores of all examples by name, in the order of the task."""


@dataclass(frozen=True)
class ExampleMetric:
    """A metric of a task.

    Attributes:
        title: name for people.
        scores: the scores of examples that it needs.
        sign: 1 if higher is better, -1 if lower is better.
        compute: returns the metric of some examples, which are the last axis.
    """

    title: str
    scores: tuple[str, ...]
    sign: int
    compute: Callable[..., np.ndarray]


def score_choices(log_likelihoods: Sequence[float], right: int, tokens: int | None = None) -> Scores:
    """Return the scores of an example with choices, of which one is right.

    The Brier score is the sum over the choices of the squared difference of probability and truth (Brier 1950), from 0
    to 2, as in lm-evaluation-harness.

    Args:
        log_likelihoods: of each choice, in nats.
        right: number of the right choice.
        tokens: of the right choice; None if they are not counted.
    """
    logits = np.array(log_likelihoods, np.float64)
    unnormalised = np.exp(logits - logits.max())
    probabilities = unnormalised / unnormalised.sum()
    truth = np.arange(len(logits)) == right
    scores = {
        "correct": float(logits.argmax() == right),
        "log_likelihood": float(logits[right]),
        "brier": float(np.sum((probabilities - truth) ** 2)),
        "confidence": float(probabilities.max()),
    }
    if tokens is not None:
        scores["tokens"] = float(tokens)
    return scores


def read_scores(records: Iterable[Mapping[str, Any]]) -> list[Scores]:
    """Return the scores of the records that have some."""
    return [record["scores"] for record in records if record.get("scores")]


def gather_scores(examples: Iterable[Mapping[str, float]]) -> ExampleScores:
    """Return the scores that all examples have, as arrays."""
    records = list(examples)
    names = [name for name in SCORES if records and all(name in record for record in records)]
    return {name: np.array([record[name] for record in records], np.float64) for name in names}


def compute_metrics(scores: ExampleScores) -> dict[str, float]:
    """Return every metric of `EXAMPLE_METRICS` for which the examples have the scores."""
    return {name: compute_metric(name, scores) for name in available_metrics(scores)}


def available_metrics(scores: ExampleScores) -> list[str]:
    """Return the metrics for which the examples have the scores."""
    return [name for name, metric in EXAMPLE_METRICS.items() if set(metric.scores) <= scores.keys()]


def compute_metric(name: str, scores: ExampleScores) -> float:
    """Return a metric."""
    metric = EXAMPLE_METRICS[name]
    return float(metric.compute(*(scores[needed] for needed in metric.scores)))


def resample_metric(name: str, scores: ExampleScores, draws: int, seed: int) -> Float[np.ndarray, " draws"]:
    """Return a metric of bootstrap samples of the examples.

    The same examples are drawn for every run with as many of them, so that the differences of runs are those on the
    same examples.
    """
    metric = EXAMPLE_METRICS[name]
    arrays = [scores[needed] for needed in metric.scores]
    size = len(arrays[0])
    rng = np.random.default_rng(seed)
    values = []
    for start in range(0, draws, DRAWS_AT_ONCE):
        drawn = rng.integers(size, size=(min(DRAWS_AT_ONCE, draws - start), size))
        values.append(metric.compute(*(array[drawn] for array in arrays)))
    return np.concatenate(values)


def _mean(values: Float[np.ndarray, "*draws n"]) -> Float[np.ndarray, "*draws"]:
    return np.mean(values, axis=-1)


def _mean_per_token(
    log_likelihood: Float[np.ndarray, "*draws n"], tokens: Float[np.ndarray, "*draws n"]
) -> Float[np.ndarray, "*draws"]:
    return np.mean(log_likelihood / np.maximum(tokens, 1), axis=-1)


def _mean_probability(log_likelihood: Float[np.ndarray, "*draws n"]) -> Float[np.ndarray, "*draws"]:
    return np.mean(np.exp(log_likelihood), axis=-1)


def _calibration_error(
    confidence: Float[np.ndarray, "*draws n"], correct: Float[np.ndarray, "*draws n"]
) -> Float[np.ndarray, "*draws"]:
    return calibration_error(confidence, correct > 0)


DRAWS_AT_ONCE = 100
"""Bootstrap samples that are in memory at one time."""
SCORES = ("correct", "log_likelihood", "tokens", "brier", "confidence")
EXAMPLE_METRICS: dict[str, ExampleMetric] = {
    "accuracy": ExampleMetric("accuracy", ("correct",), 1, _mean),
    "log_likelihood": ExampleMetric("log-likelihood of the answer (nats)", ("log_likelihood",), 1, _mean),
    "log_likelihood_per_token": ExampleMetric(
        "log-likelihood per token (nats)", ("log_likelihood", "tokens"), 1, _mean_per_token
    ),
    "probability": ExampleMetric("probability of the answer", ("log_likelihood",), 1, _mean_probability),
    "brier": ExampleMetric("Brier score", ("brier",), -1, _mean),
    "ece": ExampleMetric("expected calibration error", ("confidence", "correct"), -1, _calibration_error),
}
"""Metrics of tasks by the last part of their names, such as `eval/<task>/brier`."""
