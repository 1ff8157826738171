"""Where the points of a law come from: a CSV file of any house, or the runs of a sweep."""

import csv
import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from t5x_lite.errors import UserError
from t5x_lite.evaluate.curves import metric_records, metric_series, smooth
from t5x_lite.laws.law import Points
from t5x_lite.sweep.frontier import Curve

COLUMNS = {
    "parameters": ("n", "parameters", "params", "modelsize", "modelparameters", "nparams", "numparams", "size"),
    "tokens": ("d", "tokens", "trainingtokens", "traintokens", "ntokens", "numtokens", "datasize"),
    "flops": ("c", "flops", "flop", "trainingflop", "trainingflops", "trainflops", "compute"),
    "loss": ("loss", "l", "evalloss", "finalloss", "validationloss", "valloss", "testloss"),
    "budget": ("budget", "isoflop", "isoflops", "computebudget"),
    "experts": ("experts", "e", "nexperts", "numexperts"),
    "run": ("run", "runname", "name", "curve", "id"),
}
"""Names of columns, without case, blanks and signs, most telling first."""


@dataclass(frozen=True)
class SweepPoints:
    """What a law is fitted to: finished runs, the curves of those that were watched, and what is left out and why."""

    points: Points
    curves: Sequence[Curve]
    left_out: Mapping[str, str]


def from_csv(path: Path) -> SweepPoints:
    """Points of a table with a heading: loss, and two of N, D and C; C = 6·N·D where one is not there.

    Several rows of one `run` are its training curve, of which the last is the point.

    Raises:
        UserError: the file, a column or a cell that is not as it should be, with its line.
    """
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            rows = list(csv.reader(file))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{path}: cannot be read as CSV: {error}") from None
    plain = [re.sub(r"[^a-z0-9]", "", cell.lower()) for cell in rows[0]] if rows else []
    at = {what: plain.index(name) for what, names in COLUMNS.items() for name in reversed(names) if name in plain}
    if "loss" not in at or len({"parameters", "tokens", "flops"} & at.keys()) < 2:
        needs = "columns loss and two of N, D and C (parameters, tokens, flops)"
        raise UserError(f"{path}:1: needs {needs}, found: {', '.join(rows[0]) if rows else 'nothing'}")
    runs: dict[str, list[dict[str, Any]]] = {}
    left_out = {}
    for line, row in enumerate(rows[1:], 2):
        if not row:
            continue
        try:
            record = {name: float(row[n]) for name, n in at.items() if name != "run"}
        except (ValueError, IndexError):
            if line < len(rows):
                raise UserError(f"{path}:{line}: expected numbers in {', '.join(at)}, found {','.join(row)}") from None
            left_out[f"line {line}"] = "the last row is not whole"
            continue
        run = row[at["run"]] if "run" in at else f"line {line}"
        _complete(record)
        sizes = [record[name] for name in ("parameters", "tokens", "flops")]
        if not all(0 < value < math.inf for value in sizes):
            raise UserError(f"{path}:{line}: N, D and C must be above 0, found {', '.join(map(str, sizes))}")
        if 0 < record["loss"] < math.inf:
            runs.setdefault(run, []).append(record)
        else:
            left_out[run] = f"diverged: loss is {record['loss']}"
    ordered = {name: sorted(own, key=lambda one: one["flops"]) for name, own in runs.items() if name not in left_out}
    curves = [
        Curve(own[-1]["parameters"], *(np.array([one[k] for one in own]) for k in ("flops", "tokens", "loss")))
        for own in ordered.values()
        if len(own) > 1
    ]
    return SweepPoints(table({name: own[-1] for name, own in ordered.items()}), curves, left_out)


def _complete(record: dict[str, Any]) -> None:
    """The one of N, D, C that is missing, by C = 6·N·D (Kaplan et al. 2020, §2.1)."""
    n, d, c = (record.get(name, math.nan) for name in ("parameters", "tokens", "flops"))
    if math.isnan(c):
        record["flops"] = 6 * n * d
    elif math.isnan(d):
        record["tokens"] = c / 6 / n if n else math.nan
    elif math.isnan(n):
        record["parameters"] = c / 6 / d if d else math.nan


def table(runs: Mapping[str, Mapping[str, Any]]) -> Points:
    """Records by name as arrays."""
    defaults = {"parameters": 0.0, "tokens": 0.0, "flops": 0.0, "loss": 0.0, "budget": 0.0, "experts": 1.0}
    found = {
        name: np.array([float(one.get(name) or value) for one in runs.values()]) for name, value in defaults.items()
    }
    return Points(**found, names=tuple(runs))


def from_sweep(folder: Path) -> SweepPoints:
    """The finished runs of a sweep: the last validation loss of each, and its training loss, smoothed, as a curve.

    Raises:
        UserError: not the folder of a sweep; no run is complete.
    """
    try:
        plan = json.loads((folder / "plan.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{folder}: is not the folder of a sweep that was started (plan.json: {error})") from None
    states = rows(folder / "sweep.jsonl")
    runs, curves, left_out = {}, [], {}
    for run in plan["runs"]:
        name, state = run["name"], states.get(run["name"], {})
        given = Path(run["run_dir"])
        own = given if given.is_dir() else folder / "runs" / given.name  # copied from a bucket or another machine
        lines = metric_records(own / "metrics.jsonl") or [{"step": 0, "tokens": 0}]
        if state.get("state") == "diverged":
            left_out[name] = f"diverged: {state.get('reason', '')}"
        elif lines[-1]["step"] < run["steps"] or lines[-1].get("eval/loss") is None:
            left_out[name] = f"not complete: step {lines[-1]['step']} of {run['steps']}"
        elif not run["trunk"]:
            runs[name] = {**run, "loss": lines[-1]["eval/loss"]}
        if not run["after"] and name not in left_out:
            curves.append(_curve(run, lines))
    if not runs:
        raise UserError(f"{folder}: no run is complete yet; `t5x-lite sweep` goes on with it")
    return SweepPoints(table(runs), curves, left_out)


def _curve(run: Mapping[str, Any], lines: Sequence[Mapping[str, Any]]) -> Curve:
    """The smoothed training loss of a run, without its first twentieth; of branches, that of their trunk."""
    tokens, loss = metric_series(lines, "loss")
    begun = len(tokens) // 20
    flops = tokens * run["flops"] / run["tokens"]
    return Curve(run["parameters"], *(values[begun:] for values in (flops, tokens, smooth(loss))))


def rows(path: Path) -> dict[str, dict[str, Any]]:
    """The newest row of each run in a sweep's table; a row that a kill has torn is left out."""
    return {row["run"]: row for row in metric_records(path)}


class Record:
    """`sweep.jsonl`: a line whenever the state of a run changes, of which the newest counts."""

    def __init__(self, path: Path) -> None:
        self.path = path
        torn = path.is_file() and path.stat().st_size and not path.read_bytes().endswith(b"\n")
        self._file = path.open("a", encoding="utf-8")
        self._file.write("\n" if torn else "")

    def set(self, run: str, state: str, **more: Any) -> None:
        """The run's state from now on."""
        self._file.write(json.dumps({"run": run, "state": state, **more}) + "\n")
        self._file.flush()

    def state(self, run: str) -> dict[str, Any]:
        """The newest row of a run."""
        return rows(self.path).get(run, {})
