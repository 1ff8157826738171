"""The report of a sweep as tables on the terminal."""

import math
from collections.abc import Iterator, Mapping

from rich.console import Console

from t5x_lite.laws.estimates import Estimate
from t5x_lite.laws.fit import NotFitted
from t5x_lite.progress import print_line, print_table
from t5x_lite.sweep.report import HeldOut, Report, RunPrediction, frontier_exponents

NO_VALUE = "–"


def print_report(report: Report) -> None:
    """Print the constants of the laws, the exponents, the predictions, and what could not be fitted."""
    console = Console()
    cost = report.cost
    print_line(console, f"{report.num_points} points; C = {cost.kappa:.4g}·N^{1 + cost.gamma:.4g}·D")
    for name, reason in report.left_out.items():
        print_line(console, f"left out: {name}: {reason}")
    _print_laws(console, report)
    _print_exponents(console, report)
    title = f"best for C = {report.flops:.4g} FLOPs"
    _print_estimates(console, title, ("approach", ""), report.predictions)
    for name, fit in [*report.laws.items(), *report.frontiers.items()]:
        if isinstance(fit, NotFitted):
            print_line(console, f"{name}: not fitted: {fit.reason}")
    if report.run is not None:
        print_line(console, _describe_run(report.run))
    for name, held_out in report.held_out.items():
        print_line(console, _describe_held_out(name, held_out))


def _print_laws(console: Console, report: Report) -> None:
    constants: dict[str, Mapping[str, Estimate] | NotFitted] = {}
    for name, fit in report.laws.items():
        if isinstance(fit, NotFitted):
            constants[name] = fit
        else:
            constants[f"{name} = {fit.law.formula}"] = fit.constants()
    _print_estimates(console, "laws", ("law", "constant"), constants)


def _print_exponents(console: Console, report: Report) -> None:
    exponents: dict[str, Mapping[str, Estimate] | NotFitted] = {}
    for name, frontier in report.frontiers.items():
        if isinstance(frontier, NotFitted):
            exponents[name] = frontier
        else:
            exponents[name] = frontier_exponents(frontier)
    _print_estimates(console, "compute-optimal N ∝ C^a, D ∝ C^b", ("approach", ""), exponents)


def _print_estimates(
    console: Console,
    title: str,
    first_columns: tuple[str, str],
    groups: Mapping[str, Mapping[str, Estimate] | NotFitted],
) -> None:
    columns = (*first_columns, "value", "standard error", "95 % interval")
    rows: list[tuple[str, ...]] = []
    for name, estimates in groups.items():
        rows.extend(_estimate_rows(name, estimates))
    print_table(console, title, columns, rows)


def _estimate_rows(name: str, estimates: Mapping[str, Estimate] | NotFitted) -> Iterator[tuple[str, ...]]:
    """Yield one row per estimate; the first has the name."""
    if isinstance(estimates, NotFitted):
        yield name, NO_VALUE, NO_VALUE, NO_VALUE, "not fitted, see below"
        return
    label = name
    for symbol, estimate in estimates.items():
        low, high = estimate.interval
        interval = f"{_format(low)} … {_format(high)}"
        yield label, symbol, _format(estimate.value), _format(estimate.standard_error), interval
        label = ""


def _describe_run(run: RunPrediction) -> str:
    low, high = run.loss.interval
    sizes = f"N = {run.parameters:.4g} and D = {run.tokens:.4g}"
    return f"a run of {sizes}: loss {_format(run.loss.value)} ({_format(low)} to {_format(high)})"


def _describe_held_out(name: str, held_out: HeldOut | NotFitted) -> str:
    if isinstance(held_out, NotFitted):
        return f"without the largest {name}: {held_out.reason}"
    largest = f"the largest {name} ({held_out.value:.4g}, {held_out.points} points)"
    errors = f"within {held_out.largest_error:.2%}, on average {held_out.mean_error:.2%}"
    return f"fitted without {largest}: predicts its loss {errors}"


def _format(value: float) -> str:
    return f"{value:.4g}" if math.isfinite(value) else NO_VALUE
