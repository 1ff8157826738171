"""Sweep files: their settings, and how they are loaded."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Strict

from t5x_lite import schema
from t5x_lite.config_files import find_config
from t5x_lite.local_copies import local_path
from t5x_lite.schema import Config, Int, Strings, setting
from t5x_lite.storage import is_remote, join


class LaunchConfig(Config):
    """Options for the scripts in launch/, one word each."""

    slurm: Strings = setting(("--gpus-per-task=1",), "options of sbatch")
    gke: Strings = setting((), "options of launch/gke/train.sh, such as [--image, IMAGE]")
    tpu_vm: Strings = setting((), "options of launch/tpu_vm.sh, such as [--zone, ZONE]")


def _check_axes(value: Any) -> Any:
    """Refuse an axis without a name, whose place its only key has."""
    if isinstance(value, dict):
        for name, keys in value.items():
            if not isinstance(keys, dict):
                raise ValueError(f"an axis has a name above its keys: write {{NAME: {{{name}: {keys}}}}}")
    return value


class SweepConfig(Config):
    """A grid of runs. Values of an axis: a list, `{range: [first, last, step]}` or `{log: [first, last, count]}`."""

    config: Strings = setting(
        ...,
        "the runs' config, relative to the sweep file, or the name of a shipped one; a list of them is an axis",
        min_length=1,
    )
    set: dict[str, Any] = setting({}, "keys of the run's config, dotted or nested, with their value in every run")
    axes: Annotated[dict[str, dict[str, Any]], BeforeValidator(_check_axes)] = setting(
        {}, "{name: {dotted key: values}}: every combination of the axes; the keys of one axis vary together"
    )
    budgets: Any = setting(None, "IsoFLOP grid: values of C; train.steps of each run follows from it", unit="FLOPs")
    parameters: Literal["all", "active", "non_embedding"] = setting(
        "active",
        "the parameters that N counts: all; those that are active for one token (of the experts, as many as it is "
        "routed to); the active ones without embedding tables and output matrix",
    )
    flops: Literal["model", "6nd"] = setting(
        "model",
        "the FLOPs that C counts: active matrices, output matrix and attention, causal attention as half; or 6·N·D",
    )
    learning_rate: Literal["kaplan", "deepseek"] | None = setting(
        None, "rule: by N or by C", source="Kaplan et al. 2020, eq. D.1; DeepSeek LLM 2024, eq. 1"
    )
    batch_size: Literal["kaplan", "deepseek"] | None = setting(
        None, "rule: by the loss at N, or by C", source="Kaplan et al. 2020, eq. 1.4; DeepSeek LLM 2024, eq. 1"
    )
    batch_multiple: Int = setting(8, "a batch by rule is a multiple of this", unit="sequences", ge=1)
    derived: dict[str, str] = setting(
        {},
        "{dotted key: expression} of other keys and of N, D, C; train.steps may use N alone, and the model's keys, "
        "train.batch_size and train.seq_len none of the three",
    )
    branches: bool = setting(
        False,
        "runs that differ only in train.steps share the stable phase of one long run (schedule wsd), and decay from "
        "its checkpoints",
        source="Hägele et al. 2024, §3",
    )
    seeds: Annotated[tuple[Int, ...], Strict(False)] = setting((0,), "train.seed of the repetitions", min_length=1)
    dir: str | None = setting(
        None,
        "folder of the sweep's files and runs, local, gs://BUCKET/… or s3://BUCKET/…; null: sweeps/<name of the sweep "
        "file>",
    )
    where: Literal["local", "slurm", "gke", "tpu_vm"] = setting("local", "where the runs are started")
    jobs: Int = setting(1, "runs at the same time; local ones share the processors or GPUs", ge=1)
    retries: Int = setting(2, "how often one start of the sweep restarts a run that fails", ge=0)
    launch: LaunchConfig = setting(LaunchConfig(), "options of the launchers")

    def problems(self) -> Iterator[str]:
        if self.where in {"gke", "tpu_vm"} and not (self.dir and is_remote(self.dir)):
            yield (
                f"`where` {self.where} needs `dir` in a bucket, such as gs://BUCKET/sweeps/NAME, which all machines "
                "see and which remains when they are gone"
            )


@dataclass(frozen=True)
class Sweep:
    """A sweep file with the paths of its run configs, the bases of the runs, and of its folder.

    `folder` is a local copy if `dir` is in a bucket; the copy has no runs.
    """

    name: str
    config: SweepConfig
    bases: tuple[Path, ...]
    folder: Path

    @property
    def runs_folder(self) -> str:
        """The folder of the run directories."""
        if self.config.dir is not None and is_remote(self.config.dir):
            return join(self.config.dir, "runs")
        return str((self.folder / "runs").absolute())


def load(path: Path, overrides: Sequence[str] = ()) -> Sweep:
    """Load a sweep file, or a shipped one by its name, such as `sweeps/quickstart`.

    Raises:
        UserError: one line with every fault, or a bucket that cannot be read.
    """
    path = find_config(path)
    config = schema.validate(SweepConfig, schema.read(SweepConfig, path, overrides))
    folder = Path("sweeps") / path.stem
    if config.dir:
        folder = local_path(config.dir)
    bases = tuple(find_config(name, path.parent).resolve() for name in config.config)
    return Sweep(path.stem, config, bases, folder)
