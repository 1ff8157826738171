"""Compilation by depth: a scanned stack is one layer to the compiler."""

import time
from statistics import median
from typing import Any

import jax

from benchmarks.step import CONFIGS
from t5x_lite import config as configuration
from t5x_lite.models.transformer import model_spec
from t5x_lite.parallel import mesh as meshes
from t5x_lite.planner.example import example_features
from t5x_lite.train.setup import make_steps

DEPTHS = (12, 96)


def table(rounds: int, quick: bool) -> list[dict[str, Any]]:
    """Seconds to lower and compile the train step of a narrow GPT, by its layers."""
    times: dict[int, list[float]] = {depth: [] for depth in DEPTHS}
    for _ in range(3):
        for depth in DEPTHS:
            sizes = [f"model.layers={depth}", "model.embed=64", "model.heads=4", "model.vocab=512"]
            config = configuration.load(CONFIGS / "gpt2/117m.yaml", [*sizes, "train.batch_size=8", "train.seq_len=128"])
            mesh = meshes.make_mesh(config.mesh)
            jax.clear_caches()
            with jax.set_mesh(mesh):
                steps = make_steps(config, model_spec(config.model), mesh)
                shapes = meshes.batch_shapes(mesh, example_features(config), config.train.batch_size)
                started = time.perf_counter()
                steps.train.lower(steps.state, shapes).compile()
                times[depth].append(time.perf_counter() - started)
    first = median(times[DEPTHS[0]])
    return [
        {"layers": depth, "compilation, s": median(taken), f"of {DEPTHS[0]} layers": median(taken) / first}
        for depth, taken in times.items()
    ]
