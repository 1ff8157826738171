"""Record the training curves of a config for several seeds: the data of tests/laws/test_forecast.py.

python tools/record_curves.py CURVES NAME CONFIG FIRST_SEED END_SEED [key=value …]

The train step is compiled once and serves all seeds, which makes many short runs faster than `t5x-lite train`. CURVES,
an .npz file, gets the arrays `NAME_SEED/steps`, `…/loss` and `…/learning_rates`.
"""

import sys
from collections.abc import Sequence
from pathlib import Path

import jax
import numpy as np
from jax.stages import Compiled
from rich.progress import track

from t5x_lite import config as configuration
from t5x_lite.config import RunConfig
from t5x_lite.data.pipeline import training_batches
from t5x_lite.models.spec import model_spec
from t5x_lite.parallel import mesh as meshes
from t5x_lite.run_data import open_run_data, open_tokenizer
from t5x_lite.run_dir import with_vocab
from t5x_lite.train.optimization import make_schedule
from t5x_lite.train.steps import make_steps


def main(arguments: Sequence[str]) -> None:
    """Record the curves that are not in the file yet."""
    curves_path = Path(arguments[0])
    name = arguments[1]
    config_path = arguments[2]
    compiled_step: list[Compiled] = []
    for seed in range(int(arguments[3]), int(arguments[4])):
        settings = ["run_dir=runs/recorded", *arguments[5:], f"train.seed={seed}"]
        config = configuration.load(config_path, settings)
        losses = train(config, compiled_step)
        add_curve(curves_path, f"{name}_{seed}", config, losses)


def train(config: RunConfig, compiled_step: list[Compiled]) -> list[float]:
    """Train a run without evaluation and checkpoints, and return the loss of every step.

    Args:
        config: the run; it has no dropout, so that only its first weights and its data depend on the seed.
        compiled_step: the compiled train step, which the first call puts there.
    """
    tokenizer = open_tokenizer(config)
    config = with_vocab(config, tokenizer)
    examples = open_run_data(config, tokenizer).rows()
    mesh = meshes.make_mesh(config.mesh)
    batch_size = config.train.batch_size
    rows = meshes.local_rows(mesh, batch_size)
    losses = []
    with jax.set_mesh(mesh):
        steps = make_steps(config, model_spec(config.model), mesh)
        if not compiled_step:
            batch_shapes = meshes.batch_shapes(mesh, examples[0], batch_size)
            compiled_step.append(steps.train.lower(steps.state, batch_shapes).compile())
        state = steps.create_state()
        batches = training_batches(examples, batch_size, rows, 0, config.train.steps, config.data)
        for batch in track(batches, total=config.train.steps):
            state, metrics = compiled_step[0](state, meshes.to_global(mesh, batch, batch_size))
            losses.append(float(metrics["loss"]))
    return losses


def add_curve(path: Path, name: str, config: RunConfig, losses: Sequence[float]) -> None:
    """Add the losses that `metrics.jsonl` would have, and the learning rate of every step."""
    arrays: dict[str, np.ndarray] = {}
    if path.exists():
        arrays = dict(np.load(path))
    steps = np.arange(1, len(losses) + 1)
    is_logged = (steps % config.train.log_every_steps == 0) | (steps == len(losses))
    rates = np.asarray(make_schedule(config.optimizer, len(losses))(np.arange(len(losses))))
    arrays[f"{name}/steps"] = steps[is_logged].astype(np.int32)
    arrays[f"{name}/loss"] = np.array(losses, np.float32)[is_logged]
    arrays[f"{name}/learning_rates"] = rates.astype(np.float32)
    np.savez_compressed(path, allow_pickle=False, **arrays)


if __name__ == "__main__":
    main(sys.argv[1:])
