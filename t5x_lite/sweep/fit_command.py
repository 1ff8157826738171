"""`t5x-lite sweep fit`: fit the laws to a sweep or a CSV file; write JSON, a figure and a config; print tables."""

import argparse
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from t5x_lite.errors import UserError
from t5x_lite.files import check_not_input, write_file
from t5x_lite.local_copies import with_urls
from t5x_lite.sweep.config import Sweep, load
from t5x_lite.sweep.csv_points import read_csv
from t5x_lite.sweep.planned_run import check_settings, read_plan
from t5x_lite.sweep.plot import draw_study
from t5x_lite.sweep.points import SweepPoints
from t5x_lite.sweep.report import build_report
from t5x_lite.sweep.report_tables import print_report
from t5x_lite.sweep.run_points import read_runs
from t5x_lite.sweep.study import DRAWS, run_study


@dataclass(frozen=True)
class _Source:
    """Points, the folder for what is written, and the sweep if its file was given."""

    points: SweepPoints
    folder: Path
    sweep: Sweep | None


def fit(subject: Path, overrides: Sequence[str], options: argparse.Namespace) -> int:
    """Fit a sweep file, a sweep's folder, or a CSV file.

    Args:
        subject: one of the three.
        overrides: `dotted.key=value` for the sweep file.
        options: `draws`, `drop_highest`, `budget`, `run`, `emit` and `json` of the command line.

    Returns:
        The exit code.

    Raises:
        UserError: no law can be fitted to the input.
    """
    _check_options(options)
    source = _read_source(subject, overrides, options)
    if options.emit and source.sweep is not None:
        check_not_input(options.emit, subject, *source.sweep.bases)
    study = run_study(source.points, options.draws or DRAWS, options.drop_highest or 0)
    report = build_report(study, options.budget, options.run)
    law = report.to_json()
    written = [
        write_file(source.folder / "law.json", json.dumps(law, indent=1, ensure_ascii=False) + "\n"),
        draw_study(study, source.folder / "law.png"),
    ]
    if options.emit and source.sweep is not None:
        from t5x_lite.sweep.predicted_config import write_predicted_config  # imports JAX, which a fit does not need

        written.append(write_predicted_config(source.sweep, report, options.emit))
    if options.json:
        print(json.dumps(law, ensure_ascii=False))
        return 0
    print_report(report)
    print(with_urls("written: " + ", ".join(map(str, written))))
    return 0


def _check_options(options: argparse.Namespace) -> None:
    if (options.draws is not None and options.draws < 2) or (options.drop_highest or 0) < 0:
        raise UserError("sweep fit: --draws must be at least 2, and --drop-highest must not be negative")
    sizes = [options.budget, *(options.run or [])]
    if any(size is not None and not size > 0 for size in sizes):
        raise UserError("sweep fit: --budget and --run must be above 0")


def _read_source(subject: Path, overrides: Sequence[str], options: argparse.Namespace) -> _Source:
    needs_sweep = list(overrides)
    if options.emit:
        needs_sweep.append("--emit")
    if subject.suffix == ".csv":
        if needs_sweep:
            raise UserError(f"sweep fit {subject}: {needs_sweep[0]} needs a sweep; a table has no config")
        return _Source(read_csv(subject), Path("sweeps") / subject.stem, None)
    if subject.is_dir() and not needs_sweep:
        return _Source(read_runs(subject), subject, None)
    sweep = load(subject, overrides)
    check_settings(sweep, read_plan(sweep.folder))
    return _Source(read_runs(sweep.folder), sweep.folder, sweep)
