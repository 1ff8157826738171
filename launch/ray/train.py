"""Train a config on the nodes of a Ray cluster, one process per node, and start all of them again after a loss.

From the folder of this project (t5x_lite is installed on every node):

    ray job submit --working-dir . -- python launch/ray/train.py configs/pods/gpt3_13b.yaml \
        --nodes 4 --resources GPU=8 run_dir=gs://BUCKET/run1

`--resources TPU=4` is for TPU hosts, `--resources CPU=2` for a test. `--dry-run` prints the commands without Ray.
T5X_LITE_PREEMPTIONS and T5X_LITE_FAILURES are the numbers of restarts, as in launch/budgets.sh.
"""

import argparse
import os
import socket
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass

NEVER_RESTARTED = (2, 3)
"""Exit codes of wrong input and of a diverged loss: they would occur again."""
PREEMPTED = (75, 143)
"""Exit codes of a process that was asked to stop: it has saved, or SIGTERM ended it before it could."""
LOST_NODE = 137
"""Exit code that stands for a process whose node Ray has lost."""


@dataclass
class Budgets:
    """Restarts that are left."""

    preemptions: int
    failures: int

    def should_restart(self, exit_codes: Sequence[int]) -> bool:
        """Return whether the processes are to be started again, and count it.

        The processes of a job end together: those that were not hurt exit with 69, "process lost". So an error that a
        restart would not fix decides, then a request to stop: it counts as a preemption, also beside a crash. All else
        counts as a failure, and so does a node that is lost.
        """
        if not any(exit_codes) or any(code in NEVER_RESTARTED for code in exit_codes):
            return False
        if any(code in PREEMPTED for code in exit_codes):
            self.preemptions -= 1
            return self.preemptions >= 0
        self.failures -= 1
        return self.failures >= 0


def train_command(arguments: Sequence[str], coordinator: str, nodes: int, node: int) -> list[str]:
    """Return the command of one process of the job."""
    command = [sys.executable, "-m", "t5x_lite", "train", *arguments]
    if nodes == 1:
        return command
    return [*command, "--coordinator", coordinator, "--num-processes", str(nodes), "--process-id", str(node)]


def run_process(command: list[str]) -> int:
    """Run the process of a node; Ray forwards its output. Return its exit code, 128 + n after signal n."""
    code = subprocess.run(command, check=False).returncode
    return 128 - code if code < 0 else code


def free_address() -> str:
    """Return the address of this node, with a port that is free."""
    import ray

    with socket.socket() as server:
        server.bind(("", 0))
        return f"{ray.util.get_node_ip_address()}:{server.getsockname()[1]}"


def run_job(arguments: Sequence[str], nodes: int, resources: dict[str, float]) -> list[int]:
    """Run one process on each of `nodes` nodes with these resources, and return their exit codes."""
    import ray
    from ray.util.placement_group import placement_group, remove_placement_group
    from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

    is_test = set(resources) == {"CPU"}  # several processes may share a machine
    group = placement_group([dict(resources) for _ in range(nodes)], strategy="SPREAD" if is_test else "STRICT_SPREAD")
    try:
        ray.get(group.ready())
        options = []
        for node in range(nodes):
            strategy = PlacementGroupSchedulingStrategy(group, placement_group_bundle_index=node)
            options.append(_task_options(resources) | {"scheduling_strategy": strategy})
        coordinator = ray.get(ray.remote(free_address).options(**options[0]).remote())
        tasks = []
        for node in range(nodes):
            command = train_command(arguments, coordinator, nodes, node)
            tasks.append(ray.remote(run_process).options(**options[node]).remote(command))
        return [_exit_code(task) for task in tasks]
    finally:
        remove_placement_group(group)


def _task_options(resources: dict[str, float]) -> dict[str, object]:
    others = {name: amount for name, amount in resources.items() if name not in {"CPU", "GPU"}}
    options: dict[str, object] = {"num_cpus": resources.get("CPU", 0), "max_retries": 0}
    if "GPU" in resources:
        options["num_gpus"] = resources["GPU"]
    if others:
        options["resources"] = others
    return options


def _exit_code(task: object) -> int:
    import ray

    try:
        return int(ray.get(task))
    except ray.exceptions.RayError as error:
        print(f"ray: a node was lost: {error}", file=sys.stderr)
        return LOST_NODE


def parse_resources(text: str) -> dict[str, float]:
    """Return `{"GPU": 8.0}` for `GPU=8`; several are separated by commas."""
    resources = {}
    for part in text.split(","):
        name, equals, amount = part.partition("=")
        if not (name and equals and amount.isdecimal() and int(amount) > 0):
            raise argparse.ArgumentTypeError(f"{text!r}: write for example GPU=8")
        resources[name] = float(amount)
    return resources


def main() -> int:
    """Run the job, and again while its budgets allow it. Return its exit code."""
    parser = argparse.ArgumentParser(description="Train a config on the nodes of a Ray cluster.", allow_abbrev=False)
    parser.add_argument("--nodes", type=int, default=1, help="number of nodes, each with one process")
    parser.add_argument("--resources", type=parse_resources, default={"GPU": 8.0}, help="of a node (default: GPU=8)")
    parser.add_argument("--dry-run", action="store_true", help="print the commands without running them")
    parser.add_argument("arguments", nargs="+", metavar="CONFIG key=value", help="arguments of `t5x-lite train`")
    options = parser.parse_intermixed_args()
    if options.nodes < 1:
        parser.error(f"--nodes {options.nodes}: must be at least 1")
    if options.dry_run:
        for node in range(options.nodes):
            print(*train_command(options.arguments, "NODE_0:PORT", options.nodes, node))
        return 0
    budgets = Budgets(
        int(os.environ.get("T5X_LITE_PREEMPTIONS", "100")),
        int(os.environ.get("T5X_LITE_FAILURES", "3")),
    )
    while True:
        exit_codes = run_job(options.arguments, options.nodes, options.resources)
        print(f"ray: the processes ended with exit codes {exit_codes}", file=sys.stderr)
        if not budgets.should_restart(exit_codes):
            return next((code for code in exit_codes if code), 0)


if __name__ == "__main__":
    sys.exit(main())
