"""Jobs under real Slurm: the tests start a controller and a node on this machine if `slurm-wlm` is installed."""

import contextlib
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.conftest import REPOSITORY, lines

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        shutil.which("slurmctld") is None or shutil.which("slurmd") is None or os.geteuid() != 0,
        reason="needs root and Slurm: apt-get install slurm-wlm",
    ),
]

CONF = """
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={controller_port}
SlurmdPort={node_port}
SlurmUser=root
SlurmdUser=root
AuthType=auth/none
CredType=cred/none
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
SchedulerParameters=sched_interval=1,batch_sched_delay=0
MpiDefault=none
JobRequeue=1
KillWait=60
AccountingStorageType=accounting_storage/none
JobAcctGatherType=jobacct_gather/none
NodeName={host} NodeAddr=127.0.0.1 CPUs={cpus} State=UNKNOWN
PartitionName=all Nodes=ALL Default=YES MaxTime=INFINITE State=UP OverSubscribe=FORCE:4
"""

Slurm = Callable[..., str]


@pytest.fixture(scope="module")
def slurm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Slurm]:
    """A function that runs a command of Slurm, such as `sbatch`, and returns its output."""
    folder = tmp_path_factory.mktemp("slurm")
    for name in ("state", "spool"):
        (folder / name).mkdir()
    with socket.socket() as controller, socket.socket() as node:
        controller.bind(("127.0.0.1", 0))
        node.bind(("127.0.0.1", 0))
        controller_port = controller.getsockname()[1]
        node_port = node.getsockname()[1]
    host = socket.gethostname().partition(".")[0]
    path = folder / "slurm.conf"
    # The node has the real number of processors; OverSubscribe lets two tasks share them.
    settings = CONF.format(
        host=host, folder=folder, controller_port=controller_port, node_port=node_port, cpus=os.cpu_count()
    )
    path.write_text(settings)
    environment = os.environ | {
        "SLURM_CONF": str(path),
        "T5X_LITE_READY": "1",
        "JAX_PLATFORMS": "cpu",
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
    }
    log = (folder / "daemons.log").open("w")
    daemons = [
        subprocess.Popen([name, "-D"], env=environment, stdout=log, stderr=log) for name in ("slurmctld", "slurmd")
    ]

    def run(*arguments: object) -> str:
        command = list(map(str, arguments))
        done = subprocess.run(command, cwd=REPOSITORY, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"{command}: {done.stderr}"
        return done.stdout.strip()

    def is_idle() -> bool:
        with contextlib.suppress(AssertionError):  # the controller has not started yet
            return run("sinfo", "-h", "-o", "%T") == "idle"
        return False

    try:
        wait_for(is_idle, 30, folder / "daemons.log")
        yield run
        wait_for(lambda: not run("squeue", "-h"), 60, folder / "daemons.log")
    finally:
        for daemon in daemons:
            daemon.terminate()
        for daemon in daemons:
            daemon.wait()


def wait_for(condition: Callable[[], bool], seconds: float, log: Path) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, log.read_text() if log.is_file() else "nothing was logged"
        time.sleep(0.3)


def test_two_tasks_stop_when_asked_and_resume_where_they_stopped(
    slurm: Slurm, tiny_config: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    log = tmp_path / "job.log"
    steps = ("train.steps=300", "checkpoint.every_steps=10000", "eval.every_steps=10000")
    job = slurm(
        *("sbatch", "--parsable", "--ntasks=2", f"--output={log}", "launch/slurm/train.sbatch"),
        *(tiny_config, f"run_dir={run}", *steps),
    )
    wait_for(lambda: (run / "metrics.jsonl").is_file() and len(lines(run)) > 20, 100, log)
    slurm("scancel", "--signal=TERM", job)
    wait_for(lambda: "preempted; starting again" in log.read_text(), 60, log)

    def has_restarted() -> bool:
        # A requeued job waits two minutes unless it is released.
        if slurm("squeue", "-h", "-j", job, "-o", "%T") == "PENDING":
            slurm("scontrol", "update", f"JobId={job}", "StartTime=now")
        return "start 1: srun" in log.read_text()

    wait_for(has_restarted, 200, log)
    wait_for((run / "report.png").is_file, 400, log)
    output = log.read_text()
    assert "on 2 × cpu" in output
    assert "stopped and saved at step" in output
    assert "resumed from step" in output
    assert "start 1: srun" in output
    assert [line["step"] for line in lines(run)] == list(range(1, 301))


def test_an_array_trains_one_run_per_line(slurm: Slurm, tiny_config: Path, tmp_path: Path) -> None:
    runs = tmp_path / "runs.txt"
    runs.write_text("".join(f"{tiny_config} run_dir={tmp_path}/seed{seed} train.seed={seed}\n" for seed in (1, 2)))
    slurm(
        *("sbatch", "--parsable", "--array=1-2", f"--output={tmp_path}/%a.log"),
        *("launch/slurm/array.sbatch", runs),
    )
    for seed in (1, 2):
        log = tmp_path / f"{seed}.log"
        wait_for((tmp_path / f"seed{seed}" / "report.png").is_file, 150, log)
    first, second = (lines(tmp_path / f"seed{seed}") for seed in (1, 2))
    assert len(first) == len(second) == 12
    assert first[0]["loss"] != second[0]["loss"]
