"""The results of a study, as `law.json` and the printed tables hold them."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from jaxtyping import Float

from t5x_lite.errors import UserError
from t5x_lite.laws.compute_optimal import Frontier, TrainingCost
from t5x_lite.laws.estimates import Estimate, estimate_each
from t5x_lite.laws.fit import Fit, NotFitted, fit_law
from t5x_lite.laws.points import check_points
from t5x_lite.sweep.study import Study

MAX_OPTIMA = 50
"""Optima of each frontier that the report lists."""


@dataclass(frozen=True)
class HeldOut:
    """The law fitted without the largest size or budget, and its errors there.

    Attributes:
        value: the size or the budget.
        points: how many runs have it.
        measured: their loss.
        predicted: their loss by the law.
        relative_error: predicted / measured - 1.
        largest_error: the largest absolute relative error.
        mean_error: the mean absolute relative error.
    """

    value: float
    points: int
    measured: Float[np.ndarray, " n"]
    predicted: Float[np.ndarray, " n"]
    relative_error: Float[np.ndarray, " n"]
    largest_error: float
    mean_error: float


@dataclass(frozen=True)
class RunPrediction:
    """The loss of a run of N parameters and D tokens."""

    parameters: float
    tokens: float
    loss: Estimate


@dataclass(frozen=True)
class Report:
    """The results of a study.

    Attributes:
        num_points: fitted points.
        left_out: why each other run was left out, by its name.
        cost: C by N and D.
        parametric: the fit of L(N, D).
        laws: every law, by name.
        frontiers: every approach to the compute-optimal frontier, by name.
        flops: the budget of the prediction.
        optimal_parameters: N of the best run for that budget, by L(N, D).
        predictions: best N and D for the budget by each approach and, by L(N, D), the loss.
        held_out: predictions of the largest size and the largest budget.
        run: the run to predict, if there is one.
    """

    num_points: int
    left_out: Mapping[str, str]
    cost: TrainingCost
    parametric: Fit
    laws: Mapping[str, Fit | NotFitted]
    frontiers: Mapping[str, Frontier | NotFitted]
    flops: float
    optimal_parameters: float
    predictions: Mapping[str, Mapping[str, Estimate] | NotFitted]
    held_out: Mapping[str, HeldOut | NotFitted]
    run: RunPrediction | None

    def to_json(self) -> dict[str, Any]:
        """Return the report as JSON values: lists for arrays, null for numbers that are not finite."""
        predictions = {name: _to_plain(prediction) for name, prediction in self.predictions.items()}
        report = {
            "points": self.num_points,
            "left_out": dict(self.left_out),
            "cost": {"kappa": self.cost.kappa, "gamma": self.cost.gamma, "formula": "C = kappa·N^(1+gamma)·D"},
            "laws": {name: _describe_law(law) for name, law in self.laws.items()},
            "compute_optimal_exponents": {name: _describe_frontier(line) for name, line in self.frontiers.items()},
            "prediction": {"flops": self.flops, **predictions},
            "held_out": {name: _to_plain(held_out) for name, held_out in self.held_out.items()},
            "runs": _describe_runs(self.parametric),
        }
        if self.run is not None:
            report["run"] = asdict(self.run)
        text = json.dumps(report, default=np.ndarray.tolist)
        return json.loads(text, parse_constant=lambda _: None)


def build_report(study: Study, flops: float | None, run: Sequence[float] | None) -> Report:
    """Compute the results of a study.

    Args:
        study: the fits.
        flops: the budget to predict the best run for; None takes ten times the most expensive run.
        run: N and D of a run to predict the loss of.
    """
    parametric = study.parametric
    points = parametric.points
    if flops is None:
        flops = 10 * float(points.flops.max())
    budgets = np.where(points.budget > 0, points.budget, points.flops)
    optimal_sizes, _ = study.law_frontier.predict(flops)
    return Report(
        num_points=len(study.sweep_points.points),
        left_out=study.sweep_points.left_out,
        cost=study.cost,
        parametric=parametric,
        laws={parametric.law.name: parametric, **study.other_laws},
        frontiers=study.frontiers,
        flops=flops,
        optimal_parameters=float(optimal_sizes[0]),
        predictions=_predict_sizes(study, flops),
        held_out={"size": _hold_out(parametric, points.parameters), "budget": _hold_out(parametric, budgets)},
        run=_predict_run(parametric, run),
    )


def frontier_exponents(frontier: Frontier) -> dict[str, Estimate]:
    """Return a and b of N ∝ C^a and D ∝ C^b."""
    exponents = [1, 3]
    return estimate_each(
        ("a", "b"),
        frontier.lines[exponents],
        frontier.bootstrap[:, exponents],
        frontier.num_points,
        frontier.num_unknowns,
    )


def _predict_sizes(study: Study, flops: float) -> dict[str, Mapping[str, Estimate] | NotFitted]:
    predictions: dict[str, Mapping[str, Estimate] | NotFitted] = {}
    for name, frontier in study.frontiers.items():
        if isinstance(frontier, NotFitted):
            predictions[name] = frontier
            continue
        sizes, samples = frontier.predict(flops)
        estimates = estimate_each(("parameters", "tokens"), sizes, samples, frontier.num_points, frontier.num_unknowns)
        if frontier is study.law_frontier:
            loss, loss_samples = study.lowest_loss(flops)
            estimates["loss"] = _estimate_loss(study.parametric, loss, loss_samples)
        predictions[name] = estimates
    return predictions


def _estimate_loss(fit: Fit, loss: Float[np.ndarray, " 1"], samples: Float[np.ndarray, "draws 1"]) -> Estimate:
    return estimate_each(("loss",), loss, samples, len(fit.points), len(fit.theta))["loss"]


def _predict_run(fit: Fit, run: Sequence[float] | None) -> RunPrediction | None:
    if run is None:
        return None
    parameters, tokens = run
    loss, samples = fit.predict_loss(np.array([parameters]), np.array([tokens]))
    return RunPrediction(parameters, tokens, _estimate_loss(fit, loss, samples))


def _hold_out(fit: Fit, values: Float[np.ndarray, " n"]) -> HeldOut | NotFitted:
    """Fit the law without the runs that have the largest of the values, and compare it with these."""
    is_largest = np.log(values) > np.log(values.max()) - 1e-3
    others = fit.points.select(~is_largest)
    try:
        check_points(others)
    except UserError as error:
        return NotFitted(str(error))
    largest = fit.points.select(is_largest)
    predicted, _ = fit_law(fit.law, others, draws=0).predict_loss(largest.parameters, largest.tokens)
    relative_error = predicted / largest.loss - 1
    return HeldOut(
        value=float(values.max()),
        points=len(largest),
        measured=largest.loss,
        predicted=predicted,
        relative_error=relative_error,
        largest_error=float(np.abs(relative_error).max()),
        mean_error=float(np.abs(relative_error).mean()),
    )


def _to_plain(value: HeldOut | NotFitted | Mapping[str, Estimate]) -> dict[str, Any]:
    if isinstance(value, NotFitted):
        return {"not_fitted": value.reason}
    if isinstance(value, HeldOut):
        return asdict(value)
    return {name: asdict(estimate) for name, estimate in value.items()}


def _describe_law(fit: Fit | NotFitted) -> dict[str, Any]:
    if isinstance(fit, NotFitted):
        return _to_plain(fit)
    return {
        "formula": fit.law.formula,
        "constants": _to_plain(fit.constants()),
        "objective": fit.objective,
        "points": len(fit.points),
        "largest_residual": float(np.abs(fit.residuals).max()),
    }


def _describe_frontier(frontier: Frontier | NotFitted) -> dict[str, Any]:
    if isinstance(frontier, NotFitted):
        return _to_plain(frontier)
    optima = []
    for flops, parameters, tokens in frontier.optima[:MAX_OPTIMA].tolist():
        optima.append({"flops": flops, "parameters": parameters, "tokens": tokens})
    return {**_to_plain(frontier_exponents(frontier)), "points": optima}


def _describe_runs(fit: Fit) -> list[dict[str, Any]]:
    points = fit.points
    residuals = fit.residuals
    runs = []
    for index, name in enumerate(points.names):
        run = {
            "name": name,
            "parameters": points.parameters[index],
            "tokens": points.tokens[index],
            "flops": points.flops[index],
            "loss": points.loss[index],
            "residual": residuals[index],
        }
        runs.append(run)
    return runs
