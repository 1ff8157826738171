"""Seconds of a run's train step on the devices here, as JSON: `python -m t5x_lite.sweep.measure CONFIG k=v …`.

A program of its own, so that the devices are free again when it ends.
"""

import json
import sys
import time
from pathlib import Path

import jax
import numpy as np

from t5x_lite import config as configuration
from t5x_lite.errors import UserError
from t5x_lite.models.spec import model_spec
from t5x_lite.parallel import distributed
from t5x_lite.parallel import mesh as meshes
from t5x_lite.planner.example import example_features
from t5x_lite.sweep.grid import sized
from t5x_lite.train.setup import make_steps

STEPS = 5
"""Of these the first compiles."""


def measure(path: str, words: list[str]) -> float:
    """The least seconds of a few steps, on rows of one token."""
    config = sized(configuration.load(path, words))
    distributed.initialize(Path(config.data.cache_dir))
    size, mesh = config.train.batch_size, meshes.make_mesh(config.mesh)
    rows = {
        name: np.stack([value] * len(meshes.local_rows(mesh, size))) for name, value in example_features(config).items()
    }
    with jax.set_mesh(mesh):
        steps = make_steps(config, model_spec(config.model), mesh)
        state, taken = steps.fresh(), []
        for _ in range(STEPS):
            started = time.perf_counter()
            state, metrics = steps.train(state, meshes.to_global(mesh, rows, size))
            jax.block_until_ready(metrics)
            taken.append(time.perf_counter() - started)
    return min(taken)


if __name__ == "__main__":
    try:
        print(json.dumps({"step_seconds": measure(sys.argv[1], sys.argv[2:])}))
    except UserError as error:
        print(f"t5x-lite: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
