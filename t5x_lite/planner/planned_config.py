"""The config of a planned run: that of the command with what the plan chose."""

import os
import sys
from collections.abc import Sequence
from pathlib import Path

from t5x_lite import schema
from t5x_lite.config import RunConfig
from t5x_lite.config_files import find_config
from t5x_lite.files import check_not_input, write_file
from t5x_lite.parallel.config import MeshConfig
from t5x_lite.planner.config import PlanConfig
from t5x_lite.planner.plan import Plan
from t5x_lite.planner.report import GIBIBYTE


def write_planned_config(base: str, overrides: Sequence[str], plan: Plan, pod: PlanConfig, path: Path) -> None:
    """Write a config that trains as planned, if that fits, and say so on standard error.

    Args:
        base: the config of the command, which the new one is based on.
        overrides: the settings of the command.
        plan: mesh, microbatches, their reduction and policy of rematerialisation.
        pod: what it was planned for.
        path: the file.

    Raises:
        UserError: the file is the config of the command, or cannot be written.
    """
    source = find_config(base)
    check_not_input(path, source)
    if not plan.fits:
        print(f"{path}: not written, because nothing fits", file=sys.stderr)
        return
    mesh = {axis: plan.mesh.get(axis, 1) for axis in MeshConfig.model_fields}
    planned = {
        "model": {"remat": plan.remat},
        "train": {"microbatches": plan.microbatches, "data_reduction": plan.data_reduction},
        "mesh": mesh,
        "plan": pod.model_dump(),
    }
    settings = schema.merge(RunConfig, schema.merge_overrides(RunConfig, overrides), planned)
    if Path(base).exists():
        base = os.path.relpath(source.absolute(), path.absolute().parent)  # else it is the name of a shipped config
    values = {"base": [base], **settings}
    used = f"{plan.memory_bytes / GIBIBYTE:.1f} of {plan.available_bytes / GIBIBYTE:.1f} GiB per device"
    write_file(path, f"# Planned for {plan.topology}: {used}.\n{schema.dump(values)}")
    print(f"written: {path}", file=sys.stderr)
