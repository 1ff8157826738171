"""Gradients of tables of which many tokens read one row, in a model that computes in bfloat16.

In bfloat16 a sum of ones ends at 256, because 256 + 1 is rounded to 256.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from t5x_lite.models.attention import blocked
from t5x_lite.models.attention.context import (
    AttentionContext,
    AttentionInputs,
    AttentionSettings,
    BlockLimits,
    TokenPositions,
)
from t5x_lite.models.attention.kinds import Dense
from t5x_lite.models.character_embedding import CharacterEmbedding
from t5x_lite.models.character_ids import CharacterIds
from t5x_lite.models.config import ModelConfig
from t5x_lite.models.layers import ExpertAxis, Linear, SortedRows
from t5x_lite.models.look_up import look_up
from t5x_lite.models.mixers.recurrent_layer import RecurrentLayer
from t5x_lite.models.mixers.rnn import RNN
from t5x_lite.models.outputs import _first_states
from t5x_lite.models.weight_gradients import float32_weight_gradients

TOKENS = 4096
BFLOAT16 = ModelConfig(layers=1, embed=8, heads=1, vocab=4, compute="bfloat16")


@pytest.mark.parametrize("enabled", [True, False])
def test_the_gradient_of_a_frequent_token_is_that_of_all_its_places(enabled: bool) -> None:
    ids = jnp.ones((2, TOKENS // 2), jnp.int32)

    def total(table: jax.Array) -> jax.Array:
        with float32_weight_gradients(enabled=enabled):
            return look_up(table, ids, "vocab", jnp.bfloat16).astype(jnp.float32).sum()

    gradient = jax.jit(jax.grad(total))(jnp.zeros((4, 8)))
    np.testing.assert_array_equal(gradient, np.outer([0, TOKENS, 0, 0], np.ones(8)))


def test_the_gradient_of_an_experts_bias_is_that_of_all_its_rows() -> None:
    linear = Linear(
        BFLOAT16,
        [("embed", 8)],
        [("mlp", 4)],
        bias=True,
        experts=ExpertAxis(count=2, active_share=0.5),
        rngs=nnx.Rngs(0),
    )
    rows = SortedRows(jnp.array([0, TOKENS]), jnp.ones(TOKENS, jnp.int32), lambda x, matrices, sizes: x @ matrices[1])
    graph, state = nnx.split(linear)

    def total(state: nnx.State) -> jax.Array:
        return nnx.merge(graph, state)(jnp.zeros((TOKENS, 8)), rows).astype(jnp.float32).sum()

    np.testing.assert_array_equal(jax.jit(jax.grad(total))(state)["bias"][...], [[0] * 4, [TOKENS] * 4])


def test_the_gradient_of_a_first_state_is_that_of_all_tokens_of_its_document() -> None:
    segment_ids = jnp.array([[1] * 700 + [2] * 600])

    def total(states: jax.Array) -> jax.Array:
        return _first_states(states, segment_ids).astype(jnp.float32).sum()

    gradient = jax.jit(jax.grad(total))(jnp.zeros((1, 1300, 8), jnp.bfloat16))
    expected = np.zeros((1, 1300, 8))
    expected[0, 0], expected[0, 700] = 700, 600
    np.testing.assert_array_equal(gradient, expected)


def test_the_gradient_of_a_character_is_that_of_all_its_places() -> None:
    gradients = {}
    for compute in ("float32", "bfloat16"):
        settings = {"filters": [16], "width": 8, "length": 4, "highways": 0}
        config = ModelConfig(layers=1, embed=8, heads=1, vocab=4, tied=False, compute=compute, characters=settings)
        embedding = CharacterEmbedding(config, config.characters, rngs=nnx.Rngs(0))
        embedding.character_ids = CharacterIds.blank((4, 4))
        graph, state = nnx.split(embedding)

        def total(state: nnx.State, graph: nnx.GraphDef = graph) -> jax.Array:
            return nnx.merge(graph, state)(jnp.ones((2, TOKENS), jnp.int32)).astype(jnp.float32).sum()

        gradients[compute] = jax.jit(jax.grad(total))(state)["characters"][...]
    scale = np.abs(gradients["float32"]).max()
    np.testing.assert_allclose(gradients["bfloat16"], gradients["float32"], atol=0.02 * scale)


def test_the_gradients_of_keys_and_values_are_those_of_all_chunks_of_queries() -> None:
    """In chunks of one query the gradient of a value is a sum of 2048 addends, of which bfloat16 holds few."""
    length = 2048
    rng = np.random.default_rng(0)
    query, key, value = (jnp.asarray(rng.normal(size=(1, length, 1, 8)), jnp.float32) for _ in range(3))
    positions = TokenPositions(np.arange(length), jnp.ones((1, length), jnp.int32))
    context = AttentionContext(queries=positions, keys=positions, causal=False, self_attention=True)
    settings = AttentionSettings(limits=BlockLimits(max_scores=1, chunk_bytes=1))

    def total(dtype: str) -> Callable[..., jax.Array]:
        def attend(query: jax.Array, key: jax.Array, value: jax.Array) -> jax.Array:
            query, key, value = (x.astype(dtype) for x in (query, key, value))
            inputs = AttentionInputs(query, key, value, context, settings)
            return blocked.attention(inputs, Dense()).astype(jnp.float32).sum()

        return attend

    expected = jax.jit(jax.grad(total("float32"), argnums=2))(query, key, value)
    gradient = jax.jit(jax.grad(total("bfloat16"), argnums=2))(query, key, value)
    # Eight bits of every addend; a sum in bfloat16 is off by a tenth.
    error = jnp.linalg.norm(gradient - expected) / jnp.linalg.norm(expected)
    assert float(error) < 0.01


def test_the_gradient_of_a_hidden_matrix_is_that_of_all_tokens() -> None:
    """The state of a cell is tanh(1) after every token, so that each adds about as much to the gradient."""
    config = ModelConfig.model_validate(
        {
            "layers": 1,
            "embed": 8,
            "heads": 1,
            "vocab": 4,
            "compute": "bfloat16",
            "positions": "none",
            "pattern": [{"mixer": "rnn", "feedforward": "none"}],
        }
    )
    errors = []
    for length in (64, 4096):
        gradients = []
        for compute in ("float32", "bfloat16"):
            layer = RecurrentLayer(
                config.model_copy(update={"compute": compute}), RNN(), 8, 8, is_first=True, rngs=nnx.Rngs(0)
            )
            graph, state = nnx.split(layer)
            x = jax.random.normal(jax.random.key(1), (1, length, 8))

            def total(state: nnx.State, graph: nnx.GraphDef = graph, x: jax.Array = x) -> jax.Array:
                continues = jnp.arange(x.shape[1])[None] > 0
                outputs, _ = nnx.merge(graph, state)(x, continues, {"h": jnp.zeros((1, 8))}, None)
                return (outputs.astype(jnp.float32) * jnp.tanh(x)).sum()

            gradients.append(jax.jit(jax.grad(total))(state)["hidden"][...])
        errors.append(float(jnp.linalg.norm(gradients[1] - gradients[0]) / jnp.linalg.norm(gradients[0])))
    assert max(errors) < 0.03
