"""Forecasts of runs that follow the published law, and when there is no forecast."""

import json
from pathlib import Path

import numpy as np
import pytest

from t5x_lite.evaluate.report import draw_report, pending_forecast
from t5x_lite.laws.forecast import annealing_sums, forecast_loss

STEPS = 3000
WARMUP = np.minimum(np.arange(1, STEPS + 1) / 100, 1)
"""Learning rates of a warm-up and a stable phase."""
COSINE = WARMUP * (0.55 + 0.45 * np.cos(np.pi * np.arange(STEPS) / STEPS))
STABLE_DECAY = WARMUP * np.minimum(1, (STEPS - np.arange(STEPS)) / (0.2 * STEPS))


def test_the_two_sums_equal_their_definition() -> None:
    """Tissue et al. 2024, eq. 1, term by term."""
    rates = np.array([0.5, 1.0, 1.0, 0.8, 0.8, 0.2])
    sum_1, sum_2 = annealing_sums(2e-3 * rates)
    np.testing.assert_allclose(sum_1, np.cumsum(rates))
    expected = []
    for last_step in range(6):
        total = 0.0
        for step in range(last_step + 1):
            for earlier in range(1, step + 1):
                decrease = max(rates[earlier - 1] - rates[earlier], 0)
                total += decrease * 0.999 ** (step - earlier)
        expected.append(total)
    np.testing.assert_allclose(sum_2, expected, atol=1e-8)


def simulate_run(learning_rates: np.ndarray, seed: int, noise: float = 0.02) -> tuple[list[dict[str, float]], float]:
    """Metrics of a run that follows the law, with noise as from batch to batch, and its final loss without noise."""
    sum_1, sum_2 = annealing_sums(learning_rates)
    loss = 2.6 + 8 * sum_1**-0.5 - 3e-4 * sum_2
    noisy_loss = loss * np.exp(noise * np.random.default_rng(seed).standard_normal(len(learning_rates)))
    records = []
    for step, value in enumerate(noisy_loss, start=1):
        records.append({"step": step, "loss": value, "tokens": 64 * step})
    return records, float(loss[-1])


@pytest.mark.parametrize(("rates", "share_seen"), [(COSINE, 0.6), (STABLE_DECAY, 0.95), (WARMUP, 0.5)])
def test_the_interval_contains_the_final_loss(rates: np.ndarray, share_seen: float) -> None:
    num_contained = 0
    widths = []
    for seed in range(10):
        records, final_loss = simulate_run(rates, seed)
        forecast = forecast_loss(records[: int(share_seen * STEPS)], rates)
        assert forecast["predicted/tokens"] == 64 * STEPS
        num_contained += forecast["predicted/low"] <= final_loss <= forecast["predicted/high"]
        widths.append((forecast["predicted/high"] - forecast["predicted/low"]) / final_loss)
        assert forecast["predicted/loss"] == pytest.approx(final_loss, rel=0.05)
    assert num_contained >= 8  # of 10 intervals of 95 %, fewer than 8 contain it in one case of 87
    assert np.median(widths) < 0.15


def test_there_is_no_forecast_before_enough_of_the_run_is_seen() -> None:
    records, _ = simulate_run(STABLE_DECAY, 0)
    assert forecast_loss(records[: int(0.75 * STEPS)], STABLE_DECAY) == {}  # the final decay has not begun
    assert forecast_loss(records[:110], WARMUP) == {}
    assert forecast_loss([], WARMUP) == {}


def test_the_report_marks_the_forecast_only_of_a_run_that_has_not_ended(tmp_path: Path) -> None:
    records, _ = simulate_run(COSINE, 0)
    first_half = records[: STEPS // 2]
    first_half[-1] |= forecast_loss(first_half, COSINE)
    for record in first_half:
        record |= {"learning_rate": 0.1, "grad_norm": 1.0, "tokens_per_second": 5.0}
    ended = [*first_half, {**first_half[0], "tokens": 64 * STEPS}]
    forecast = pending_forecast(first_half)
    assert forecast is not None
    assert forecast["predicted/tokens"] == 64 * STEPS
    assert pending_forecast(ended) is None
    label = f"forecast of the end: {forecast['predicted/loss']:.3f}"
    for name, run_records, is_marked in (("in_progress", first_half, True), ("ended", ended, False)):
        run_dir = tmp_path / name
        run_dir.mkdir()
        (run_dir / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in run_records))
        report = draw_report([run_dir], tmp_path / f"{name}.svg")
        # Matplotlib writes every text of an SVG file into a comment.
        assert (label in report.read_text()) == is_marked
