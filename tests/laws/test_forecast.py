"""Forecasts of recorded runs and of runs that follow the published law, and when there is no forecast."""

import json
from pathlib import Path

import numpy as np
import pytest

from t5x_lite.evaluate.report import draw_report, pending_forecast
from t5x_lite.laws.forecast import CONFORMAL_FACTOR, MAX_HALF_WIDTH, forecast_loss
from tests.laws.recorded_curves import CALIBRATION, HELD_OUT, SHARES, conformal_factor

STEPS = 30000
WARMUP = np.minimum(np.arange(1, STEPS + 1) / 500, 1)
"""Learning rates of a warm-up and a stable phase."""
COSINE = WARMUP * (0.55 + 0.45 * np.cos(np.pi * np.arange(STEPS) / STEPS))
STABLE_DECAY = WARMUP * np.minimum(1, (STEPS - np.arange(STEPS)) / (0.2 * STEPS))


def test_the_factor_is_that_of_the_runs_for_calibration_rounded_up() -> None:
    assert CONFORMAL_FACTOR - 0.25 < conformal_factor(CALIBRATION) <= CONFORMAL_FACTOR


def test_all_quickstarts_and_the_sweep_are_among_the_runs_that_did_not_calibrate_the_interval() -> None:
    names = [curve.name for curve in HELD_OUT]
    for config in ("quickstart", "quickstart_t5", "quickstart_bert", "quickstart_local", "quickstart_moe", "sweep"):
        assert any(name.startswith(f"{config}_") for name in names), config
    assert {"quickstart_0", "quickstart_t5_0", "quickstart_bert_0", "sweep_trunk_96_0"} <= set(names)  # in full size
    assert len(CALIBRATION) + len(HELD_OUT) > 70
    assert len(HELD_OUT) > 30


def test_intervals_contain_the_end_of_95_of_100_runs_that_did_not_calibrate_them() -> None:
    are_right = []
    shown_are_right = []
    for curve in HELD_OUT:
        forecasts = curve.forecasts()
        are_right.append(all(forecast.is_right for forecast in forecasts))
        shown_are_right.extend(forecast.is_right for forecast in forecasts if forecast.is_shown)
    assert np.mean(are_right) >= 0.95
    assert np.mean(shown_are_right) >= 0.95
    assert len(HELD_OUT) / 2 < len(shown_are_right) < 3 * len(HELD_OUT)


def test_forecasts_improve_during_a_run() -> None:
    errors = []
    half_widths = []
    for share in SHARES:
        forecasts = [curve.forecast(share) for curve in HELD_OUT]
        errors.append(np.mean([abs(forecast.error) for forecast in forecasts if forecast]))
        half_widths.append(np.median([forecast.half_width for forecast in forecasts if forecast]))
    assert np.all(np.diff(half_widths) < 0)
    assert half_widths[-1] < MAX_HALF_WIDTH  # silence would be right too, and of no use
    assert errors[-1] < errors[0] / 2


def test_an_interval_is_shown_only_if_it_is_narrow() -> None:
    for curve in HELD_OUT:
        for share in SHARES:
            forecast = curve.forecast(share)
            shown = forecast_loss(curve.records(share), curve.learning_rates)
            assert bool(shown) == (forecast is not None and forecast.is_shown)
            if shown:
                loss = shown["predicted/loss"]
                assert shown["predicted/low"] >= (1 - MAX_HALF_WIDTH) * loss
                assert shown["predicted/high"] <= (1 + MAX_HALF_WIDTH) * loss
                assert shown["predicted/tokens"] == pytest.approx(64 * len(curve.learning_rates))


