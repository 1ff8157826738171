"""Generation on a mesh makes the tokens of one device, and lays its cache out over the mesh."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import REPOSITORY


def run(family: str, processes: int) -> None:
    """8 simulated devices, in so many processes."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{probe.getsockname()[1]}"
    flags = {"XLA_FLAGS": f"--xla_force_host_platform_device_count={8 // processes}", "PYTHONPATH": str(REPOSITORY)}
    if processes > 1:
        flags |= {"JAX_COORDINATOR_ADDRESS": address, "JAX_NUM_PROCESSES": str(processes)}
    command = [sys.executable, str(Path(__file__).with_name("generate_on_meshes.py")), family]
    more = {"NPROC": "16", "TF_CPP_MIN_LOG_LEVEL": "3"}
    started = [
        subprocess.Popen(
            command,
            env=os.environ | flags | more | {"JAX_PROCESS_ID": str(number)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for number in range(processes)
    ]
    for process in started:
        out, errors = process.communicate(timeout=240)
        assert out.splitlines()[-1:] == ["equal"], errors


@pytest.mark.parametrize(
    ("family", "processes"),
    [
        ("decoder", 1),
        pytest.param("window", 1, marks=pytest.mark.slow),
        pytest.param("encoder_decoder", 1, marks=pytest.mark.slow),
        pytest.param("encoder_decoder", 2, marks=pytest.mark.slow),
    ],
)
def test_a_mesh_makes_the_tokens_and_scores_of_one_device(family: str, processes: int) -> None:
    """Data 2 × fsdp 2 × tensor 2: draws, penalties and beams; rows lie over data and fsdp, heads over tensor."""
    run(family, processes)
