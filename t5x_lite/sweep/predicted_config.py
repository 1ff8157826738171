"""The config of the run that the law predicts to be best for a budget."""

import os
from bisect import bisect
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import yaml
from jaxtyping import Float

from t5x_lite import config as configuration
from t5x_lite.errors import UserError
from t5x_lite.files import write_file
from t5x_lite.sweep import grid
from t5x_lite.sweep.config import Sweep
from t5x_lite.sweep.planned_run import PlannedRun
from t5x_lite.sweep.report import Report
from t5x_lite.trees import unflatten_names

MAX_LOG_ERROR = 0.3
"""Largest difference between the log N of the law and that of the nearest model."""


def write_predicted_config(sweep: Sweep, report: Report, path: Path) -> Path:
    """Write the config of the best run for the report's budget.

    Every integer setting of the model that the sweep varies continues the straight line that its logarithm follows over
    log N. Then `model.embed` is changed by whole heads until N is nearest to that of the law. Tokens, rules and derived
    keys follow from the counted model, as for every run of the sweep.

    Raises:
        UserError: the sweep has several configs or varies no size, no model of about the right size exists, or the
            file cannot be written.
    """
    if len(sweep.bases) > 1:
        raise UserError("--emit: the sweep has several configs, and the law does not choose between them")
    target = report.optimal_parameters
    runs = [run for run in grid.expand(sweep) if not run.trunk]
    best = _nearest_run(sweep, runs, target, report.flops)
    values = {"base": [os.path.relpath(sweep.bases[0], path.parent)], **unflatten_names(best.overrides)}
    text = yaml.safe_dump(values, sort_keys=False, allow_unicode=True, width=100)
    sizes = f"N = {best.parameters:.4g} (the law: {target:.4g}), D = {best.tokens:.4g}"
    comment = f"# The best run for C = {report.flops:.4g} FLOPs by the law of the sweep {sweep.name}: {sizes}.\n"
    return write_file(path, comment + text)


def _nearest_run(sweep: Sweep, runs: Sequence[PlannedRun], target: float, flops: float) -> PlannedRun:
    """Return the run whose N is nearest to the target in logarithm, among those with a whole number of heads."""
    varied_keys = _varied_model_sizes(sweep, runs)
    if "model.embed" not in varied_keys:
        raise UserError("--emit: no axis of the sweep varies model.embed, so a model of another size cannot be made")
    model_sizes = _extrapolate(runs, varied_keys, target)
    settings = {**_shared_settings(sweep, runs), **model_sizes}
    num_heads = [configuration.load(run.config, run.words).model.heads for run in runs]
    varies_heads = "model.heads" in varied_keys
    # Rotary positions need heads of even width.
    head_width = 2 * num_heads[0]
    if varies_heads:
        head_width = _median_head_width(runs, num_heads)

    def plan_with(units: int) -> PlannedRun:
        sized = {**settings, "model.embed": units * head_width}
        if varies_heads:
            sized["model.heads"] = units
        return grid.plan_run(sweep, sweep.bases[0], "predicted", sized, flops)

    max_units = max(4 * model_sizes["model.embed"] // head_width, 2)
    first_above = bisect(range(max_units), target, lo=2, key=lambda units: plan_with(units).parameters)
    candidates = [plan_with(first_above - 1), plan_with(first_above)]
    best = min(candidates, key=lambda run: _log_error(run, target))
    if _log_error(best, target) > MAX_LOG_ERROR:
        raise UserError(f"--emit: the nearest possible model has N = {best.parameters:.4g}, not {target:.4g}")
    return best


def _log_error(run: PlannedRun, target: float) -> float:
    return abs(np.log(run.parameters / target))


def _varied_model_sizes(sweep: Sweep, runs: Sequence[PlannedRun]) -> list[str]:
    """Return the keys of the axes that are integer settings of the model."""
    keys = []
    for axis in sweep.config.axes.values():
        for key in axis:
            has_integers = all(type(run.overrides.get(key)) is int for run in runs)
            if key.startswith("model.") and has_integers:
                keys.append(key)
    return keys


def _extrapolate(runs: Sequence[PlannedRun], keys: Sequence[str], target: float) -> dict[str, int]:
    """Return the value of each key for a model of the target's size, at least 1."""
    log_n = np.log([run.parameters for run in runs])
    values = {}
    for key in keys:
        line = np.polyfit(log_n, np.log(_setting_values(runs, key)), 1)
        value = np.exp(np.polyval(line, np.log(target)))
        values[key] = max(round(float(value)), 1)
    return values


def _shared_settings(sweep: Sweep, runs: Sequence[PlannedRun]) -> dict[str, object]:
    """Return the settings that are the same in every run and are not derived."""
    shared = {}
    for key, value in runs[0].overrides.items():
        is_shared = all(run.overrides.get(key) == value for run in runs)
        if is_shared and key not in sweep.config.derived:
            shared[key] = value
    return shared


def _median_head_width(runs: Sequence[PlannedRun], num_heads: Sequence[int]) -> int:
    """Return the even number that is nearest to the median of model.embed / model.heads."""
    head_widths = _setting_values(runs, "model.embed") / np.array(num_heads)
    return max(2 * round(float(np.median(head_widths)) / 2), 2)


def _setting_values(runs: Sequence[PlannedRun], key: str) -> Float[np.ndarray, " runs"]:
    return np.array([run.overrides[key] for run in runs], float)
