"""Goodput: the share of a run's time that went into steps."""

from pathlib import Path

import pytest

from t5x_lite.train.goodput import Goodput


def test_goodput_is_the_share_of_steps_over_all_starts(tmp_path: Path) -> None:
    first_start = Goodput(tmp_path, writes=True)
    first_start.seconds |= {"compile": 10.0, "step": 80.0, "checkpoint": 10.0}
    first_start.save()
    assert first_start.metrics()["goodput"] == pytest.approx(0.8)
    second_start = Goodput(tmp_path, writes=True)
    second_start.add_lost(30.0)
    with second_start.measure("evaluation"):
        pass
    metrics = second_start.metrics()
    assert metrics["goodput"] == pytest.approx(0.5, abs=1e-4)
    assert metrics["goodput/lost_seconds"] == 30.0
    assert "compile 10.0 s" in second_start.summary()
