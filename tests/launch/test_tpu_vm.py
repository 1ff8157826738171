"""The launcher of TPU VMs, with programs in place of gcloud: lost slices, failures, signals and commands for hosts."""

import os
import re
import signal
import subprocess
import time
from pathlib import Path

import pytest

from t5x_lite.parallel.distributed import handle_signals
from tests.conftest import REPOSITORY
from tests.launch.test_scripts import LAUNCH, run_bash

FAKE_GCLOUD = """#!/usr/bin/env bash
# A TPU that is preempted once, when its log is shown for the first time.
echo "$*" >> "$CALLS"
case "$*" in
  *"queued-resources describe"*)
    if [[ ! -e "$CALLS.exists" ]]; then exit 1; fi
    if [[ -e "$CALLS.preempted" && ! -e "$CALLS.recreated" ]]; then echo SUSPENDED; else echo ACTIVE; fi ;;
  *"queued-resources create"*)
    if [[ -e "$CALLS.preempted" ]]; then touch "$CALLS.recreated"; fi
    touch "$CALLS.exists" ;;
  *"queued-resources delete"*) rm -f "$CALLS.exists" ;;
  *"tail -n"*) [[ -e "$CALLS.recreated" ]] || touch "$CALLS.preempted" ;;
  *"cat t5x_lite/exit_code"*) echo 0 ;;
esac
"""


def test_a_preempted_tpu_is_requested_again_and_deleted_at_the_end(tmp_path: Path) -> None:
    (tmp_path / "gcloud").write_text(FAKE_GCLOUD)
    (tmp_path / "gcloud").chmod(0o755)
    environment = {"PATH": f"{tmp_path}:{os.environ['PATH']}", "CALLS": str(tmp_path / "calls"), "T5X_LITE_POLL": "0"}
    options = ("--zone", "us-east5-a", "--type", "v5p-256", "--spot", "run_dir=/gcs/x", "train.sample_prompt=it's a")
    done = run_bash(LAUNCH / "tpu_vm.sh", "run1", "configs/pods/gpt3_13b.yaml", *options, **environment)
    assert done.returncode == 0, done.stderr
    assert "preempted; starting again, 99 preemptions left" in done.stderr
    calls = (tmp_path / "calls").read_text().splitlines()
    verbs = ["create", "delete", "scp", "nohup sh -c", "tail -n"]
    observed_verbs: list[str] = []
    for call in calls:
        observed_verbs += [verb for verb in verbs if verb in call]
    first_verbs = ["create", "scp", "nohup sh -c", "tail -n"]
    assert observed_verbs == [*first_verbs, "delete", *first_verbs, "delete"]
    create_call = next(call for call in calls if "create" in call)
    assert "--accelerator-type v5p-256 --runtime-version v2-alpha-tpuv5 --spot" in create_call
    train_call = next(call for call in calls if "nohup sh -c" in call)
    quoted_command = train_call.partition("--command ")[2].partition("sh -c ")[2].partition(" > /dev/null")[0]
    unquoted = run_bash("-c", f"printf '%s\\n' {quoted_command.replace('.venv/bin/python', 'echo')}")
    assert "run_dir=/gcs/x" in unquoted.stdout


def test_the_dry_run_of_a_tpu_prints_every_command_and_runs_none() -> None:
    options = ("--zone", "z", "--type", "v6e-16", "run_dir=gs://b/run", "data.cache_dir=gs://b/cache")
    done = run_bash(LAUNCH / "tpu_vm.sh", "--dry-run", "run1", "configs/pods/gpt3_13b.yaml", *options)
    assert done.returncode == 0, done.stderr
    assert "run_dir=gs://b/run\\ data.cache_dir=gs://b/cache" in done.stderr
    programs = [line.split()[1] for line in done.stderr.splitlines() if line.startswith("+ ")]
    assert programs == ["gcloud", "tar", "gcloud", "gcloud", "gcloud", "gcloud", "gcloud"]


FAKE_TPU = """#!/usr/bin/env bash
# A TPU that is never preempted. FAIL is a command that fails, and UNSEEN how often the slice cannot be seen while it
# trains. With WAITS, training goes on until it is asked to stop. STATE is what is said of the slice.
echo "${0##*/} $*" >> "$CALLS"
case " ${0##*/} $*" in
  *" ${FAIL:-nothing} "*) exit 7 ;;
  *"queued-resources describe"*)
    [[ -e "$CALLS.exists" ]] || exit 1
    if [[ -e "$CALLS.trains" ]] && (($(cat "$CALLS.unseen" 2>/dev/null | wc -l) < ${UNSEEN:-0})); then
      echo >> "$CALLS.unseen"
      exit 1
    fi
    echo "${STATE:-ACTIVE}" ;;
  *"queued-resources create"*) touch "$CALLS.exists" ;;
  *"queued-resources delete"*) rm "$CALLS.exists" ;;
  *"pkill "*) touch "$CALLS.stopped" ;;
  *"tail -n"*)
    touch "$CALLS.trains"
    for _ in {1..300}; do
      if [[ -z "${WAITS:-}" || -e "$CALLS.stopped" ]]; then break; fi
      sleep 0.1
    done ;;
  *"cat t5x_lite/exit_code"*) if [[ -e "$CALLS.stopped" ]]; then echo 75; else echo 0; fi ;;
esac
"""
TRAIN = (LAUNCH / "tpu_vm.sh", "run1", "configs/quickstart.yaml", "--zone", "z", "--type", "v6e-16")