def simulate_run(learning_rates: np.ndarray, seed: int, noise: float = 0.02) -> tuple[list[dict[str, float]], float]:
    """Metrics of a run that follows L0 + A·S1^-α - C·S2 (Tissue et al. 2024, eq. 1) with noise as from batch to batch,
    and the mean loss of its last tenth without noise.
    """
    decrease = np.maximum(-np.diff(learning_rates, prepend=learning_rates[0]), 0)
    momentum = np.zeros(len(learning_rates))
    for step in range(1, len(learning_rates)):
        momentum[step] = 0.999 * momentum[step - 1] + decrease[step]
    loss = 2.6 + 8 * np.cumsum(learning_rates) ** -0.5 - 1e-4 * np.cumsum(momentum)
    noisy_loss = loss * np.exp(noise * np.random.default_rng(seed).standard_normal(len(learning_rates)))
    records = []
    for step, value in enumerate(noisy_loss, start=1):
        records.append({"step": step, "loss": value, "tokens": 64 * step})
    return records, float(loss[-len(loss) // 10 :].mean())


@pytest.mark.parametrize(("rates", "share"), [(COSINE, 0.5), (STABLE_DECAY, 0.95), (WARMUP, 0.5)])
def test_runs_that_follow_the_published_law_are_forecast_to_two_hundredths(rates: np.ndarray, share: float) -> None:
    for seed in range(3):
        records, end = simulate_run(rates, seed)
        forecast = forecast_loss(records[: int(share * STEPS)], rates)
        assert forecast["predicted/low"] <= end <= forecast["predicted/high"]
        assert forecast["predicted/loss"] == pytest.approx(end, rel=0.02)
        assert forecast["predicted/high"] - forecast["predicted/low"] < 0.1 * end


def test_there_is_no_forecast_while_the_end_is_not_determined() -> None:
    records, _ = simulate_run(STABLE_DECAY, 0)
    assert forecast_loss(records[: int(0.75 * STEPS)], STABLE_DECAY) == {}  # the decay, which has not begun, decides
    assert forecast_loss(records[: int(0.29 * STEPS)], WARMUP) == {}
    assert forecast_loss(records[: STEPS // 2 : 2000], WARMUP) == {}  # seven losses
    assert forecast_loss([], WARMUP) == {}
    noisy_records, _ = simulate_run(COSINE, 0, noise=2.0)
    assert forecast_loss(noisy_records[: STEPS // 2], COSINE) == {}


def test_lines_without_a_loss_and_damaged_lines_are_left_out() -> None:
    """Their loss is null if it was not finite, and 0 if the batch had nothing to predict."""
    records, _ = simulate_run(COSINE, 0)
    first_half = records[: STEPS // 2]
    without_loss = [{**records[0], "loss": None}, {**records[1], "loss": 0.0}]
    damaged = [{"step": 3}, {"step": "4", "loss": 2.0, "tokens": 1}, {"step": STEPS + 1, "loss": 2.0, "tokens": 1}]
    expected = forecast_loss(first_half[2:], COSINE)
    assert expected
    assert forecast_loss([*without_loss, *damaged, *first_half[2:]], COSINE) == expected


def test_rates_of_zero_are_no_error() -> None:
    """A warm-up may begin with them, and nothing is learnt while there are no others."""
    records, _ = simulate_run(WARMUP, 0)
    first_half = records[: STEPS // 2]
    from_zero = np.concatenate([[0.0], WARMUP[1:]])
    assert forecast_loss(first_half, from_zero)["predicted/loss"] == pytest.approx(
        forecast_loss(first_half, WARMUP)["predicted/loss"], rel=1e-3
    )
    without_progress = np.concatenate([WARMUP[: STEPS // 4], np.zeros(3 * STEPS // 4)])
    assert forecast_loss(first_half[STEPS // 4 :], without_progress) == {}


def test_the_report_marks_the_forecast_only_of_a_run_that_has_not_ended(tmp_path: Path) -> None:
    rates = COSINE[:: STEPS // 3000]
    records, _ = simulate_run(rates, 0)
    first_part = records[:1800]
    first_part[-1] |= forecast_loss(first_part, rates)
    for record in first_part:
        record |= {"learning_rate": 0.1, "grad_norm": 1.0, "tokens_per_second": 5.0}
    ended = [*first_part, {**first_part[0], "tokens": 64 * 3000}]
    forecast = pending_forecast(first_part)
    assert forecast is not None
    assert forecast["predicted/tokens"] == 64 * 3000
    assert pending_forecast(ended) is None
    label = f"forecast of the last tenth's mean: {forecast['predicted/loss']:.3f}"
    for name, run_records, is_marked in (("in_progress", first_part, True), ("ended", ended, False)):
        run_dir = tmp_path / name
        run_dir.mkdir()
        (run_dir / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in run_records))
        report = draw_report([run_dir], tmp_path / f"{name}.svg")
        # Matplotlib writes every text of an SVG file into a comment.
        assert (label in report.read_text()) == is_marked
