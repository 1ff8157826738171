"""The record of a run that has diverged."""

from collections.abc import Iterator
from contextlib import contextmanager

import jax

from t5x_lite.errors import Diverged
from t5x_lite.run_layout import DIVERGED_FILE
from t5x_lite.storage import delete_file, file_exists, join, write_bytes


@contextmanager
def recorded_divergence(run_dir: str) -> Iterator[None]:
    """Write the reason into the run directory if the run diverges: sweeps on clusters see no exit codes.

    A file of an earlier start is deleted.
    """
    path = join(run_dir, DIVERGED_FILE)
    is_first_process = jax.process_index() == 0
    if is_first_process and file_exists(path):
        delete_file(path)
    try:
        yield
    except Diverged as error:
        if is_first_process:
            write_bytes(path, f"{error}\n")
        raise
