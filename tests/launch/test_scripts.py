"""The launch scripts: linted, their dry runs, a manifest that Kubernetes' schemas accept, a TPU that is taken away."""

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
SCRIPTS = sorted(path for path in [*LAUNCH.rglob("*.sh"), *LAUNCH.rglob("*.sbatch"), *REPOSITORY.glob("tools/*.sh")])


def bash(*arguments: object, **environment: str) -> subprocess.CompletedProcess[str]:
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
        (137, (1, 1), (0, (1, 0))),
        (69, (1, 2), (0, (1, 1))),
        (1, (5, 0), (1, (5, 0))),
    ],
)
def test_preemptions_and_failures_have_budgets_of_their_own(
    status: int, budgets: tuple[int, int], expected: tuple[int, tuple[int, int]]
) -> None:
    script = f"source launch/budgets.sh; again job {status} && code=0 || code=$?; echo $code $preemptions $failures"
    counts = {"T5X_LITE_PREEMPTIONS": str(budgets[0]), "T5X_LITE_FAILURES": str(budgets[1])}
    done = bash("-c", script, **counts)
    code, *left = map(int, done.stdout.split())
    assert (code, tuple(left)) == expected, done.stderr


GKE = (LAUNCH / "gke/train.sh", "--dry-run", "run-1", "configs/pods/gpt3_13b.yaml", "--image", "a.b/c/t5x:1")
MORE = ("--bucket", "models", "--accelerator", "tpu-v5p-slice", "--topology", "4x4x8")


def manifest(*more: str) -> dict[str, Any]:
    done = bash(*GKE, *MORE, *more)
    assert done.returncode == 0, done.stderr
    assert "${" not in done.stdout
    return yaml.safe_load(done.stdout)


def test_the_manifest_is_a_jobset_of_jobs_that_kubernetes_accepts() -> None:
    """The JobSet by its CRD (jobset.json), the Job inside by Kubernetes' own schema; unknown keys are refused."""
    kubernetes_validate = pytest.importorskip("kubernetes_validate")
    jsonschema = pytest.importorskip("jsonschema")
    found = manifest("--slices", "2", "train.seed=3", "run_dir=/elsewhere", "train.sample_prompt=it's")
    jsonschema.validate(found, json.loads(Path(__file__).with_name("jobset.json").read_text()))
    (slice_,) = found["spec"]["replicatedJobs"]
    job = {"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": "slice"}, **slice_["template"]}
    kubernetes_validate.validate(job, "1.33", strict=True)
    with pytest.raises(kubernetes_validate.ValidationError):
        broken = {**job, "spec": {**job["spec"], "backofLimit": 0}}
        kubernetes_validate.validate(broken, "1.33", strict=True)

    # 128 chips, four a host: 32 pods of each slice, each with its four chips, on nodes of that topology.
    assert (slice_["replicas"], job["spec"]["parallelism"], job["spec"]["completions"]) == (2, 32, 32)
    pod = job["spec"]["template"]["spec"]
    assert pod["nodeSelector"]["cloud.google.com/gke-tpu-topology"] == "4x4x8"
    (container,) = pod["containers"]
    assert container["resources"]["limits"] == {"google.com/tpu": "4"}
    assert container["args"][:2] == ["train", "configs/pods/gpt3_13b.yaml"]
    assert "checkpoint.folder=gs://models/runs/run-1/checkpoints" in container["args"]
    assert container["args"][-3:] == ["train.seed=3", "run_dir=/elsewhere", "train.sample_prompt=it's"]


def test_wrong_input_and_preemptions_are_told_apart_by_the_manifest() -> None:
    """JobSet's rules go by the index of the pods' rule that a Job's message ends with."""
    found = manifest()
    rules = found["spec"]["failurePolicy"]["rules"]
    pods = found["spec"]["replicatedJobs"][0]["template"]["spec"]["podFailurePolicy"]["rules"]
    assert pods[0]["onExitCodes"]["values"] == [2, 3]
    message = "Container train for pod x/y failed with exit code 2 matching FailJob rule at index 0"
    assert rules[0]["action"] == "FailJobSet"
    assert re.search(rules[0]["onJobFailureMessagePatterns"][0], message)
    assert not re.search(rules[0]["onJobFailureMessagePatterns"][0], message.replace("index 0", "index 1"))
    assert rules[1]["action"] == "RestartJobSetAndIgnoreMaxRestarts"


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (("--topology", "4x4;x"), "write for example 4x4x4"),
        (("--image", "$(reboot)"), "unexpected character"),
        (("--slices", "two"), "must be a number"),
        (("--imge", "x"), "unknown option --imge"),
    ],
)
def test_wrong_arguments_of_the_manifest_are_one_line(wrong: tuple[str, str], message: str) -> None:
    done = bash(*GKE, *MORE, *wrong)
    assert done.returncode == 2
    assert message in done.stderr
    assert done.stdout == ""


