"""`t5x-lite sweep plot`: the evaluated tasks of a sweep over FLOPs and N, as a picture, a table and JSON."""

import argparse
import csv
import io
import json
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from t5x_lite.errors import UserError, suggest
from t5x_lite.files import write_file
from t5x_lite.local_copies import with_urls
from t5x_lite.progress import print_line
from t5x_lite.sweep.abilities import Abilities, AbilityCurve, build_abilities
from t5x_lite.sweep.abilities_plot import draw_abilities
from t5x_lite.sweep.config import load
from t5x_lite.sweep.evaluations import TaskResult, read_evaluations
from t5x_lite.sweep.planned_run import read_plan

PICTURE = "eval/abilities.png"
CSV_COLUMNS = ("task", "metric", "run", "parameters", "tokens", "flops", "budget", "examples", "value", "low", "high")


def plot_sweep(subject: Path, words: Sequence[str], options: argparse.Namespace) -> int:
    """Draw the evaluated tasks of a sweep.

    Args:
        subject: the sweep's file or folder.
        words: `tasks=a,b`, the tasks to draw, and settings of the sweep.
        options: `to` of the command line.

    Returns:
        The exit code.

    Raises:
        UserError: nothing was evaluated, there is no such task, or the picture is no .png.
    """
    if options.to is not None and options.to.suffix != ".png":
        raise UserError(f"sweep plot: --to {options.to}: expected a name that ends in .png")
    names = None
    overrides = []
    for word in words:
        key, _, value = word.removeprefix("--").partition("=")
        if key == "tasks":
            names = value.split(",")
        else:
            overrides.append(word)
    folder = _find_folder(subject, overrides)
    tasks = _choose_tasks(read_evaluations(folder).tasks(), names, folder)
    runs = [run for run in read_plan(folder).runs if not run.trunk]
    abilities = build_abilities(tasks, runs)
    if not abilities.curves:
        raise UserError(f"{folder}: none of the tasks has a score for each example, of which curves are drawn")
    picture = options.to or folder / PICTURE
    picture.parent.mkdir(parents=True, exist_ok=True)
    table = write_file(picture.with_suffix(".csv"), _as_csv(abilities))
    record = write_file(picture.with_suffix(".json"), json.dumps(abilities_as_json(abilities), indent=1) + "\n")
    draw_abilities(abilities, picture)
    console = Console()
    for (task, metric, axis), p_value in abilities.inverse.items():
        print_line(console, f"inverse scaling: {task}, {metric} over {axis}: p = {p_value:.2g}")
    for task, note in abilities.notes.items():
        print_line(console, f"{task}: {note}")
    print(with_urls(f"written: {picture}, {table}, {record}"))
    return 0


def _find_folder(subject: Path, overrides: Sequence[str]) -> Path:
    if not subject.is_dir():
        return load(subject, overrides).folder
    if overrides:
        raise UserError(f"sweep plot {subject}: {overrides[0]} needs the sweep's file instead of its folder")
    return subject


def _choose_tasks(
    tasks: dict[str, dict[str, TaskResult]], names: Sequence[str] | None, folder: Path
) -> dict[str, dict[str, TaskResult]]:
    if not tasks:
        raise UserError(f"{folder}: no task was evaluated yet; run t5x-lite sweep eval first")
    for name in names or ():
        if name not in tasks:
            hint = suggest(name, tasks) or f"; there are {', '.join(tasks)}"
            raise UserError(f"sweep plot: tasks={name}: was not evaluated{hint}")
    return {name: tasks[name] for name in names or tasks}


def _as_csv(abilities: Abilities) -> str:
    """Return a row for each task, metric and run. Intervals are empty for metrics without examples."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(CSV_COLUMNS)
    for by_metric in abilities.curves.values():
        for curve in by_metric.values():
            writer.writerows(_csv_rows(curve))
    return text.getvalue()


def _csv_rows(curve: AbilityCurve) -> list[list[object]]:
    intervals = curve.intervals()
    rows: list[list[object]] = []
    for number, run in enumerate(curve.runs):
        low: float | str = ""
        high: float | str = ""
        if intervals is not None:
            low, high = intervals[:, number].tolist()
        sizes = [run.parameters, run.tokens, run.flops, run.budget]
        value = float(curve.values[number])
        rows.append([curve.task, curve.metric, run.name, *sizes, curve.examples, value, low, high])
    return rows


def abilities_as_json(abilities: Abilities) -> dict[str, object]:
    """Return the trends, and what was marked."""
    trends: dict[str, dict[str, dict[str, object]]] = {}
    for task, by_metric in abilities.curves.items():
        trends[task] = {}
        for metric, curve in by_metric.items():
            trends[task][metric] = {axis: vars(trend) for axis, trend in curve.trends.items()}
    inverse = []
    for (task, metric, axis), p_value in abilities.inverse.items():
        inverse.append({"task": task, "metric": metric, "axis": axis, "p": p_value})
    return {"trends": trends, "inverse_scaling": inverse, "notes": dict(abilities.notes)}
