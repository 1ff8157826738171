"""Measure a run's train step on the devices of this machine: `python -m t5x_lite.sweep.step_time CONFIG k=v …`.

It prints a JSON object with `step_seconds`. This is a separate program so that the devices are free when it ends.
"""

import json
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace

import jax
import numpy as np
from jax.sharding import Mesh

from t5x_lite import config as configuration
from t5x_lite.config import RunConfig
from t5x_lite.data.pipeline import training_batch
from t5x_lite.errors import UserError
from t5x_lite.models.spec import model_spec
from t5x_lite.parallel import distributed
from t5x_lite.parallel import mesh as meshes
from t5x_lite.planner.capacity import fit_to_devices
from t5x_lite.planner.example import example_features
from t5x_lite.run_data import open_run_data, open_tokenizer
from t5x_lite.run_dir import with_vocab
from t5x_lite.run_teacher import load_teacher
from t5x_lite.sweep.model_counts import with_known_vocab
from t5x_lite.train.steps import make_steps

NUM_STEPS = 5
"""Steps that are timed; the first also compiles."""


def measure_step(path: str, overrides: Sequence[str]) -> float:
    """Return the seconds of the fastest of a few steps, all on one batch."""
    config = with_known_vocab(configuration.load(path, overrides))
    distributed.initialize(config.data.cache_dir)
    config = fit_to_devices(config)
    mesh = meshes.make_mesh(config.mesh)
    batch = _make_batch(config, mesh)
    seconds = []
    with jax.set_mesh(mesh):
        steps = make_steps(config, model_spec(config.model).with_blank_characters(config.model), mesh)
        teacher, _ = load_teacher(config, mesh)
        state = replace(steps.create_state(), teacher=teacher)
        for _ in range(NUM_STEPS):
            started = time.perf_counter()
            state, metrics = steps.train(state, meshes.to_global(mesh, batch, config.train.batch_size))
            jax.block_until_ready(metrics)
            seconds.append(time.perf_counter() - started)
    return min(seconds)


def _make_batch(config: RunConfig, mesh: Mesh) -> Mapping[str, np.ndarray]:
    """Return this process's rows of one batch: the first one of a task, or else equal rows without a text."""
    local_rows = meshes.local_rows(mesh, config.train.batch_size)
    if config.tasks:
        tokenizer = open_tokenizer(config)
        rows = open_run_data(with_vocab(config, tokenizer), tokenizer).rows(0)
        return training_batch(rows, config.train.batch_size, local_rows, 0)
    return {name: np.stack([value] * len(local_rows)) for name, value in example_features(config).items()}


def main() -> None:
    """Print the result; exit with a message if the config is not valid."""
    try:
        seconds = measure_step(sys.argv[1], sys.argv[2:])
    except UserError as error:
        print(f"t5x-lite: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
    print(json.dumps({"step_seconds": seconds}))


if __name__ == "__main__":
    main()
