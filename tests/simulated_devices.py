"""Processes in which JAX simulates several devices on the CPU."""

import os
import subprocess
import sys
from pathlib import Path

from tests.conftest import REPOSITORY


def simulated(devices: int) -> dict[str, str]:
    """Return the environment of a process with so many devices, which compiles as users do."""
    return {
        **os.environ,
        "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}",
        "NPROC": "16",  # threads of XLA: with one for each core, devices that wait for others can block them
        "TF_CPP_MIN_LOG_LEVEL": "3",
        "PYTHONPATH": str(REPOSITORY),
    }


def run_on_eight_devices(script: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run a script in a process with 8 devices."""
    command = [sys.executable, str(script), *arguments]
    return subprocess.run(command, env=simulated(8), capture_output=True, text=True, check=False)
