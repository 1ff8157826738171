"""Studies of published points, and points that do not determine a law."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from t5x_lite.errors import UserError
from t5x_lite.laws.compute_optimal import TrainingCost, optimal_parameters
from t5x_lite.laws.fit import NotFitted
from t5x_lite.laws.points import Points
from t5x_lite.laws.training_curves import TrainingCurve
from t5x_lite.sweep.points import SweepPoints
from t5x_lite.sweep.report import build_report
from t5x_lite.sweep.study import run_study
from tests.laws.known_law import (
    besiroglu_constants,
    besiroglu_loss,
    build_points,
    isoflop_runs,
    read_chinchilla_points,
)


@pytest.mark.slow
def test_the_best_run_for_chinchillas_budget_has_about_its_size(real_data: Path) -> None:
    """Hoffmann et al. 2022, table 3: 67 B for 5.76e23 FLOPs by approach 1, 63 B by approach 2.

    The law of Besiroglu et al. 2024 predicts about the same.
    """
    study = run_study(SweepPoints(read_chinchilla_points(real_data), [], {}), draws=50)
    report = build_report(study, 5.76e23, (70e9, 1.4e12))
    for approach in ("IsoFLOP parabolas", "L(N, D)"):
        prediction = report.predictions[approach]
        assert not isinstance(prediction, NotFitted)
        assert prediction["parameters"].value == pytest.approx(67e9, rel=0.15)
    expected_loss = besiroglu_loss(70e9, 1.4e12)
    assert report.run is not None
    assert report.run.loss.value == pytest.approx(expected_loss, rel=0.005)
    low, high = report.run.loss.interval
    assert low < expected_loss < high
    assert optimal_parameters(besiroglu_constants(), 5.76e23, TrainingCost())[0] == pytest.approx(67e9, rel=0.15)


@pytest.mark.parametrize(
    ("choose", "message"),
    [
        (lambda points: points.budget == points.budget[0], "have one value of N|two values|too few"),
        (lambda points: np.arange(len(points)) < 5, "5 points are too few"),
        (lambda points: np.isclose(points.parameters, points.parameters[0]), "too few"),
    ],
)
def test_too_few_points_are_refused(choose: Callable[[Points], np.ndarray], message: str) -> None:
    points = isoflop_runs(0)
    with pytest.raises(UserError, match=message):
        run_study(SweepPoints(points.select(choose(points)), [], {}), draws=2)


def test_training_curves_of_models_with_experts_do_not_move_the_frontier_of_dense_ones() -> None:
    points = isoflop_runs(0)
    curves = []
    for parameters in np.unique(points.parameters):
        tokens = np.geomspace(1e8, 1e11, 40)
        loss = np.asarray(besiroglu_loss(parameters, tokens))
        for experts, gain in ((1.0, 1.0), (8.0, 0.5)):
            name = f"{parameters}-{experts}"
            curves.append(TrainingCurve(name, parameters, 6 * parameters * tokens, tokens, gain * loss, experts))
    dense = [curve for curve in curves if curve.experts == 1]
    studies = [run_study(SweepPoints(points, chosen, {}), draws=2) for chosen in (dense, curves)]
    frontiers = [study.frontiers["training curves"] for study in studies]
    assert not isinstance(frontiers[0], NotFitted)
    assert not isinstance(frontiers[1], NotFitted)
    np.testing.assert_array_equal(frontiers[0].lines, frontiers[1].lines)


def test_points_of_one_size_or_of_one_token_count_are_refused() -> None:
    equal = np.full(8, 1e8)
    different = np.geomspace(1e9, 1e10, 8)
    loss = 3 + 1 / different
    with pytest.raises(UserError, match="one value of N, parameters"):
        run_study(SweepPoints(build_points(equal, different, loss), [], {}))
    with pytest.raises(UserError, match="one value of D, tokens"):
        run_study(SweepPoints(build_points(different, equal, loss), [], {}))
