"""Generation on a mesh gives the tokens of one device, and shards its KV cache over the mesh."""

import socket
import subprocess
import sys
from pathlib import Path

import pytest

from tests.simulated_devices import simulated


def compare_in_processes(family: str, processes: int) -> None:
    """Run generate_on_meshes.py on 8 simulated devices in the given number of processes."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{probe.getsockname()[1]}"
    environment = simulated(8 // processes)
    if processes > 1:
        environment["JAX_COORDINATOR_ADDRESS"] = address
        environment["JAX_NUM_PROCESSES"] = str(processes)
    command = [sys.executable, str(Path(__file__).with_name("generate_on_meshes.py")), family]
    started = []
    for number in range(processes):
        process = subprocess.Popen(
            command,
            env={**environment, "JAX_PROCESS_ID": str(number)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        started.append(process)
    for process in started:
        out, errors = process.communicate(timeout=240)
        assert out.splitlines()[-1:] == ["equal"], errors


@pytest.mark.parametrize(
    ("family", "processes"),
    [
        pytest.param("decoder", 1, marks=pytest.mark.slow),
        pytest.param("window", 1, marks=pytest.mark.slow),
        pytest.param("encoder_decoder", 1, marks=pytest.mark.slow),
        pytest.param("encoder_decoder", 2, marks=pytest.mark.slow),
    ],
)
def test_a_mesh_gives_the_tokens_and_scores_of_one_device(family: str, processes: int) -> None:
    """The mesh is data 2 × fsdp 2 × tensor 2. Rows are sharded over data and fsdp, heads over tensor."""
    compare_in_processes(family, processes)
