"""The launch scripts: shellcheck, dry runs, and a manifest that is valid for Kubernetes."""

import json
import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.conftest import REPOSITORY

LAUNCH = REPOSITORY / "launch"
SCRIPTS = sorted([*LAUNCH.rglob("*.sh"), *LAUNCH.rglob("*.sbatch"), *REPOSITORY.glob("tools/*.sh")])


def run_bash(*arguments: object, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["bash", *map(str, arguments)],
        cwd=REPOSITORY,
        env=os.environ | environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )


@pytest.mark.skipif(shutil.which("shellcheck") is None, reason="shellcheck is not installed")
def test_every_script_passes_shellcheck() -> None:
    done = subprocess.run(["shellcheck", "-x", *SCRIPTS], cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize(
    ("status", "budgets", "expected"),
    [
        (0, (1, 1), (1, (1, 1))),
        (2, (1, 1), (1, (1, 1))),
        (3, (1, 1), (1, (1, 1))),
        (75, (2, 1), (0, (1, 1))),
        (143, (1, 1), (0, (0, 1))),
        (75, (0, 1), (1, (0, 1))),
        (75, (-2, 1), (1, (-2, 1))),  # Slurm has restarted the job more often than the budget allows
        (137, (1, 1), (0, (1, 0))),
        (69, (1, 2), (0, (1, 1))),
        (1, (5, 0), (1, (5, 0))),
        (1, (5, -1), (1, (5, -1))),
    ],
)
def test_preemptions_and_failures_have_separate_budgets(
    status: int, budgets: tuple[int, int], expected: tuple[int, tuple[int, int]]
) -> None:
    script = (
        f"source launch/budgets.sh; should_restart job {status} && code=0 || code=$?; echo $code $preemptions $failures"
    )
    preemptions, failures = budgets
    done = run_bash("-c", script, T5X_LITE_PREEMPTIONS=str(preemptions), T5X_LITE_FAILURES=str(failures))
    code, preemptions_left, failures_left = map(int, done.stdout.split())
    assert (code, (preemptions_left, failures_left)) == expected, done.stderr


GKE_DRY_RUN = (LAUNCH / "gke/train.sh", "--dry-run", "run-1", "configs/pods/gpt3_13b.yaml", "--image", "a.b/c/t5x:1")
GKE_OPTIONS = ("--bucket", "models", "--accelerator", "tpu-v5p-slice", "--topology", "4x4x8")


def build_manifest(*arguments: str) -> dict[str, Any]:
    done = run_bash(*GKE_DRY_RUN, *GKE_OPTIONS, *arguments)
    assert done.returncode == 0, done.stderr
    assert "${" not in done.stdout
    return yaml.safe_load(done.stdout)


def test_the_manifest_is_a_valid_jobset_of_valid_jobs() -> None:
    """The JobSet is validated by its CRD (jobset.json), its Job by Kubernetes' schema. Both refuse unknown keys."""
    kubernetes_validate = pytest.importorskip("kubernetes_validate")
    jsonschema = pytest.importorskip("jsonschema")
    manifest = build_manifest("--slices", "2", "train.seed=3", "run_dir=/elsewhere", "train.sample_prompt=it's")
    jsonschema.validate(manifest, json.loads(Path(__file__).with_name("jobset.json").read_text()))
    (slices,) = manifest["spec"]["replicatedJobs"]
    job = {"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": "slice"}, **slices["template"]}
    kubernetes_validate.validate(job, "1.33", strict=True)
    job_with_unknown_key = {**job, "spec": {**job["spec"], "backofLimit": 0}}
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(job_with_unknown_key, "1.33", strict=True)

    # A slice of 128 chips, four per host, has 32 pods, each with its four chips, on nodes of that topology.
    assert (slices["replicas"], job["spec"]["parallelism"], job["spec"]["completions"]) == (2, 32, 32)
    pod = job["spec"]["template"]["spec"]
    assert pod["nodeSelector"]["cloud.google.com/gke-tpu-topology"] == "4x4x8"
    (container,) = pod["containers"]
    assert container["resources"]["limits"] == {"google.com/tpu": "4"}
    assert container["args"][:2] == ["train", "configs/pods/gpt3_13b.yaml"]
    assert {"run_dir=gs://models/runs/run-1", "data.cache_dir=gs://models/cache"} <= set(container["args"])
    assert "volumes" not in pod
    assert container["args"][-3:] == ["train.seed=3", "run_dir=/elsewhere", "train.sample_prompt=it's"]


