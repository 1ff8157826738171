"""Launch files of XPK, SkyPilot and Ray: dry runs, SkyPilot's schema, and a local Ray where it is installed."""

import json
import os
import runpy
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.conftest import REPOSITORY, Shell, lines
from tests.launch.test_scripts import LAUNCH, run_bash

XPK_DRY_RUN = (LAUNCH / "xpk/train.sh", "--dry-run", "run-1", "pods/gpt3_13b")
XPK_OPTIONS = ("--cluster", "tpus", "--type", "v5p-256", "--image", "a.b/c/t5x:1", "--bucket", "models")


def test_xpk_creates_a_workload_that_is_restarted_unless_a_restart_would_not_help() -> None:
    done = run_bash(*XPK_DRY_RUN, *XPK_OPTIONS, "--slices", "2", "--spot", "train.sample_prompt=it's a", "train.seed=3")
    assert done.returncode == 0, done.stderr
    words = shlex.split(done.stdout)
    assert words[:3] == ["xpk", "workload", "create"]
    assert words[-1] == "--spot"
    options = dict(zip(words[3:-1:2], words[4:-1:2], strict=True))
    assert options["--workload"] == "run-1"
    assert (options["--tpu-type"], options["--num-slices"]) == ("v5p-256", "2")
    assert options["--docker-image"] == "a.b/c/t5x:1"
    restarted = set(options["--restart-on-exit-codes"].split(","))
    assert "75" in restarted
    assert not {"0", "2", "3"} & restarted  # complete, wrong input, diverged
    # XPK runs the command in a shell, which must give the program the words of this command line.
    program = shlex.split(options["--command"])
    assert program[:4] == ["exec", "t5x-lite", "train", "pods/gpt3_13b"]
    assert program[4:] == ["run_dir=gs://models/runs/run-1", "train.sample_prompt=it's a", "train.seed=3"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((*XPK_OPTIONS, "--slices", "two"), "must be a number"),
        ((*XPK_OPTIONS, "--imge", "x"), "unknown option --imge"),
        (XPK_OPTIONS[2:], "--cluster is required"),
    ],
)
def test_xpk_refuses_wrong_arguments(arguments: tuple[str, ...], message: str) -> None:
    done = run_bash(*XPK_DRY_RUN, *arguments)
    assert done.returncode == 2
    assert message in done.stderr
    assert done.stdout == ""


def skypilot_task() -> dict[str, Any]:
    return yaml.safe_load((LAUNCH / "skypilot/train.yaml").read_text())


def test_the_task_of_skypilot_is_valid() -> None:
    jsonschema = pytest.importorskip("jsonschema")
    schema = json.loads(Path(__file__).with_name("skypilot.json").read_text())
    task = skypilot_task()
    jsonschema.validate(task, schema)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate({**task, "num_node": 2}, schema)
    assert 75 in task["resources"]["job_recovery"]["recover_on_exit_codes"]


def run_skypilot_node(folder: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run the `run` section of the task with a program in place of t5x-lite that prints its arguments."""
    (folder / ".venv/bin").mkdir(parents=True)
    (folder / ".venv/bin/activate").write_text(f'PATH="{folder}/.venv/bin:$PATH"\n')
    (folder / ".venv/bin/t5x-lite").write_text('#!/bin/sh\nprintf "%s\\n" "$@"\n')
    (folder / ".venv/bin/t5x-lite").chmod(0o755)
    task = skypilot_task()
    variables = {name: value for name, value in task["envs"].items() if value is not None}
    nodes = {"SKYPILOT_NODE_IPS": "10.0.0.1\n10.0.0.2", "SKYPILOT_NUM_NODES": "2", "SKYPILOT_NODE_RANK": "1"}
    return subprocess.run(
        ["bash", "-c", task["run"]],
        cwd=folder,
        env=os.environ | variables | nodes | environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )


def test_a_node_of_skypilot_joins_the_others(tmp_path: Path) -> None:
    done = run_skypilot_node(
        tmp_path, CONFIG="pods/gpt3_13b", RUN_DIR="gs://models/x", OVERRIDES="train.seed=3 mesh.data=2"
    )
    assert done.stdout.splitlines() == [
        *("train", "pods/gpt3_13b", "run_dir=gs://models/x", "train.seed=3", "mesh.data=2"),
        *("--coordinator", "10.0.0.1:8476", "--num-processes", "2", "--process-id", "1"),
    ]


def test_a_task_of_skypilot_without_a_config_says_so(tmp_path: Path) -> None:
    done = run_skypilot_node(tmp_path, RUN_DIR="gs://models/x")
    assert done.returncode != 0
    assert "give --env CONFIG" in done.stderr


def run_ray(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(LAUNCH / "ray/train.py"), *arguments],
        cwd=REPOSITORY,
        env=os.environ | environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )


def test_a_dry_run_of_ray_prints_the_command_of_each_node() -> None:
    done = run_ray("--dry-run", "quickstart", "--nodes", "2", "--resources", "TPU=4", "train.seed=3")
    assert done.returncode == 0, done.stderr
    train = f"{sys.executable} -m t5x_lite train quickstart train.seed=3"
    nodes = "--coordinator NODE_0:PORT --num-processes 2 --process-id"
    assert done.stdout.splitlines() == [f"{train} {nodes} 0", f"{train} {nodes} 1"]
    assert run_ray("--dry-run", "quickstart").stdout == f"{sys.executable} -m t5x_lite train quickstart\n"


@pytest.mark.parametrize("arguments", [("quickstart", "--resources", "8"), ("quickstart", "--nodes", "0"), ()])
def test_ray_refuses_wrong_arguments(arguments: tuple[str, ...]) -> None:
    done = run_ray("--dry-run", *arguments)
    assert done.returncode == 2
    assert "error: " in done.stderr.splitlines()[-1]


@pytest.mark.parametrize(
    ("exit_codes", "restarts", "left"),
    [
        ([0, 0], False, (1, 1)),
        ([2, 69], False, (1, 1)),
        ([69, 3], False, (1, 1)),
        ([75, 75], True, (0, 1)),
        ([143, 69], True, (0, 1)),
        ([137, 69], True, (1, 0)),
        ([1, 69], True, (1, 0)),
    ],
)
def test_ray_restarts_by_the_exit_codes_of_all_processes(
    exit_codes: list[int], restarts: bool, left: tuple[int, int]
) -> None:
    budgets = runpy.run_path(str(LAUNCH / "ray/train.py"))["Budgets"](preemptions=1, failures=1)
    assert budgets.should_restart(exit_codes) == restarts
    assert (budgets.preemptions, budgets.failures) == left
    if restarts:
        assert not budgets.should_restart(exit_codes)  # the budget was one


@pytest.mark.slow
def test_two_processes_train_on_a_local_ray(tiny_config: Path, tmp_path: Path, t5x_lite: Shell) -> None:
    pytest.importorskip("ray")
    alone = t5x_lite("train", tiny_config, f"run_dir={tmp_path}/alone")
    assert alone.returncode == 0, alone.stderr
    words = ("--nodes", "2", "--resources", "CPU=1", "mesh.data=2", f"run_dir={tmp_path}/run")
    done = run_ray(str(tiny_config), *words, PYTHONPATH=f"{REPOSITORY}{os.pathsep}{os.environ.get('PYTHONPATH', '')}")
    assert done.returncode == 0, done.stderr
    losses = [record["loss"] for record in lines(tmp_path / "run")]
    assert losses == pytest.approx([record["loss"] for record in lines(tmp_path / "alone")], rel=1e-4)
