"""`t5x-lite sweep fit`: from the words of the command line to tables, JSON, a picture and a config."""

import argparse
import json
import os
from bisect import bisect
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from t5x_lite import config as configuration
from t5x_lite.errors import UserError
from t5x_lite.files import write_file
from t5x_lite.sweep import fit as fitting
from t5x_lite.sweep.config import Sweep, load
from t5x_lite.sweep.plot import draw
from t5x_lite.sweep.points import from_csv, from_sweep
from t5x_lite.trees import unflatten_names


def fit(subject: Path, words: list[str], options: argparse.Namespace) -> int:
    """Fit a sweep, its folder, or a CSV file.

    Raises:
        UserError: input that no law can be fitted to.
    """
    if options.draws < 2 or options.drop_highest < 0:
        raise UserError("sweep fit: --draws is 2 or more, --drop-highest is not negative")
    if not all(value is None or value > 0 for value in [options.budget, *(options.run or [])]):
        raise UserError("sweep fit: --budget and --run are above 0")
    sweep, asks = None, [*words, "--emit"] if options.emit else words
    if subject.suffix == ".csv":
        if asks:
            raise UserError(f"sweep fit {subject}: {asks[0]} needs a sweep: a table has no config")
        found, folder = from_csv(subject), Path("sweeps") / subject.stem
    elif subject.is_dir() and not asks:
        found, folder = from_sweep(subject), subject
    else:
        sweep = load(subject, words)
        found, folder = from_sweep(sweep.folder), sweep.folder
    study = fitting.study(found, options.draws, options.drop_highest)
    result = fitting.report(study, options.budget, options.run)
    law = json.dumps(result, indent=1, ensure_ascii=False) + "\n"
    written = [write_file(folder / "law.json", law), draw(study, folder / "law.png")]
    if options.emit and sweep is not None:
        written.append(emit(sweep, result, options.emit))
    if options.json:
        print(json.dumps(result, ensure_ascii=False))
        return 0
    fitting.show(result)
    print("written: " + ", ".join(map(str, written)))
    return 0


def emit(sweep: Sweep, result: dict[str, Any], to: Path) -> Path:
    """The config of the best run for the budget: every whole number of the model that the sweep varies, continued.

    Each follows log N in a straight line through the sweep's sizes, then `model.embed`, by whole heads, brings N
    nearest; tokens, rules and derived keys follow from the counted model.

    Raises:
        UserError: a sweep that varies no size; a file that cannot be written.
    """
    from t5x_lite.sweep import grid  # needs JAX, which a law does not

    runs = [run for run in grid.expand(sweep) if not run.trunk]
    target, flops = result["prediction"]["L(N, D)"]["parameters"]["value"], result["prediction"]["flops"]
    keys = [key for axis in sweep.config.axes.values() for key in axis if key.startswith("model.")]
    varied = [key for key in keys if all(type(run.overrides.get(key)) is int for run in runs)]
    if "model.embed" not in varied:
        raise UserError("--emit: no axis of the sweep varies model.embed, so a model of another size cannot be made")
    n = np.log([run.parameters for run in runs])
    lines = {key: np.polyfit(n, np.log([run.overrides[key] for run in runs]), 1) for key in varied}
    shared = {
        key: value for key, value in runs[0].overrides.items() if all(r.overrides.get(key) == value for r in runs)
    }
    settings = {key: value for key, value in shared.items() if key not in sweep.config.derived}

    own = {key: max(round(float(np.exp(np.polyval(line, np.log(target))))), 1) for key, line in lines.items()}
    heads = [configuration.load(run.config, run.words).model.heads for run in runs]
    unit = round(float(np.median([run.overrides["model.embed"] / h for run, h in zip(runs, heads, strict=True)])))
    unit = unit if "model.heads" in own else heads[0]

    def sized(units: int) -> Any:
        wide = {"model.embed": units * unit} | ({"model.heads": units} if "model.heads" in own else {})
        return grid.planned(sweep, "predicted", {**settings, **own, **wide}, flops)

    every = range(max(4 * own["model.embed"] // unit, 2))
    above = bisect(every, target, lo=2, key=lambda units: sized(units).parameters)
    best = min(map(sized, (above - 1, above)), key=lambda run: abs(np.log(run.parameters / target)))
    if abs(np.log(best.parameters / target)) > 0.3:
        raise UserError(f"--emit: the nearest model that can be made has N = {best.parameters:.4g}, not {target:.4g}")
    values = {"base": [os.path.relpath(sweep.base, to.parent)], **unflatten_names(best.overrides)}
    made = f"N = {best.parameters:.4g} (the law: {target:.4g}), D = {best.tokens:.4g}"
    head = f"# The best run for C = {flops:.4g} FLOPs by the law of the sweep {sweep.name}: {made}.\n"
    return write_file(to, head + yaml.safe_dump(values, sort_keys=False, allow_unicode=True, width=100))
