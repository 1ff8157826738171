"""A layer of experts against a dense one."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from benchmarks.timing import both_passes, dtype_here, medians, on_cpu
from t5x_lite.models.config import ModelConfig
from t5x_lite.models.experts.layer import MixtureOfExperts
from t5x_lite.models.feedforward import Perceptron


def table(rounds: int, quick: bool) -> list[dict[str, Any]]:
    """A layer of 8 experts against a dense layer of the same active size: width 256, inner width 1024, 4096 tokens."""
    dtype, scale = dtype_here(), 1 if on_cpu() else 8
    sizes = {"layers": 2, "embed": 256, "heads": 4, "vocab": 8, "compute": str(jnp.dtype(dtype))}
    x = jnp.asarray(np.random.default_rng(0).normal(size=(8 * scale, 512, 256)), dtype)
    real = jnp.ones(x.shape[:2], bool)
    # A training key without jitter or dropout: capacity is the training one, the arithmetic is the same every time.
    kinds: dict[str, Any] = {
        "dense": None,
        "top-1, capacity 1.0": {"router": {"switch": {"jitter": 0.0}}, "dispatch": {"capacity": {"factor": 1.0}}},
        "top-1, capacity 1.25": {"router": {"switch": {"jitter": 0.0}}},
        "top-1, dropless": {"router": {"switch": {"jitter": 0.0}}, "dispatch": "dropless"},
        "top-1, ragged_dot": {
            "router": {"switch": {"jitter": 0.0}},
            "dispatch": {"dropless": {"kernel": "ragged"}},
        },
    }
    cases = {}
    for name, settings in kinds.items():
        feedforward = {"mlp": {}} if settings is None else {"moe": {"experts": 8, **settings}}
        config = ModelConfig.model_validate({**sizes, "feedforward": feedforward})
        rngs = nnx.Rngs(params=0)
        layer: Any
        if settings is None:
            layer = Perceptron(config, config.dense_feedforward, config.width_of_mlp, rngs=rngs)
        else:
            layer = MixtureOfExperts(config, config.mixtures[0], rngs=rngs)
        graph, params = nnx.split(layer)

        def run(params: Any, x: jax.Array, graph: Any = graph, dense: bool = settings is None) -> jax.Array:
            module = nnx.merge(graph, params)
            return module(x, None) if dense else module(x, real, jax.random.key(0))

        cases[name] = both_passes(run, params, x)
    seconds = medians(cases, rounds)
    return [
        {"layer": name, "ms": 1e3 * value, "of the dense layer": value / seconds["dense"]}
        for name, value in seconds.items()
    ]
