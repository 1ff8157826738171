"""Sweep files for the tests."""

from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from t5x_lite.sweep.config import Sweep, load

SweepFactory = Callable[..., Sweep]


@pytest.fixture
def make_sweep(tmp_path: Path, tiny_config: Path) -> SweepFactory:
    """A function that writes `grid.yaml` with some settings and loads it."""

    def make(**settings: object) -> Sweep:
        path = tmp_path / "grid.yaml"
        path.write_text(yaml.safe_dump({"config": str(tiny_config), "dir": str(tmp_path / "sweep"), **settings}))
        return load(path)

    return make


@pytest.fixture
def sweep(make_sweep: SweepFactory) -> Sweep:
    """Three runs, two at the same time."""
    return make_sweep(axes={"rate": {"optimizer.learning_rate": [0.1, 0.2, 0.3]}}, jobs=2, retries=1)
