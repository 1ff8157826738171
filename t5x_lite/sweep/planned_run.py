"""One run of a sweep, and the file that lists all of them."""

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar

from pydantic import BaseModel, ConfigDict, Field, PositiveInt, ValidationError

from t5x_lite.errors import UserError
from t5x_lite.files import read_json_object, write_file
from t5x_lite.schema import first_problem
from t5x_lite.sweep.config import Sweep

MAX_JOB_NAME = 32
"""Characters of a job's name on a cluster."""
SETTINGS_OF_LAUNCH = ("dir", "where", "jobs", "retries", "launch")
"""Settings of a sweep that its runs do not depend on."""


Positive = Annotated[float, Field(gt=0)]
"""A number that laws take the logarithm of. It is checked where a plan is read from a file."""


@dataclass(frozen=True)
class PlannedRun:
    """A run's config, and the numbers that a scaling law needs.

    Attributes:
        name: unique in the sweep.
        config: path of the YAML file.
        overrides: dotted keys and values.
        run_dir: run directory, as the run sees it.
        parameters: N, as `SweepConfig.parameters` says.
        tokens: D.
        flops: C, as `SweepConfig.flops` says.
        budget: the C that the number of steps follows from; 0 without one.
        experts: of each mixture; 1 for a dense model.
        steps: the last step.
        computed_steps: steps that the run computes itself; a branch does not compute those of its trunk.
        step_flops: FLOPs of one step of the model.
        trunk: whether this is the stable phase that branches share.
        after: the trunk that must end before this run can start.
    """

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False)

    name: str
    config: str
    overrides: dict[str, object]
    run_dir: str
    parameters: Positive
    tokens: Positive
    flops: Positive
    budget: Annotated[float, Field(ge=0)]
    experts: PositiveInt
    steps: PositiveInt
    computed_steps: PositiveInt
    step_flops: Positive
    trunk: bool = False
    after: str | None = None

    @property
    def computed_flops(self) -> float:
        """FLOPs that the run computes itself."""
        return self.computed_steps * self.step_flops

    @property
    def words(self) -> list[str]:
        """The overrides as words of the command line."""
        return override_words({**self.overrides, "run_dir": self.run_dir})


def override_words(settings: Mapping[str, object]) -> list[str]:
    """Return settings as overrides of the command line, `dotted.key=value`.

    Raises:
        UserError: a value holds white space, at which the launch scripts split their arguments.
    """
    words = []
    for key, value in settings.items():
        text = json.dumps(value, separators=(",", ":"), ensure_ascii=False)
        if any(character.isspace() for character in text):
            raise UserError(f"a sweep's value cannot hold white space, found {text!r}: put it into the run's config")
        words.append(f"{key}={text}")
    return words


def job_name(sweep: Sweep, run: str) -> str:
    """Return the run's name or, on clusters, a name for its job that also holds the sweep's name.

    Clusters allow at most 32 lower case letters, digits and hyphens, and a letter first. A longer name ends in a hash.
    """
    if sweep.config.where not in {"gke", "tpu_vm"}:
        return run
    name = re.sub(r"[^a-z0-9]+", "-", f"{sweep.name}-{run}".lower()).strip("-")
    if not name[0].isalpha():
        name = f"s{name}"
    if len(name) <= MAX_JOB_NAME:
        return name
    digest = hashlib.sha256(name.encode()).hexdigest()[:8]
    beginning = name[: MAX_JOB_NAME - 9].rstrip("-")
    return f"{beginning}-{digest}"


class SweepPlan(BaseModel, strict=True, extra="forbid"):
    """Content of `plan.json`: the name of the sweep, its settings, and its runs."""

    sweep: str
    settings: dict[str, Any]
    runs: list[PlannedRun]


def read_plan(folder: Path) -> SweepPlan:
    """Read the plan of a sweep that was started.

    Raises:
        UserError: there is none, or it is not one.
    """
    path = folder / "plan.json"
    if not path.is_file():
        raise UserError(f"{folder}: is not the folder of a sweep that was started (no plan.json)")
    try:
        return SweepPlan.model_validate_json(json.dumps(read_json_object(path)))
    except ValidationError as error:
        raise UserError(f"{path}: {first_problem(error)}; start the sweep again to write it anew") from None


def check_settings(sweep: Sweep, plan: SweepPlan) -> None:
    """Refuse a sweep whose settings are not those of its plan, by which N, D and C were counted.

    Raises:
        UserError: the settings that differ, each with both values.
    """
    settings = sweep.config.model_dump(mode="json")
    differences = []
    for key, planned in plan.settings.items():
        if key in settings and key not in SETTINGS_OF_LAUNCH and settings[key] != planned:
            differences.append(f"{key} was {planned!r}, is {settings[key]!r}")
    if differences:
        raise UserError(
            f"{sweep.folder}: was planned with other settings: {'; '.join(differences)}; start the sweep with "
            "these, or fit the folder, which has the former ones"
        )


def write_plan(sweep: Sweep, runs: Sequence[PlannedRun]) -> None:
    """Write `plan.json`, from which `sweep fit` reads the runs without building their models.

    Raises:
        UserError: it cannot be written.
    """
    record = {
        "sweep": sweep.name,
        "settings": sweep.config.model_dump(mode="json"),
        "runs": [asdict(run) for run in runs],
    }
    write_file(sweep.folder / "plan.json", json.dumps(record, indent=1) + "\n")


def format_size(size: float) -> str:
    """Return a number of parameters, tokens or FLOPs with three digits, such as 3.61e04."""
    return f"{size:.3g}".replace("e+", "e")
