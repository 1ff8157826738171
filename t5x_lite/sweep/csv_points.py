"""Points from a CSV file with one row per run, or with several rows per run for its training curve."""

import csv
import math
import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TypeAlias

from t5x_lite.errors import UserError
from t5x_lite.files import check_is_file
from t5x_lite.laws.training_curves import TrainingCurve
from t5x_lite.sweep.points import SweepPoints, build_points, record_values

COLUMN_NAMES = {
    "parameters": ("n", "parameters", "params", "modelsize", "modelparameters", "nparams", "numparams", "size"),
    "tokens": ("d", "tokens", "trainingtokens", "traintokens", "ntokens", "numtokens", "datasize"),
    "flops": ("c", "flops", "flop", "trainingflop", "trainingflops", "trainflops", "compute"),
    "loss": ("loss", "l", "evalloss", "finalloss", "validationloss", "valloss", "testloss"),
    "budget": ("budget", "isoflop", "isoflops", "computebudget"),
    "experts": ("experts", "e", "nexperts", "numexperts"),
    "run": ("run", "runname", "name", "curve", "id"),
}
"""Names of each column in lower case, letters and digits alone. Of two that a file has, the first counts."""
SIZES = ("parameters", "tokens", "flops")

Record: TypeAlias = dict[str, float]


def read_csv(path: Path) -> SweepPoints:
    """Read a CSV file that has the loss and two of N, D and C; the third follows from C = 6·N·D.

    Several rows of one run are its training curve, whose last row is the point. A run whose loss is not finite is left
    out, and so is a last row whose last cells are missing.

    Raises:
        UserError: the file cannot be read, or a column or a cell is not valid; with the line.
    """
    rows = _read_rows(path)
    columns = _find_columns(path, rows)
    runs: defaultdict[str, list[Record]] = defaultdict(list)
    left_out = {}
    for line, row in enumerate(rows[1:], start=2):
        if not row:
            continue
        record = _parse_row(row, columns)
        if record is None:
            is_cut = line == len(rows) and (len(row) <= max(columns.values()) or not row[-1])
            if not is_cut:
                raise UserError(f"{path}:{line}: expected numbers in {', '.join(columns)}, found {','.join(row)}")
            left_out[f"line {line}"] = "the last row is incomplete"
            continue
        name = f"line {line}"
        if "run" in columns:
            name = row[columns["run"]]
        _check_sizes(record, f"{path}:{line}")
        if record["loss"] <= 0:
            raise UserError(f"{path}:{line}: the loss must be above 0 (nats per token), found {record['loss']}")
        if math.isfinite(record["loss"]):
            runs[name].append(record)
        else:
            left_out[name] = f"diverged: loss is {record['loss']}"
    return _collect(runs, left_out)


def _read_rows(path: Path) -> list[list[str]]:
    check_is_file(path)
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            return list(csv.reader(file))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{path}: cannot be read as CSV: {error}") from None


def _find_columns(path: Path, rows: Sequence[Sequence[str]]) -> dict[str, int]:
    """Return the index of each column that the file has, by our name for it."""
    header = rows[0] if rows else []
    plain_header = [re.sub(r"[^a-z0-9]", "", cell.lower()) for cell in header]
    columns = {}
    for column, names in COLUMN_NAMES.items():
        present = [name for name in names if name in plain_header]
        if present:
            columns[column] = plain_header.index(present[0])
    num_sizes = len(columns.keys() & set(SIZES))
    if "loss" not in columns or num_sizes < 2:
        raise UserError(
            f"{path}:1: needs columns loss and two of N, D and C (parameters, tokens, flops), "
            f"found: {', '.join(header) or 'nothing'}"
        )
    return columns


def _parse_row(row: Sequence[str], columns: Mapping[str, int]) -> Record | None:
    """Return the numbers of a row with all of N, D and C; None if a cell is absent or is not a number."""
    if len(row) <= max(columns.values()):
        return None
    record = {}
    for column, index in columns.items():
        if column == "run":
            continue
        try:
            record[column] = float(row[index])
        except ValueError:
            return None
    _add_missing_size(record)
    return record


def _add_missing_size(record: Record) -> None:
    """Compute the one of N, D and C that is absent or NaN by C = 6·N·D (Kaplan et al. 2020, §2.1)."""
    n = record.get("parameters", math.nan)
    d = record.get("tokens", math.nan)
    c = record.get("flops", math.nan)
    if math.isnan(c):
        record["flops"] = 6 * n * d
    elif math.isnan(d):
        record["tokens"] = c / 6 / n if n else math.nan
    elif math.isnan(n):
        record["parameters"] = c / 6 / d if d else math.nan


def _check_sizes(record: Record, place: str) -> None:
    sizes = [record[size] for size in SIZES]
    if not all(0 < size < math.inf for size in sizes):
        raise UserError(f"{place}: N, D and C must be above 0, found {', '.join(map(str, sizes))}")


def _collect(runs: Mapping[str, Sequence[Record]], left_out: Mapping[str, str]) -> SweepPoints:
    final_records = {}
    curves = []
    for name, records in runs.items():
        if name in left_out:
            continue
        by_flops = sorted(records, key=lambda record: record["flops"])
        final_records[name] = by_flops[-1]
        if len(by_flops) > 1:
            curves.append(_build_curve(name, by_flops))
    return SweepPoints(build_points(final_records), curves, left_out)


def _build_curve(name: str, records: Sequence[Record]) -> TrainingCurve:
    return TrainingCurve(
        name=name,
        parameters=records[-1]["parameters"],
        flops=record_values(records, "flops"),
        tokens=record_values(records, "tokens"),
        loss=record_values(records, "loss"),
        experts=float(records[-1].get("experts") or 1.0),
    )
