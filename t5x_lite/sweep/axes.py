"""The combinations of values that a sweep file describes."""

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import product

from t5x_lite.errors import UserError
from t5x_lite.sweep.config import SweepConfig


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
        UserError: `values` has none of these forms.
    """
    match values:
        case list() if values:
            return values
        case {"range": [int() | float() as first, int() | float() as last, int() | float() as step]} if step:
            count = math.floor((last - first) / step + 1e-9) + 1
            return [first + index * step for index in range(count)]
        case {"log": [int() | float() as first, int() | float() as last, int() as count]} if (
            count > 1 and first > 0 and last > 0
        ):
            return [_log_spaced(first, last, index / (count - 1)) for index in range(count)]
    raise UserError(
        f"{key}: expected a list, {{range: [first, last, step]}} or {{log: [first, last, count]}}, found {values!r}"
    )


def _log_spaced(first: float, last: float, fraction: float) -> float:
    """Return a value between two others, in logarithm, with six digits."""
    value = first * (last / first) ** fraction
    return float(f"{value:.6g}")


def combinations(config: SweepConfig) -> Iterator[Combination]:
    """Yield every combination of the axes, the budgets and the seeds.

    Raises:
        UserError: values of none of the known forms, or keys of one axis with different numbers of values.
    """
    axes = [_axis_choices(name, axis) for name, axis in config.axes.items()]
    if config.budgets is not None:
        axes.append(_budget_choices(config))
    axes.append(_seed_choices(config))
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
        if not isinstance(value, int | float):
            raise UserError(f"budgets: expected numbers, found {value!r}")
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
