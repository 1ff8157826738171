"""`t5x-lite sweep fit`: every law and approach that the points allow, and what they predict, as tables and JSON."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from rich.console import Console

from t5x_lite.errors import UserError
from t5x_lite.laws.law import Chinchilla, Clark, Cost, Fit, Kaplan, Power, check, fit, named
from t5x_lite.progress import print_line, print_table
from t5x_lite.sweep import frontier
from t5x_lite.sweep.frontier import Frontier, Parabola
from t5x_lite.sweep.points import SweepPoints


@dataclass(frozen=True)
class Study:
    """Points, and all that was fitted to them; in place of what cannot be had stands the reason."""

    found: SweepPoints
    parametric: Fit
    others: dict[str, Fit | str]
    parabolas: Sequence[Parabola]
    frontiers: dict[str, Frontier | str]
    line: Frontier
    cost: Cost

    def least(self, flops: float) -> tuple[np.ndarray, np.ndarray]:
        """The least loss that a budget pays for by L(N, D) `[1]`, and by every draw `[draws, 1]`."""
        sizes = np.log(np.vstack(self.line.at(flops)))
        every = np.vstack([self.parametric.theta, self.parametric.drawn])
        loss = np.exp(self.parametric.law.log_loss(every, sizes.T[..., None])[0])
        return loss[0], loss[1:]


def study(found: SweepPoints, draws: int = 1000, drop_highest: int = 0) -> Study:
    """Fit everything.

    Args:
        found: the points.
        draws: of each bootstrap.
        drop_highest: as many points of the highest loss are left out.

    Raises:
        UserError: too few points, or a degenerate grid.
    """
    points = found.points
    if drop_highest:
        order = np.argsort(points.loss)
        high = f"is among the {drop_highest} highest"
        out = {points.names[n]: f"loss {points.loss[n]:.4g} {high}" for n in order[-drop_highest:]}
        points = points.where(np.sort(order[:-drop_highest]))
        found = SweepPoints(points, found.curves, {**found.left_out, **out})
    check(points)
    dense = points.where(points.experts == points.experts.min())
    check(dense)
    others: dict[str, Fit | str] = {}
    for power in map(Power, "NDC"):
        best = points.where(power.frontier(points))
        enough = len(best.loss) >= 3
        others[power.name] = fit(power, best, draws) if enough else f"only {len(best.loss)} runs that no smaller beats"
    others[Kaplan.name] = fit(Kaplan(), dense, draws)
    if (counts := len(np.unique(points.experts))) > 1:
        enough = counts >= 3 and len(points.loss) >= 8
        others[Clark.name] = fit(Clark(), points, draws) if enough else "needs 3 numbers of experts and 8 points"
    drawn = frontier.parabolas(dense)
    frontiers = {
        "training curves": frontier.by_curves(found.curves, draws),
        "IsoFLOP parabolas": frontier.by_parabolas(dense, drawn, draws),
    }
    cost, parametric = Cost.of(dense), fit(Chinchilla(), dense, draws)
    line = frontiers[parametric.law.name] = frontier.by_law(parametric, cost)
    return Study(found, parametric, others, drawn, frontiers, line, cost)


def report(own: Study, flops: float | None, run: Sequence[float] | None) -> dict[str, Any]:
    """All of a study as JSON values; a prediction for a budget (ten times the largest if none) and for a run (N, D)."""
    points = own.parametric.points
    count, unknowns = len(points.loss), len(own.parametric.theta)
    budgets = np.where(points.budget > 0, points.budget, points.flops)
    flops = flops or 10 * float(points.flops.max())
    at: dict[str, Any] = {"flops": flops}
    exponents: dict[str, Any] = {}
    for name, one in own.frontiers.items():
        if isinstance(one, str):
            exponents[name] = at[name] = {"not_fitted": one}
            continue
        exponents[name] = named(("a", "b"), one.lines[[1, 3]], one.drawn[:, [1, 3]], one.count, one.unknowns) | {
            "points": [dict(zip(("flops", "parameters", "tokens"), row, strict=True)) for row in one.seen.tolist()][:50]
        }
        at[name] = named(("parameters", "tokens"), *one.at(flops), one.count, one.unknowns)
    at[own.parametric.law.name] |= named(("loss",), *own.least(flops), count, unknowns)
    result: dict[str, Any] = {
        "points": len(own.found.points.loss),
        "left_out": dict(own.found.left_out),
        "cost": {"kappa": own.cost.kappa, "gamma": own.cost.gamma, "formula": "C = kappa·N^(1+gamma)·D"},
        "laws": {
            name: {"not_fitted": one}
            if isinstance(one, str)
            else {
                "formula": one.law.formula,
                "constants": one.constants(),
                "objective": one.objective,
                "points": len(one.points.loss),
                "largest_residual": float(np.abs(one.residuals).max()),
            }
            for name, one in {own.parametric.law.name: own.parametric, **own.others}.items()
        },
        "compute_optimal_exponents": exponents,
        "prediction": at,
        "held_out": {"size": held_out(own, points.parameters), "budget": held_out(own, budgets)},
    }
    columns = (points.names, points.parameters, points.tokens, points.flops, points.loss, own.parametric.residuals)
    names = ("name", "parameters", "tokens", "flops", "loss", "residual")
    result["runs"] = [dict(zip(names, row, strict=True)) for row in zip(*columns, strict=True)]
    if run is not None:
        n, d = run
        value, drawn = own.parametric.loss(np.array([n]), np.array([d]))
        result["run"] = {"parameters": n, "tokens": d, **named(("loss",), value, drawn, count, unknowns)}
    return plain(result)


def held_out(own: Study, values: np.ndarray) -> dict[str, Any]:
    """The law without the points of the largest of `values` (sizes, or budgets), and how far it is off at them."""
    points = own.parametric.points
    out = np.log(values) > np.log(values.max()) - 1e-3
    rest = points.where(~out)
    try:
        check(rest)
    except UserError as error:
        return {"not_fitted": str(error)}
    without, last = fit(own.parametric.law, rest, 0), points.where(out)
    said = without.loss(last.parameters, last.tokens)[0]
    off = said / last.loss - 1
    return {
        "value": float(values.max()),
        "points": len(last.loss),
        "measured": last.loss,
        "predicted": said,
        "relative_error": off,
        "largest_error": float(np.abs(off).max()),
        "mean_error": float(np.abs(off).mean()),
    }


def plain(value: Any) -> Any:
    """What JSON can hold: lists for arrays, null for what is not a number."""
    return json.loads(json.dumps(value, default=lambda array: array.tolist()), parse_constant=lambda _: None)


def show(result: dict[str, Any]) -> None:
    """The report as tables."""
    console = Console()
    print_line(
        console, f"{result['points']} points; C = {result['cost']['kappa']:.4g}·N^{1 + result['cost']['gamma']:.4g}·D"
    )
    for name, reason in result["left_out"].items():
        print_line(console, f"left out: {name}: {reason}")
    laws = {
        f"{name} = {law['formula']}" if "formula" in law else name: law.get("constants", {})
        for name, law in result["laws"].items()
    }
    sizes = dict(result["prediction"])
    flops = sizes.pop("flops")
    for title, subject, symbol, own in (
        ("laws", "law", "constant", laws),
        ("compute-optimal N ∝ C^a, D ∝ C^b", "approach", "", result["compute_optimal_exponents"]),
        (f"best for C = {flops:.4g} FLOPs", "approach", "", sizes),
    ):
        columns = (subject, symbol, "value", "standard error", "95 % interval")
        print_table(console, title, columns, [row for name, one in own.items() for row in _rows(name, one)])
    for name, one in {**result["laws"], **result["compute_optimal_exponents"]}.items():
        if "not_fitted" in one:
            print_line(console, f"{name}: not fitted: {one['not_fitted']}")
    if run := result.get("run"):
        loss, low, high = map(_short, (run["loss"]["value"], *run["loss"]["interval"]))
        at = f"N = {run['parameters']:.4g} and D = {run['tokens']:.4g}"
        print_line(console, f"a run of {at}: loss {loss} ({low} to {high})")
    for name, held in result["held_out"].items():
        if "not_fitted" in held:
            print_line(console, f"without the largest {name}: {held['not_fitted']}")
            continue
        left = f"the largest {name} ({held['value']:.4g}, {held['points']} points)"
        off = f"within {held['largest_error']:.2%}, on average {held['mean_error']:.2%}"
        print_line(console, f"fitted without {left}: predicts its loss {off}")


def _rows(name: str, one: dict[str, Any]) -> Iterator[tuple[str, ...]]:
    values = [(symbol, value) for symbol, value in one.items() if isinstance(value, dict)]
    if not values:
        yield name, "–", "–", "–", "not fitted, see below"
    for number, (symbol, v) in enumerate(values):
        low, high = v["interval"]
        error = _short(v["standard_error"])
        yield "" if number else name, symbol, _short(v["value"]), error, f"{_short(low)} … {_short(high)}"


def _short(value: float | None) -> str:
    return "–" if value is None else f"{value:.4g}"
