"""The command line in a process that goes wrong: `python faulty.py slow|hung PROCESS train CONFIG …`.

From the fifth batch on, the process of that number takes its time over every batch, or never comes back from one.
"""

import itertools
import sys
import time
from typing import Any

import jax

from t5x_lite.cli import main
from t5x_lite.parallel import mesh

kind, process, *arguments = sys.argv[1:]
healthy, calls = mesh.to_global, itertools.count()


def to_global(*given: Any) -> Any:
    if jax.process_index() == int(process) and next(calls) > 4:
        time.sleep({"slow": 0.2, "hung": 10_000}[kind])
    return healthy(*given)


if __name__ == "__main__":
    mesh.to_global = to_global
    sys.exit(main(arguments))
