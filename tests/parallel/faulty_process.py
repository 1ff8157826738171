"""The command line in a process that fails: `python faulty_process.py slow|hung PROCESS train CONFIG …`.

From the sixth batch on, the process with that index is slow with every batch, or hangs.
"""

import itertools
import sys
import time
from collections.abc import Mapping

import jax
import numpy as np
from jax.sharding import Mesh

from t5x_lite.cli import main
from t5x_lite.parallel import mesh as meshes

SECONDS = {"slow": 0.2, "hung": 10_000}
HEALTHY_BATCHES = 5

fault, faulty_process, *arguments = sys.argv[1:]
healthy_to_global = meshes.to_global
batch_numbers = itertools.count()


def to_global(mesh: Mesh, batch: Mapping[str, np.ndarray], batch_size: int) -> dict[str, jax.Array]:
    """Wait before the batch is built, in the faulty process."""
    if jax.process_index() == int(faulty_process) and next(batch_numbers) >= HEALTHY_BATCHES:
        time.sleep(SECONDS[fault])
    return healthy_to_global(mesh, batch, batch_size)


if __name__ == "__main__":
    meshes.to_global = to_global
    sys.exit(main(arguments))