def test_the_manifest_distinguishes_wrong_input_from_preemptions() -> None:
    """JobSet's rules match the index of the pods' rule, with which the message of a failed Job ends."""
    manifest = build_manifest()
    rules = manifest["spec"]["failurePolicy"]["rules"]
    pod_rules = manifest["spec"]["replicatedJobs"][0]["template"]["spec"]["podFailurePolicy"]["rules"]
    assert pod_rules[0]["onExitCodes"]["values"] == [2, 3]
    message = "Container train for pod x/y failed with exit code 2 matching FailJob rule at index 0"
    assert rules[0]["action"] == "FailJobSet"
    assert re.search(rules[0]["onJobFailureMessagePatterns"][0], message)
    assert not re.search(rules[0]["onJobFailureMessagePatterns"][0], message.replace("index 0", "index 1"))
    assert rules[1]["action"] == "RestartJobSetAndIgnoreMaxRestarts"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--topology", "4x4;x"), "write for example 4x4x4"),
        (("--image", "$(reboot)"), "unexpected character"),
        (("--topology", "08x4x4"), "write for example 4x4x4"),
        (("--slices", "two"), "must be a number"),
        (("--chips-per-host", "0"), "must be a number from 1"),
        (("--imge", "x"), "unknown option --imge"),
    ],
)
def test_wrong_arguments_are_refused_before_a_manifest_is_printed(arguments: tuple[str, str], message: str) -> None:
    done = run_bash(*GKE_DRY_RUN, *GKE_OPTIONS, *arguments)
    assert done.returncode == 2
    assert message in done.stderr
    assert done.stdout == ""


def test_dry_runs_of_slurm_and_of_the_simulated_pod_print_the_command() -> None:
    done = run_bash(LAUNCH / "slurm/train.sbatch", "configs/quickstart.yaml", "train.steps=3", DRY_RUN="1")
    assert done.returncode == 0, done.stderr
    assert "python -m t5x_lite train configs/quickstart.yaml train.steps=3" in done.stdout
    done = run_bash(LAUNCH / "pod_sim.sh", "--dry-run", "2", "configs/quickstart.yaml")
    assert done.stdout.count("python -m t5x_lite train") == 2


def test_the_local_script_passes_overrides_to_the_command_and_not_to_the_installation(tmp_path: Path) -> None:
    for name in ("python", "t5x-lite"):
        path = tmp_path / name
        path.write_text(f'#!/bin/sh\necho "{name} $*" >> {tmp_path}/calls\n')
        path.chmod(0o755)
    environment = {"VIRTUAL_ENV": str(tmp_path), "PATH": f"{tmp_path}:{os.environ['PATH']}"}
    done = run_bash(LAUNCH / "local.sh", "configs/quickstart.yaml", "train.steps=3", **environment)
    assert done.returncode == 0, done.stderr
    calls = (tmp_path / "calls").read_text().splitlines()
    install_calls = [call for call in calls if " pip install " in call]
    assert [call.split()[-2:] for call in install_calls] == [["-e", "."]]
    assert calls[-1] == f"t5x-lite train {REPOSITORY}/configs/quickstart.yaml train.steps=3"


FAKE_PYTHON = """#!/bin/bash
# Creates a virtual environment with this program as its python, slowly, and installs slowly what FAIL does not forbid.
echo "$*" >> "$CALLS"
case "$*" in
  "-m venv .venv")
    mkdir -p .venv/bin && cp "$0" .venv/bin/python && sleep 0.5
    echo "export VIRTUAL_ENV=$PWD/.venv PATH=$PWD/.venv/bin:\\$PATH" > .venv/bin/activate ;;
  *"pip install"*) sleep 0.5; exit "${FAIL:-0}" ;;
esac
"""
INSTALL = f"source {REPOSITORY}/tools/environment.sh cuda"


def start_installation(folder: Path, **environment: str) -> subprocess.Popen[str]:
    """Start the installation of an environment in a folder, with a program in place of Python."""
    program = folder / "python3"
    program.write_text(FAKE_PYTHON)
    program.chmod(0o755)
    (folder / "tools").mkdir(exist_ok=True)
    for name in ("setup.cfg", "tools/constraints.txt"):
        (folder / name).touch()
    variables = os.environ | {"T5X_LITE_PYTHON": str(program), "CALLS": str(folder / "calls"), **environment}
    variables.pop("VIRTUAL_ENV", None)
    return subprocess.Popen(["bash", "-c", INSTALL], cwd=folder, env=variables, stderr=subprocess.PIPE, text=True)


@pytest.mark.skipif(shutil.which("flock") is None, reason="flock is not installed")
def test_two_starts_at_once_create_and_install_one_environment(tmp_path: Path) -> None:
    for start in [start_installation(tmp_path) for _ in range(2)]:
        assert start.wait(timeout=30) == 0
    calls = (tmp_path / "calls").read_text().splitlines()
    assert calls.count("-m venv .venv") == 1
    assert sum("pip install" in call for call in calls) == 1


def test_an_environment_whose_creation_was_interrupted_is_created_again(tmp_path: Path) -> None:
    (tmp_path / ".venv/bin").mkdir(parents=True)
    (tmp_path / ".venv/bin/python").touch(mode=0o755)
    assert start_installation(tmp_path).wait(timeout=30) == 0
    assert (tmp_path / ".venv/bin/activate").exists()


def test_a_failed_installation_is_tried_again(tmp_path: Path) -> None:
    assert start_installation(tmp_path, FAIL="1").wait(timeout=30) == 1
    assert start_installation(tmp_path).wait(timeout=30) == 0
    assert sum("pip install" in call for call in (tmp_path / "calls").read_text().splitlines()) == 2
