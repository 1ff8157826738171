"""The environment variables by which JAX finds the other processes of a job. This module does not import JAX."""

import os

from t5x_lite.errors import UserError


def set_job_environment(coordinator: str | None, num_processes: int | None, process_id: int | None) -> None:
    """Tell JAX the job's coordinator, the number of processes and this process's number; nothing if all are None.

    Raises:
        UserError: some of them are None, or the process's number is not below the number of processes.
    """
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
