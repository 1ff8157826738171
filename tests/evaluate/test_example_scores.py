"""Scores of examples and the metrics of tasks: against hand counts, scikit-learn and lm-evaluation-harness."""

import math

import numpy as np
import pytest

from t5x_lite.evaluate.calibration import calibration_error
from t5x_lite.evaluate.example_scores import compute_metrics, gather_scores, resample_metric, score_choices


def test_a_choice_between_two_is_scored_as_by_hand() -> None:
    """Log-likelihoods log 0.2 and log 0.6 are probabilities of 1/4 and 3/4."""
    log_likelihoods = [math.log(0.2), math.log(0.6)]
    right = score_choices(log_likelihoods, right=1, tokens=2)
    assert right == pytest.approx(
        {"correct": 1, "log_likelihood": math.log(0.6), "tokens": 2, "brier": 2 * 0.25**2, "confidence": 0.75}
    )
    wrong = score_choices(log_likelihoods, right=0)
    assert wrong == pytest.approx(
        {"correct": 0, "log_likelihood": math.log(0.2), "brier": 2 * 0.75**2, "confidence": 0.75}
    )


def test_brier_scores_are_those_of_the_harness() -> None:
    metrics = pytest.importorskip("lm_eval.api.metrics")
    rng = np.random.default_rng(0)
    logits = rng.normal(scale=3, size=(40, 4))
    right = rng.integers(4, size=40)
    probabilities = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    examples = [score_choices(row.tolist(), int(answer)) for row, answer in zip(logits, right, strict=True)]
    expected = metrics.brier_score(list(zip(right, probabilities, strict=True)))
    assert compute_metrics(gather_scores(examples))["brier"] == pytest.approx(expected)


def test_metrics_are_means_over_the_examples() -> None:
    examples = [
        {"correct": 1.0, "log_likelihood": -1.0, "tokens": 2.0},
        {"correct": 0.0, "log_likelihood": -6.0, "tokens": 3.0},
    ]
    assert compute_metrics(gather_scores(examples)) == pytest.approx(
        {
            "accuracy": 0.5,
            "log_likelihood": -3.5,
            "log_likelihood_per_token": (-0.5 - 2.0) / 2,
            "probability": (math.exp(-1) + math.exp(-6)) / 2,
        }
    )


def test_the_calibration_error_is_guo_s_sum_over_bins() -> None:
    rng = np.random.default_rng(1)
    confidence = rng.uniform(size=(3, 200))
    is_correct = rng.uniform(size=(3, 200)) < confidence**2
    for row, correct, error in zip(confidence, is_correct, calibration_error(confidence, is_correct), strict=True):
        expected = 0.0
        for number in range(15):
            in_bin = (row > number / 15) & (row <= (number + 1) / 15)
            if in_bin.any():
                expected += in_bin.sum() / 200 * abs(correct[in_bin].mean() - row[in_bin].mean())
        assert error == pytest.approx(expected)


def test_the_bootstrap_has_the_standard_error_of_a_mean() -> None:
    values = np.random.default_rng(2).normal(size=400)
    samples = resample_metric("log_likelihood", {"log_likelihood": values}, draws=2000, seed=0)
    assert samples.shape == (2000,)
    assert samples.mean() == pytest.approx(values.mean(), abs=0.01)
    assert samples.std() == pytest.approx(values.std() / math.sqrt(400), rel=0.1)
