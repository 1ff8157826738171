"""The combinations of values that a sweep file describes."""

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product

from t5x_lite import schema
from t5x_lite.errors import UserError
from t5x_lite.sweep.config import SweepConfig

MAX_RUNS = 10_000
"""Runs of the largest sweep. The plan builds the model of each, which takes milliseconds."""
LARGEST_NUMBER = 1e150
"""Bound on the magnitude of the numbers of an axis: quotients of two of them do not overflow."""


@dataclass(frozen=True)
class Combination:
    """The settings of one run. `budget` is in FLOPs, 0 where the sweep has no budgets."""

    name: str
    settings: dict[str, object]
    budget: float


@dataclass(frozen=True)
class _Choice:
    """One value of an axis, with its part of the run's name."""

    name: str
    settings: Mapping[str, object]
    budget: float = 0.0


def axis_values(key: str, values: object) -> list[object]:
    """Return the values of one key of an axis.

    Args:
        key: the key, for an error message.
        values: a list, `{range: [first, last, step]}` or `{log: [first, last, count]}`.

    Raises:
        UserError: `values` has none of these forms, is empty, or has more values than a sweep has runs.
    """
    match values:
        case list() if values:
            return values
        case {"range": [first, last, step]} if _are_numbers(first, last, step) and step:
            count = _range_length(key, first, last, step)
            return [first + index * step for index in range(count)]
        case {"log": [first, last, int() as count]} if _are_numbers(first, last, count) and count > 1:
            if min(first, last) >= 1 / LARGEST_NUMBER:
                _check_length(key, count)
                return [_log_spaced(first, last, index / (count - 1)) for index in range(count)]
    raise UserError(
        f"{key}: expected a list, {{range: [first, last, step]}} or {{log: [first, last, count]}}, found {values!r}"
    )


def _are_numbers(*values: object) -> bool:
    """Return whether the values are numbers, and neither infinite nor NaN nor so large that a quotient overflows."""
    for value in values:
        if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) <= LARGEST_NUMBER:
            return False
    return True


def _range_length(key: str, first: float, last: float, step: float) -> int:
    steps = (last - first) / step + 1e-9
    if steps < 0:
        raise UserError(f"{key}: range [{first}, {last}, {step}] is empty; the step leads away from the last value")
    _check_length(key, steps)
    return math.floor(steps) + 1


def _check_length(key: str, length: float) -> None:
    if length > MAX_RUNS:
        raise UserError(f"{key}: has {length:.4g} values; a sweep has at most {MAX_RUNS:,} runs")


def _log_spaced(first: float, last: float, fraction: float) -> float:
    """Return a value between two others, in logarithm, with six digits."""
    value = first * (last / first) ** fraction
    return float(f"{value:.6g}")


def combinations(config: SweepConfig) -> Iterator[Combination]:
    """Yield every combination of the axes, the budgets and the seeds.

    Raises:
        UserError: values of none of the known forms, keys of one axis with different numbers of values, a key that is
            set twice, or more than `MAX_RUNS` combinations.
    """
    _check_keys(config)
    axes = [_axis_choices(name, axis) for name, axis in config.axes.items()]
    if config.budgets is not None:
        axes.append(_budget_choices(config))
    axes.append(_seed_choices(config))
    _check_size(axes)
    for choices in product(*axes):
        names = []
        settings: dict[str, object] = {}
        budget = 0.0
        for choice in choices:
            if choice.name:
                names.append(choice.name)
            settings.update(choice.settings)
            budget = choice.budget or budget
        yield Combination(normalise_name("-".join(names)), settings, budget)


def _check_size(axes: Sequence[Sequence[_Choice]]) -> None:
    sizes = [len(choices) for choices in axes]
    count = math.prod(sizes)
    if count > MAX_RUNS:
        factors = " × ".join(str(size) for size in sizes if size > 1)
        raise UserError(
            f"this sweep has {count:,} runs ({factors}: axes, budgets, seeds); at most {MAX_RUNS:,} are planned at "
            "once: take values out, or make several sweeps of it"
        )


def _check_keys(config: SweepConfig) -> None:
    """Refuse a key whose value would silently replace another: two parts of the sweep file decide it."""
    deciding = {}
    if config.budgets is not None:
        deciding["train.steps"] = "`budgets`"
    if config.learning_rate is not None:
        deciding["optimizer.learning_rate"] = "the rule `learning_rate`"
    if config.batch_size is not None:
        deciding["train.batch_size"] = "the rule `batch_size`"
    named_keys = [("set", key) for key, _ in schema.dotted(config.set)]
    named_keys += [("derived", key) for key in config.derived]
    named_keys += [(f"axes.{name}", key) for name, axis in config.axes.items() for key in axis]
    for place, key in named_keys:
        if key == "train.seed":
            raise UserError(f"{place}.{key}: give `seeds` instead")
        if key in deciding:
            raise UserError(f"{place}.{key}: {deciding[key]} decides it too; keep one of the two")
        deciding[key] = f"{place}.{key}"


def _axis_choices(name: str, axis: Mapping[str, object]) -> list[_Choice]:
    columns = {key: axis_values(f"axes.{name}.{key}", values) for key, values in axis.items()}
    lengths = {key: len(column) for key, column in columns.items()}
    if len(set(lengths.values())) != 1:
        raise UserError(f"axes.{name}: the keys of one axis need equally many values, found {lengths}")
    first_key = next(iter(columns))
    short_key = first_key.rpartition(".")[2]
    choices = []
    for values in zip(*columns.values(), strict=True):
        settings = dict(zip(columns, values, strict=True))
        choices.append(_Choice(f"{short_key}{settings[first_key]}", settings))
    return choices


def _budget_choices(config: SweepConfig) -> list[_Choice]:
    choices = []
    for value in axis_values("budgets", config.budgets):
        if not isinstance(value, int | float) or not _are_numbers(value) or value <= 0:
            raise UserError(f"budgets: expected numbers above 0, found {value!r}")
        choices.append(_Choice(f"c{value:.3g}", {}, float(value)))
    return choices


def _seed_choices(config: SweepConfig) -> list[_Choice]:
    choices = []
    for seed in config.seeds:
        name = f"s{seed}" if len(config.seeds) > 1 else ""
        choices.append(_Choice(name, {"train.seed": seed}))
    return choices


def normalise_name(name: str) -> str:
    """Return the name in lower case, without signs that are not allowed in the name of a folder or of a job."""
    return re.sub(r"[^a-z0-9.-]+", "", name.lower().replace("_", "-")) or "run"