GCLOUD = """#!/usr/bin/env bash
# A TPU that is taken away once: the first `cat exit_code` finds it gone.
echo "$*" >> "$CALLS"
case "$*" in
  *"queued-resources describe"*)
    if [[ ! -e "$CALLS.made" ]]; then exit 1; fi
    if [[ -e "$CALLS.taken" && ! -e "$CALLS.again" ]]; then echo SUSPENDED; else echo ACTIVE; fi ;;
  *"queued-resources create"*) if [[ -e "$CALLS.taken" ]]; then touch "$CALLS.again"; fi; touch "$CALLS.made" ;;
  *"queued-resources delete"*) rm -f "$CALLS.made" ;;
  *"tail -n"*) [[ -e "$CALLS.again" ]] || touch "$CALLS.taken" ;;
  *"cat t5x_lite/exit_code"*) echo 0 ;;
esac
"""


def test_a_tpu_that_is_taken_away_is_asked_for_again_and_given_back(tmp_path: Path) -> None:
    (tmp_path / "gcloud").write_text(GCLOUD)
    (tmp_path / "gcloud").chmod(0o755)
    own = {"PATH": f"{tmp_path}:{os.environ['PATH']}", "CALLS": str(tmp_path / "calls"), "T5X_LITE_POLL": "0"}
    more = ("--zone", "us-east5-a", "--type", "v5p-256", "--spot", "run_dir=/gcs/x", "train.sample_prompt=it's a")
    done = bash(LAUNCH / "tpu_vm.sh", "run1", "configs/pods/gpt3_13b.yaml", *more, **own)
    assert done.returncode == 0, done.stderr
    assert "preempted; starting again, 99 preemptions left" in done.stderr
    calls = (tmp_path / "calls").read_text().splitlines()
    verbs = ["create", "delete", "scp", "m t5x_lite train", "tail -n"]
    order = [verb for call in calls for verb in verbs if verb in call]
    one = ["create", "scp", "m t5x_lite train", "tail -n"]
    assert order == [*one, "delete", *one, "delete"]
    create = next(call for call in calls if "create" in call)
    assert "--accelerator-type v5p-256 --runtime-version v2-alpha-tpuv5 --spot" in create
    trains = next(call for call in calls if "m t5x_lite train" in call)
    quoted = trains.partition("--command ")[2].partition("sh -c ")[2].partition(" > /dev/null")[0]
    said = bash("-c", f"printf '%s\\n' {quoted.replace('.venv/bin/python', 'echo')}")
    assert "run_dir=/gcs/x" in said.stdout


def test_the_dry_run_of_a_tpu_says_every_command_and_runs_none(tmp_path: Path) -> None:
    more = ("--zone", "z", "--type", "v6e-16")
    done = bash(LAUNCH / "tpu_vm.sh", "--dry-run", "run1", "configs/pods/gpt3_13b.yaml", *more)
    assert done.returncode == 0, done.stderr
    said = [line for line in done.stderr.splitlines() if line.startswith("+ ")]
    assert [line.split()[1] for line in said] == ["gcloud", "tar", "gcloud", "gcloud", "gcloud", "gcloud", "gcloud"]


def test_the_image_starts_the_command_line() -> None:
    """Every file that it copies is there, and nothing stands between Kubernetes and the program."""
    lines = (LAUNCH / "Dockerfile").read_text().splitlines()
    copied = [word for line in lines if line.startswith("COPY ") for word in line.split()[1:-1]]
    assert copied
    assert all((REPOSITORY / name).exists() for name in copied)
    assert lines[-1] == 'ENTRYPOINT ["t5x-lite"]'


def test_dry_runs_of_slurm_and_of_the_simulated_pod() -> None:
    done = bash(LAUNCH / "slurm/train.sbatch", "configs/quickstart.yaml", "train.steps=3", DRY_RUN="1")
    assert done.returncode == 0, done.stderr
    assert "python -m t5x_lite train configs/quickstart.yaml train.steps=3" in done.stdout
    done = bash(LAUNCH / "pod_sim.sh", "--dry-run", "2", "configs/quickstart.yaml")
    assert done.stdout.count("python -m t5x_lite train") == 2


def test_overrides_of_the_local_script_reach_the_command_and_not_the_installation(tmp_path: Path) -> None:
    for name in ("python", "t5x-lite"):
        path = tmp_path / name
        path.write_text(f'#!/bin/sh\necho "{name} $*" >> {tmp_path}/calls\n')
        path.chmod(0o755)
    environment = {"VIRTUAL_ENV": str(tmp_path), "PATH": f"{tmp_path}:{os.environ['PATH']}"}
    done = bash(LAUNCH / "local.sh", "configs/quickstart.yaml", "train.steps=3", **environment)
    assert done.returncode == 0, done.stderr
    calls = (tmp_path / "calls").read_text().splitlines()
    assert [call.split()[-2:] for call in calls if " pip install " in call] == [["-e", "."]]
    assert calls[-1] == f"t5x-lite train {REPOSITORY}/configs/quickstart.yaml train.steps=3"
