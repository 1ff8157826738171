"""The environment variables of a job: the other processes, and memory of GPUs. This module does not import JAX."""

import os

from t5x_lite.errors import UserError

GPU_MEMORY_FRACTION = 0.92
"""Share of the memory of a GPU that JAX takes. Its own default, 0.75, leaves memory unused that `plan` counts with.
NCCL and cuDNN need some of the rest.
"""


def set_job_environment(coordinator: str | None, num_processes: int | None, process_id: int | None) -> None:
    """Tell JAX the job's coordinator, the number of processes and this process's number, unless all are None.

    JAX takes `GPU_MEMORY_FRACTION` of each GPU unless XLA_PYTHON_CLIENT_MEM_FRACTION says another share.

    Raises:
        UserError: some of them are None, or the process's number is not below the number of processes.
    """
    os.environ.setdefault("XLA_PYTHON_CLIENT_MEM_FRACTION", str(GPU_MEMORY_FRACTION))
    values = [coordinator, num_processes, process_id]
    if values == [None, None, None]:
        return
    if num_processes is None or process_id is None or coordinator is None or not 0 <= process_id < num_processes:
        raise UserError(
            "--coordinator, --num-processes and --process-id belong together, and process ids are 0 to one less than "
            f"their number; found {coordinator}, {num_processes} and {process_id}"
        )
    os.environ["JAX_COORDINATOR_ADDRESS"] = coordinator
    os.environ["JAX_NUM_PROCESSES"] = str(num_processes)
    os.environ["JAX_PROCESS_ID"] = str(process_id)