def put_in_path(folder: Path, program: str, *names: str) -> dict[str, str]:
    """Return the environment variables of a script that finds this program under these names."""
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(program)
        (folder / name).chmod(0o755)
    return {"PATH": f"{folder}:{os.environ['PATH']}", "CALLS": str(folder / "calls"), "T5X_LITE_POLL": "0"}


def count_calls(folder: Path, words: str) -> int:
    return sum(words in call for call in (folder / "calls").read_text().splitlines())


@pytest.mark.parametrize("command", ["create", "tar", "scp"])
def test_a_slice_that_cannot_be_created_or_installed_is_a_failure(tmp_path: Path, command: str) -> None:
    environment = put_in_path(tmp_path, FAKE_TPU, "gcloud", "tar")
    done = run_bash(*TRAIN, **environment, FAIL=command, T5X_LITE_FAILURES="1")
    assert done.returncode == 7, done.stderr
    assert "failed with exit code 7; starting again, 0 failures left" in done.stderr
    assert count_calls(tmp_path, f"{command} ") == 2
    assert count_calls(tmp_path, "nohup sh -c") == 0


def test_a_request_that_fails_counts_as_a_failure(tmp_path: Path) -> None:
    environment = put_in_path(tmp_path, FAKE_TPU, "gcloud", "tar")
    done = run_bash(*TRAIN, **environment, STATE="FAILED", T5X_LITE_FAILURES="2")
    assert done.returncode == 1, done.stderr
    assert count_calls(tmp_path, "resources create") == 3


def test_a_type_without_known_software_is_refused() -> None:
    done = run_bash(LAUNCH / "tpu_vm.sh", "run1", "configs/quickstart.yaml", "--zone", "z", "--type", "v3-8")
    assert done.returncode == 2
    assert "--type v3-8: name its software by --runtime" in done.stderr


def test_the_log_of_a_program_that_has_ended_is_shown_at_once(tmp_path: Path) -> None:
    """The command that follows the log runs here as on a host, after three lines of four were shown."""
    done = run_bash(LAUNCH / "tpu_vm.sh", "--dry-run", "follow", *TRAIN[1:])
    (command,) = (line for line in done.stderr.splitlines() if "tail" in line)
    (tmp_path / "t5x_lite").mkdir()
    (tmp_path / "t5x_lite/train.log").write_text("one\ntwo\nthree\nfour\n")
    (tmp_path / "t5x_lite/shown").write_text("3\n")
    unquoted = run_bash("-c", f"printf %s {command.partition('--command ')[2]}").stdout
    shown = subprocess.run(
        ["bash", "-c", unquoted], cwd=tmp_path, capture_output=True, text=True, timeout=20, check=True
    )
    assert shown.stdout == "four\n"
    assert (tmp_path / "t5x_lite/shown").read_text().strip() == "4"


@pytest.mark.parametrize(("unseen", "slices"), [(2, 1), (3, 2)])
def test_a_slice_that_cannot_be_seen_is_lost_only_after_three_looks(tmp_path: Path, unseen: int, slices: int) -> None:
    environment = put_in_path(tmp_path, FAKE_TPU, "gcloud", "tar")
    done = run_bash(*TRAIN, **environment, UNSEEN=str(unseen))
    assert done.returncode == 0, done.stderr
    assert count_calls(tmp_path, "nohup sh -c") == slices
    assert count_calls(tmp_path, "resources create") == slices
    assert count_calls(tmp_path, "resources delete") == slices


def send_signal_while_it_trains(folder: Path, number: int) -> tuple[int, str]:
    """Return the exit code of the launcher, and what it has printed."""
    environment = os.environ | put_in_path(folder, FAKE_TPU, "gcloud", "tar") | {"WAITS": "yes"}
    command = ["bash", *map(str, TRAIN)]
    # A shell ignores SIGINT in what it runs in the background, such as these tests, and bash cannot trap it then.
    with handle_signals(signal.default_int_handler, signal.SIGINT):
        launcher = subprocess.Popen(command, cwd=REPOSITORY, env=environment, stderr=subprocess.PIPE, text=True)
    try:
        deadline = time.monotonic() + 30
        while not (folder / "calls.trains").exists():
            assert time.monotonic() < deadline
            time.sleep(0.05)
        launcher.send_signal(number)
        _, output = launcher.communicate(timeout=20)  # also until the program that shows the log has ended
    finally:
        launcher.kill()
    return launcher.returncode, output


