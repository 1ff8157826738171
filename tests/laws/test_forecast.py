"""The end of a curve from its beginning: curves of the published law, and what is not foretold."""

import json
from pathlib import Path

import numpy as np
import pytest

from t5x_lite.evaluate.report import draw_report
from t5x_lite.laws.forecast import annealing, forecast_loss

STEPS = 3000
RISING = np.minimum(np.arange(1, STEPS + 1) / 100, 1)
COSINE = RISING * (0.55 + 0.45 * np.cos(np.pi * np.arange(STEPS) / STEPS))
STABLE = RISING * np.minimum(1, (STEPS - np.arange(STEPS)) / (0.2 * STEPS))


def test_the_two_sums_are_their_definition() -> None:
    """Tissue et al. 2024, eq. 1, term by term."""
    rates = np.array([0.5, 1.0, 1.0, 0.8, 0.8, 0.2])
    first, second = annealing(2e-3 * rates)
    np.testing.assert_allclose(first, np.cumsum(rates))
    expected = [
        sum(max(rates[k - 1] - rates[k], 0) * 0.999 ** (i - k) for i in range(s + 1) for k in range(1, i + 1))
        for s in range(6)
    ]
    np.testing.assert_allclose(second, expected, atol=1e-8)


def curve(rates: np.ndarray, seed: int, noise: float = 0.02) -> tuple[list[dict[str, float]], float]:
    """A run of the law, its loss noisy from step to step as that of batches is."""
    first, second = annealing(rates)
    loss = 2.6 + 8 * first**-0.5 - 3e-4 * second
    noisy = loss * np.exp(noise * np.random.default_rng(seed).standard_normal(len(rates)))
    lines = [{"step": n + 1, "loss": value, "tokens": 64 * (n + 1)} for n, value in enumerate(noisy)]
    return lines, float(loss[-1])


@pytest.mark.parametrize(("rates", "seen"), [(COSINE, 0.6), (STABLE, 0.95), (RISING, 0.5)])
def test_the_interval_holds_the_end(rates: np.ndarray, seen: float) -> None:
    held, widths = 0, []
    for seed in range(10):
        lines, end = curve(rates, seed)
        found = forecast_loss(lines[: int(seen * STEPS)], rates)
        assert found["predicted/tokens"] == 64 * STEPS
        held += found["predicted/low"] <= end <= found["predicted/high"]
        widths.append((found["predicted/high"] - found["predicted/low"]) / end)
        assert found["predicted/loss"] == pytest.approx(end, rel=0.05)
    assert held >= 8  # of 10 draws of 0.95, fewer than 8 are seen in one of 87
    assert np.median(widths) < 0.15


def test_nothing_is_foretold_before_it_can_be() -> None:
    lines, _ = curve(STABLE, 0)
    assert forecast_loss(lines[: int(0.75 * STEPS)], STABLE) == {}  # the fall that ends the run has not begun
    assert forecast_loss(lines[:110], RISING) == {}
    assert forecast_loss([], RISING) == {}


def test_the_report_marks_the_foretold_end_of_a_run_that_is_not_there_yet(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines, _ = curve(COSINE, 0)
    so_far = lines[: STEPS // 2]
    so_far[-1] |= forecast_loss(so_far, COSINE)
    for line in so_far:
        line |= {"learning_rate": 0.1, "grad_norm": 1.0, "tokens_per_second": 5.0}
    marked: list[float] = []
    monkeypatch.setattr("matplotlib.axes.Axes.errorbar", lambda _, x, *more, **named: marked.append(x))
    for name, written in (("half", so_far), ("whole", [*so_far, so_far[0] | {"tokens": 64 * STEPS}])):
        (tmp_path / name).mkdir()
        (tmp_path / name / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in written))
        assert draw_report([tmp_path / name], tmp_path / f"{name}.png").is_file()
    assert marked == [64 * STEPS]
