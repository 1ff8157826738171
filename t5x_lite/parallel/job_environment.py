"""The environment variables of a job: the other processes, and memory of GPUs. This module does not import JAX."""

import os
from collections.abc import Mapping

from t5x_lite.errors import UserError

GPU_MEMORY_FRACTION = 0.92
"""Share of the memory of a GPU that JAX takes. Its own default, 0.75, leaves memory unused that `plan` counts with.
NCCL and cuDNN need some of the rest.
"""
GPU_MEMORY_VARIABLES = ("XLA_CLIENT_MEM_FRACTION", "XLA_PYTHON_CLIENT_MEM_FRACTION")
"""The environment variable of that share, and its older name. JAX refuses both together."""


def gpu_memory_variable(environment: Mapping[str, str]) -> str:
    """Return the name by which an environment sets the share of a GPU's memory, or would set it."""
    return next((name for name in GPU_MEMORY_VARIABLES if name in environment), GPU_MEMORY_VARIABLES[0])


def reserve_gpu_memory() -> None:
    """Let JAX take `GPU_MEMORY_FRACTION` of each GPU, unless the environment says another share."""
    os.environ.setdefault(gpu_memory_variable(os.environ), str(GPU_MEMORY_FRACTION))


def set_job_environment(coordinator: str | None, num_processes: int | None, process_id: int | None) -> None:
    """Tell JAX the job's coordinator, the number of processes and this process's number, unless all are None.

    It also has JAX take most of the memory of each GPU; see `reserve_gpu_memory`.

    Raises:
        UserError: some of them are None, the coordinator is not HOST:PORT, or the process's number is not below the
            number of processes.
    """
    reserve_gpu_memory()
    values = [coordinator, num_processes, process_id]
    if values == [None, None, None]:
        return
    if num_processes is None or process_id is None or coordinator is None or not 0 <= process_id < num_processes:
        raise UserError(
            "--coordinator, --num-processes and --process-id belong together, and process ids are 0 to one less than "
            f"their number; found {coordinator}, {num_processes} and {process_id}"
        )
    check_coordinator("--coordinator", coordinator)
    os.environ["JAX_COORDINATOR_ADDRESS"] = coordinator
    os.environ["JAX_NUM_PROCESSES"] = str(num_processes)
    os.environ["JAX_PROCESS_ID"] = str(process_id)


def check_coordinator(source: str, address: str) -> None:
    """Refuse the address of a coordinator without a host or a port.

    Args:
        source: the option or environment variable that has it.
        address: the address.

    Raises:
        UserError: it is not HOST:PORT.
    """
    host, _, port = address.rpartition(":")
    if not host or not port.isdecimal():
        raise UserError(f"{source} {address}: is not HOST:PORT, such as 10.0.0.1:8476")
