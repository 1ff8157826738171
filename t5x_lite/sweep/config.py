"""What a sweep file says: its settings, and the combinations of values that it stands for."""

import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Strict

from t5x_lite import schema
from t5x_lite.errors import UserError
from t5x_lite.schema import Config, Int, Strings, setting


class LaunchConfig(Config):
    """Options that the scripts in launch/ are given, word by word."""

    slurm: Strings = setting(("--gpus-per-task=1",), "options of sbatch")
    gke: Strings = setting((), "options of launch/gke/train.sh, such as --image=…")
    tpu_vm: Strings = setting((), "options of launch/tpu_vm.sh, such as --zone=…")


class SweepConfig(Config):
    """A grid of runs. Values of an axis: a list, `{range: [first, last, step]}` or `{log: [first, last, count]}`."""

    config: str = setting(..., "the run's config, relative to the sweep file")
    set: dict[str, Any] = setting({}, "keys of the run's config, dotted or nested, and their value in every run")
    axes: dict[str, dict[str, Any]] = setting(
        {}, "{name: {dotted key: values}}: every combination of the axes; the keys of one axis go together"
    )
    budgets: Any = setting(None, "IsoFLOP grid: values of C; train.steps of each run follows from it", unit="FLOPs")
    parameters: Literal["all", "active", "non_embedding"] = setting(
        "active",
        "what N counts: all weights; those that a token passes (of experts, as many as it is sent to); of those, none "
        "of tables and of the output matrix",
    )
    flops: Literal["model", "6nd"] = setting(
        "model", "what C counts: matrices that a token passes, output and attention, causal half; or 6·N·D"
    )
    learning_rate: Literal["kaplan", "deepseek"] | None = setting(
        None, "rule: by N or by C", source="Kaplan et al. 2020, eq. D.1; DeepSeek LLM 2024, eq. 1"
    )
    batch_size: Literal["kaplan", "deepseek"] | None = setting(
        None, "rule: by the loss at N, or by C", source="Kaplan et al. 2020, eq. 1.4; DeepSeek LLM 2024, eq. 1"
    )
    batch_multiple: Int = setting(8, "a batch by rule is a multiple of this", unit="sequences", ge=1)
    derived: dict[str, str] = setting(
        {}, "{dotted key: expression} of other keys, and of N, D, C; those of model. without the three"
    )
    branches: bool = setting(
        False,
        "runs that differ in train.steps alone share the stable phase of one long run (schedule wsd), and decay from "
        "its checkpoints",
        source="Hägele et al. 2024, §3",
    )
    seeds: Annotated[tuple[Int, ...], Strict(False)] = setting((0,), "train.seed of the repetitions", min_length=1)
    dir: str | None = setting(None, "where everything of the sweep lies; null takes sweeps/<name of the file>")
    where: Literal["local", "slurm", "gke", "tpu_vm"] = setting("local", "which launcher starts the runs")
    jobs: Int = setting(1, "runs at one time; local ones share out processors or GPUs", ge=1)
    retries: Int = setting(2, "times that a failed run is started again by one start of the sweep", ge=0)
    launch: LaunchConfig = setting(LaunchConfig(), "options of the launchers")


@dataclass(frozen=True)
class Sweep:
    """A sweep file as read, and where its config and its folder lie."""

    name: str
    config: SweepConfig
    base: Path
    folder: Path

    @property
    def runs_folder(self) -> Path:
        """Run directories as the runs see them: those of a cluster of GKE lie in its bucket's mount."""
        return Path("/bucket/runs") if self.config.where == "gke" else (self.folder / "runs").absolute()


def load(path: Path, overrides: Sequence[str] = ()) -> Sweep:
    """Read a sweep file.

    Raises:
        UserError: one line with every fault.
    """
    config = schema.validate(SweepConfig, schema.read(SweepConfig, path, overrides))
    folder = Path(config.dir) if config.dir else Path("sweeps") / path.stem
    return Sweep(path.stem, config, (path.parent / config.config).resolve(), folder)


def values_of(key: str, given: Any) -> list[Any]:
    """The values of an axis' key.

    Raises:
        UserError: none of the three forms.
    """
    match given:
        case list() if given:
            return given
        case {"range": [int() | float() as first, int() | float() as last, int() | float() as step]} if step:
            return [first + n * step for n in range(math.floor((last - first) / step + 1e-9) + 1)]
        case {"log": [int() | float() as first, int() | float() as last, int() as count]} if (
            count > 1 and first > 0 < last
        ):
            each = [first * (last / first) ** (n / (count - 1)) for n in range(count)]
            return [float(f"{value:.6g}") for value in each]
    raise UserError(
        f"{key}: expected a list, {{range: [first, last, step]}} or {{log: [first, last, count]}}, found {given!r}"
    )


def combinations(config: SweepConfig) -> Iterator[tuple[str, dict[str, Any], float]]:
    """Names, settings and budgets (0 without) of every combination of axes, budgets and seeds."""
    axes: list[list[tuple[str, dict[str, Any]]]] = []
    for name, axis in config.axes.items():
        columns = {key: values_of(f"axes.{name}.{key}", given) for key, given in axis.items()}
        lengths = {key: len(column) for key, column in columns.items()}
        if len(set(lengths.values())) != 1:
            raise UserError(f"axes.{name}: keys of one axis go together and need as many values each, found {lengths}")
        first = next(iter(columns))
        rows = [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
        axes.append([(f"{first.rpartition('.')[2]}{row[first]}", row) for row in rows])
    if config.budgets is not None:
        axes.append([(f"c{budget:.3g}", {"": float(budget)}) for budget in values_of("budgets", config.budgets)])
    axes.append([(f"s{seed}" if len(config.seeds) > 1 else "", {"train.seed": seed}) for seed in config.seeds])
    for chosen in product(*axes):
        name = "-".join(part for part, _ in chosen if part)
        settings = {key: value for _, row in chosen for key, value in row.items()}
        budget = settings.pop("", 0.0)
        yield re.sub(r"[^a-z0-9.-]+", "", name.lower().replace("_", "-")) or "run", settings, budget
