"""Comparison of the copies of parameters on the devices of a mesh."""

import os
import subprocess
import sys
from pathlib import Path

from tests.conftest import REPOSITORY

SCRIPT = Path(__file__).with_name("replicas_on_a_mesh.py")


def test_a_flipped_bit_in_one_replica_is_detected_and_its_parameter_and_device_are_named() -> None:
    environment = {
        **os.environ,
        "XLA_FLAGS": "--xla_force_host_platform_device_count=8",
        "PYTHONPATH": str(REPOSITORY),
    }
    process = subprocess.run(
        [sys.executable, str(SCRIPT)], env=environment, capture_output=True, text=True, check=False
    )
    assert process.returncode == 0, process.stderr
    two_copies, eight_copies = process.stdout.splitlines()
    assert "step 7" in two_copies
    assert "differ" in two_copies
    # Neither of two copies has the majority, so that both devices are named; of eight copies the odd one is known.
    assert "even on cpu:1, cpu:5;" in two_copies
    assert "bias on cpu:3;" in eight_copies