def test_on_sigterm_the_program_saves_and_the_slice_is_deleted(tmp_path: Path) -> None:
    exit_code, output = send_signal_while_it_trains(tmp_path, signal.SIGTERM)
    assert exit_code == 75, output
    assert count_calls(tmp_path, "nohup sh -c") == 1
    assert count_calls(tmp_path, "pkill ") == 1
    assert count_calls(tmp_path, "resources create") == 1
    calls = (tmp_path / "calls").read_text().splitlines()
    assert "resources delete" in calls[-1]
    (stop_call,) = [call for call in calls if "pkill" in call]
    assert "--worker all" in stop_call
    # A process is found by its words. The shells of both commands must not end, one of which writes the exit code.
    remote_command = stop_call.partition("--command ")[2]
    pattern = remote_command.split("'")[1]
    assert re.search(pattern, ".venv/bin/python -m t5x_lite train configs/quickstart.yaml")
    assert not re.search(pattern, "sh -c .venv/bin/python -m t5x_lite train configs/quickstart.yaml > train.log")
    assert not re.search(pattern, f"bash -c {remote_command}")


def test_ctrl_c_leaves_the_slice_and_says_how_to_delete_it(tmp_path: Path) -> None:
    exit_code, output = send_signal_while_it_trains(tmp_path, signal.SIGINT)
    assert exit_code == 130, output
    assert count_calls(tmp_path, "pkill") == count_calls(tmp_path, "resources delete") == 0
    last_line = output.splitlines()[-1]
    assert "run1 is not deleted, and training goes on if it has begun" in last_line
    assert "tpu_vm.sh follow run1 configs/quickstart.yaml --zone z --type v6e-16;" in last_line
    delete = last_line.partition("to delete it: ")[2]
    assert run_bash("-c", delete, **put_in_path(tmp_path, FAKE_TPU, "gcloud")).returncode == 0
    assert count_calls(tmp_path, "resources delete run1 --zone z") == 1


FAKE_HOST = """#!/usr/bin/env bash
# Runs the commands of the hosts in the folder HOST, where it is in place of the programs. OLD is 1 for an old Python.
case "${0##*/} $*" in
  gcloud*describe*) echo ACTIVE ;;
  gcloud*" ssh "*) cd "$HOST" && bash -c "${@: -1}" ;;
  python3*version_info*) exit "$OLD" ;;
  *) echo "${0##*/} $*" >> "$CALLS" ;;
esac
"""


def test_the_log_of_a_restarted_program_is_shown_from_its_beginning(tmp_path: Path) -> None:
    program = tmp_path / "t5x_lite/.venv/bin/python"
    program.parent.mkdir(parents=True)
    program.write_text("#!/bin/sh\necho step 1\necho step 2\n")
    program.chmod(0o755)
    environment = put_in_path(tmp_path, FAKE_HOST, "gcloud") | {"HOST": str(tmp_path), "T5X_LITE_FOLLOW": "1"}
    for _ in range(2):
        assert run_bash(*TRAIN, "run", **environment).returncode == 0
        done = run_bash(*TRAIN, "follow", **environment)
        assert done.returncode == 0, done.stderr
        assert done.stdout.splitlines()[:2] == ["step 1", "step 2"]


@pytest.mark.parametrize(("old", "environment_program"), [("0", "-m venv"), ("1", "-m uv venv")])
def test_hosts_with_an_old_python_receive_a_newer_one(tmp_path: Path, old: str, environment_program: str) -> None:
    environment = put_in_path(tmp_path, FAKE_HOST, "gcloud", "tar", "python3", "t5x_lite/.venv/bin/pip")
    done = run_bash(*TRAIN, "install", **environment, HOST=str(tmp_path), OLD=old)
    assert done.returncode == 0, done.stderr
    assert count_calls(tmp_path, f"python3 {environment_program}") == 1
    assert count_calls(tmp_path, "pip install --quiet --user uv") == int(old)
    assert count_calls(tmp_path, "pip install --quiet .[tpu,gcs]") == 1


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ("launch/skypilot/train.yaml", "must be in configs/"),
        ("configs/../launch/skypilot/train.yaml", "must be in configs/"),
        ("configs/nothing.yaml", "there is no such file"),
    ],
)
def test_a_config_that_the_hosts_would_not_have_is_refused(config: str, message: str) -> None:
    done = run_bash(LAUNCH / "tpu_vm.sh", "--dry-run", "run1", config, "--zone", "z", "--type", "v6e-16")
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert f"{config}: {message}" in line
