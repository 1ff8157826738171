"""A layer of experts compared with a dense layer."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Bool, Float, PyTree

from benchmarks.timing import Case, compute_dtype, forward_and_backward, is_on_cpu, median_seconds
from t5x_lite.models.config import ModelConfig
from t5x_lite.models.experts.layer import MixtureOfExperts
from t5x_lite.models.feedforward.layer import FeedForward

EXPERTS = 8
EMBED = 256
# Without jitter or dropout the arithmetic is the same every time; the key only selects the capacity of training.
SWITCH = {"switch": {"jitter": 0.0}}
MOE_LAYERS: dict[str, dict[str, Any]] = {
    "top-1, capacity 1.0": {"router": SWITCH, "dispatch": {"capacity": {"factor": 1.0}}},
    "top-1, capacity 1.25": {"router": SWITCH},
    "top-1, dropless": {"router": SWITCH, "dispatch": "dropless"},
    "top-1, ragged_dot": {"router": SWITCH, "dispatch": {"dropless": {"kernel": "ragged"}}},
}


def measure(rounds: int, quick: bool) -> list[dict[str, Any]]:
    """Measure layers of 8 experts and a dense layer of the same active size: width 256, inner 1024, 4096 tokens."""
    rows_of_tokens = 8 if is_on_cpu() else 64
    x = jnp.asarray(np.random.default_rng(0).normal(size=(rows_of_tokens, 512, EMBED)), compute_dtype())
    cases = {"dense": _dense_case(x)}
    for name, settings in MOE_LAYERS.items():
        cases[name] = _moe_case(settings, x)
    seconds = median_seconds(cases, rounds)
    dense_seconds = seconds["dense"]
    return [
        {"layer": name, "ms": 1e3 * value, "of the dense layer": value / dense_seconds}
        for name, value in seconds.items()
    ]


def _model_config(feedforward: dict[str, Any]) -> ModelConfig:
    sizes = {"layers": 2, "embed": EMBED, "heads": 4, "vocab": 8, "compute": str(jnp.dtype(compute_dtype()))}
    return ModelConfig.model_validate({**sizes, "feedforward": feedforward})


def _dense_case(x: Float[Array, "b l d"]) -> Case:
    config = _model_config({"mlp": {}})
    layer = FeedForward(config, config.dense_feedforward, config.mlp, rngs=nnx.Rngs(params=0))
    graph, params = nnx.split(layer)

    def apply(params: PyTree, x: Float[Array, "b l d"]) -> Float[Array, "b l d"]:
        return nnx.merge(graph, params)(x, None)

    return forward_and_backward(apply, params, x)


def _moe_case(settings: dict[str, Any], x: Float[Array, "b l d"]) -> Case:
    config = _model_config({"moe": {"experts": EXPERTS, **settings}})
    graph, params = nnx.split(MixtureOfExperts(config, config.mixtures[0], rngs=nnx.Rngs(params=0)))
    is_token: Bool[Array, "b l"] = jnp.ones(x.shape[:2], bool)

    def apply(params: PyTree, x: Float[Array, "b l d"]) -> Float[Array, "b l d"]:
        return nnx.merge(graph, params)(x, is_token, jax.random.key(0))

    return forward_and_backward(apply, params, x)
