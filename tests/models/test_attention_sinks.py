"""Attention sinks against their definition: one score more in the softmax of each head, whose value is 0."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jaxtyping import Array, Float

from t5x_lite.models.attention.context import AttentionContext, AttentionSettings, TokenPositions
from t5x_lite.models.attention.kernels import attend
from t5x_lite.models.attention.kinds import AttentionKind, Dense, Local
from t5x_lite.models.config import ModelConfig
from t5x_lite.models.experts.routers import TopK
from t5x_lite.models.feedforward.layer import FeedForward
from t5x_lite.models.spec import model_spec
from t5x_lite.trees import flatten_names

LENGTH = 256
HEADS = 2
WIDTH = 8
Arrays = tuple[Float[Array, "..."], ...]


def random_arrays() -> Arrays:
    rng = np.random.default_rng(0)
    query, key, value = (jnp.asarray(rng.normal(size=(1, LENGTH, HEADS, WIDTH)), jnp.float32) for _ in range(3))
    return query, key, value, jnp.asarray([-1.0, 2.0])


def by_definition(kind: AttentionKind, query: Array, key: Array, value: Array, sinks: Array) -> Array:
    scores = jnp.einsum("blhk,bmhk->bhlm", query, key) * WIDTH**-0.5
    index = np.arange(LENGTH)
    mask = kind.allowed(index[:, None], index[None]) & (index[:, None] >= index[None])
    scores = jnp.where(mask, scores, -jnp.inf)
    sink_scores = jnp.broadcast_to(sinks[None, :, None, None], (1, HEADS, LENGTH, 1))
    weights = jax.nn.softmax(jnp.concatenate([scores, sink_scores], axis=-1), axis=-1)[..., :-1]
    return jnp.einsum("bhlm,bmhk->blhk", weights, value)


def by_kernel(
    settings: AttentionSettings, kind: AttentionKind, query: Array, key: Array, value: Array, sinks: Array
) -> Array:
    positions = TokenPositions(np.arange(LENGTH), jnp.ones((1, LENGTH), jnp.int32))
    context = AttentionContext(positions, positions, causal=True, self_attention=True, sinks=sinks)
    return attend(query, key, value, kind, context, settings)


@pytest.mark.parametrize(
    ("kernel", "platform", "kind"),
    [
        ("xla", "cpu", Dense()),  # in steps
        ("xla", "cpu", Local(window=20)),  # in blocks
        pytest.param("splash", "tpu", Local(window=20), marks=pytest.mark.slow),
    ],
)
def test_outputs_and_gradients_are_those_of_the_definition(kernel: str, platform: str, kind: AttentionKind) -> None:
    arrays = random_arrays()
    settings = AttentionSettings(kernel=kernel, platform=platform, interpret=True)
    weights = jnp.asarray(np.random.default_rng(1).normal(size=arrays[0].shape), jnp.float32)

    def results(compute: partial) -> tuple[Array, Arrays]:
        def total(*arrays: Array) -> tuple[Array, Array]:
            out = compute(*arrays)
            return jnp.sum(weights * out), out

        (_, out), gradients = jax.jit(jax.value_and_grad(total, argnums=(0, 1, 2, 3), has_aux=True))(*arrays)
        return out, gradients

    out, gradients = results(partial(by_kernel, settings, kind))
    expected, expected_gradients = results(partial(by_definition, kind))
    np.testing.assert_allclose(out, expected, atol=2e-5)
    for gradient, expected_gradient in zip(gradients, expected_gradients, strict=True):
        np.testing.assert_allclose(gradient, expected_gradient, atol=2e-4)


def test_a_clamped_gate_is_that_of_gpt_oss() -> None:
    """gate·sigmoid(1.702·gate)·(up + 1) with the gate at most 7 and up within ±7 (OpenAI 2025's code)."""
    glu = {"glu": {"activation": "quick_gelu", "limit": 7.0, "offset": 1.0}}
    config = ModelConfig.model_validate({"layers": 1, "embed": 3, "heads": 1, "bias": False, "feedforward": glu})
    layer = FeedForward(config, config.dense_feedforward, 3, rngs=nnx.Rngs(params=0))
    layer.gate.weight[...] = jnp.diag(jnp.asarray([-9.0, 0.5, 9.0]))
    layer.up.weight[...] = jnp.diag(jnp.asarray([9.0, 2.0, -9.0]))
    layer.down.weight[...] = jnp.eye(3)
    expected = [-9 / (1 + np.exp(1.702 * 9)) * 8, 0.5 / (1 + np.exp(-0.851)) * 3, 7 / (1 + np.exp(-1.702 * 7)) * -6]
    np.testing.assert_allclose(jnp.diag(layer(jnp.eye(3), None)), [*expected], rtol=1e-5)


def test_a_router_with_a_bias_has_a_parameter_for_each_expert() -> None:
    moe = {"moe": {"experts": 4, "router": {"top_k": {"bias": True}}}}
    config = ModelConfig.model_validate({"layers": 1, "embed": 4, "heads": 1, "vocab": 8, "feedforward": moe})
    shapes = flatten_names(model_spec(config).shapes)
    assert TopK(bias=True).has_logit_bias
    assert shapes["decoder.stack.layers.0.feedforward.router.bias"].shape == (1, 4)
