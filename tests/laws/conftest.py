"""Points of Hoffmann et al. 2022, and the law fitted to them."""

from pathlib import Path

import pytest

from t5x_lite.laws.fit import Fit, fit_law
from t5x_lite.laws.parametric import Chinchilla
from t5x_lite.laws.points import Points
from tests.laws.known_law import read_chinchilla_points


@pytest.fixture(scope="session")
def chinchilla_points(real_data: Path) -> Points:
    return read_chinchilla_points(real_data)


@pytest.fixture(scope="session")
def chinchilla_fit(chinchilla_points: Points) -> Fit:
    return fit_law(Chinchilla(), chinchilla_points, 20)
