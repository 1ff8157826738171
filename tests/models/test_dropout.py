"""Dropout (Srivastava et al. 2014): where a model has it, at which rate, and that no two places share their choices.

Weights are set by hand, so that each state is a count of what was kept.
"""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from t5x_lite.adapt.lora import LoRA
from t5x_lite.adapt.method import AdaptationMethod
from t5x_lite.models.attention.context import AttentionContext, TokenPositions
from t5x_lite.models.block import Block
from t5x_lite.models.config import ModelConfig
from t5x_lite.models.feedforward.layer import FeedForward
from t5x_lite.models.head_config import HeadConfig
from t5x_lite.models.layers import Linear, dropout
from t5x_lite.models.outputs import TaskOutput
from t5x_lite.models.spec import model_spec

WIDTH = 8
RELU = {"mlp": {"activation": "relu"}}
PLAIN = {"embed": WIDTH, "heads": 1, "mlp": WIDTH, "vocab": 5, "positions": "none", "norm": "none", "feedforward": RELU}
KEY = jax.random.key(0)


def plain_config(**settings: object) -> ModelConfig:
    """The config of a model without norms and positions, whose matrices are square."""
    return ModelConfig.model_validate({"layers": 1, **PLAIN, **settings})


def assert_share(is_kept: np.ndarray, share: float) -> None:
    """Check a share within 5 standard deviations of a binomial count."""
    assert abs(is_kept.mean() - share) < 5 * math.sqrt(share * (1 - share) / is_kept.size)


def test_dropout_zeroes_its_share_and_divides_the_rest_by_the_share_that_is_kept() -> None:
    dropped = np.asarray(dropout(jnp.full((200, 200), 3.0), 0.25, KEY))
    assert set(np.unique(dropped)) == {0.0, 4.0}
    assert_share(dropped > 0, 0.75)


def zero_block(config: ModelConfig) -> Block:
    """Return a layer whose weights are zero, so that it returns its input."""
    block = Block(config, config.period[0], has_cross=False, rngs=nnx.Rngs(params=0))
    graph, state = nnx.split(block)
    return nnx.merge(graph, jax.tree.map(jnp.zeros_like, state))


def apply_block(block: Block, x: jax.Array, key: jax.Array | None) -> np.ndarray:
    """Return what the layer adds to its input; every token attends to every token."""
    positions = TokenPositions(jnp.arange(x.shape[1]), jnp.ones(x.shape[:2], jnp.int32))
    context = AttentionContext(positions, positions, causal=False)
    output, _ = block(x, context, key=key)
    return np.asarray(output - x)


def test_attention_drops_its_weights_and_then_its_output() -> None:
    """The values of eight tokens are the unit vectors, and the scores are zero: each weight is 1/8."""
    block = zero_block(plain_config(dropout=0.5))
    block.attention.value.weight[...] = jnp.eye(WIDTH)[:, None]
    block.attention.out.weight[...] = jnp.eye(WIDTH)[None]
    x = jnp.broadcast_to(jnp.eye(WIDTH), (50, WIDTH, WIDTH))
    np.testing.assert_allclose(apply_block(block, x, None), 1 / 8, rtol=1e-6)
    added = apply_block(block, x, KEY)
    np.testing.assert_allclose(np.unique(added), [0, 1 / 8 * 2 * 2], rtol=1e-6)
    assert_share(added > 0, 0.5 * 0.5)


def test_the_feed_forward_drops_its_inner_activations_and_then_its_output() -> None:
    feedforward = {"mlp": {"activation": "relu", "dropout": 0.2}}
    block = zero_block(plain_config(dropout=0.5, feedforward=feedforward))
    assert isinstance(block.feedforward, FeedForward)
    block.feedforward.up.weight[...] = jnp.eye(WIDTH)
    block.feedforward.down.weight[...] = jnp.eye(WIDTH)
    x = jnp.ones((50, WIDTH, WIDTH))
    np.testing.assert_array_equal(apply_block(block, x, None), x)
    added = apply_block(block, x, KEY)
    np.testing.assert_allclose(np.unique(added), [0, 1 / 0.8 / 0.5], rtol=1e-6)
    assert_share(added > 0, 0.8 * 0.5)


def test_the_head_drops_what_it_scores() -> None:
    head = TaskOutput(plain_config(dropout=0.2), HeadConfig(outputs=WIDTH, pool="first"), rngs=nnx.Rngs(params=0))
    head.scores.weight[...] = jnp.eye(WIDTH)
    pooled = jnp.ones((500, WIDTH))
    np.testing.assert_array_equal(head(pooled, None), pooled)
    scores = np.asarray(head(pooled, KEY))
    np.testing.assert_allclose(np.unique(scores), [0, 1 / 0.8], rtol=1e-6)
    assert_share(scores > 0, 0.8)


def test_lora_drops_the_input_of_its_product_alone() -> None:
    """Hu et al. 2022, §4.1, with α / r = 1: the frozen product is 10 x, and that of the thin matrices is x."""
    method = LoRA(rank=WIDTH, alpha=float(WIDTH), dropout=0.2)
    config = plain_config()
    linear = Linear(config, [("embed", WIDTH)], [("mlp", WIDTH)], bias=False, rngs=nnx.Rngs(params=0))
    linear.weight[...] = 10 * jnp.eye(WIDTH)

    class Thin(nnx.Module):
        def __init__(self, dropout_key: jax.Array | None) -> None:
            self.down = self.up = lambda x, _: x
            self.dropout_key = dropout_key

    x = jnp.ones((500, WIDTH))
    np.testing.assert_array_equal(method.adapt_linear(Thin(None), linear, x, None), 11 * x)
    outputs = np.asarray(method.adapt_linear(Thin(KEY), linear, x, None))
    np.testing.assert_allclose(np.unique(outputs), [10, 10 + 1 / 0.8], rtol=1e-6)
    assert_share(outputs > 10.5, 0.8)


def zero_model(config: ModelConfig, method: AdaptationMethod | None = None) -> Any:
    """Return a model whose weights are zero."""
    spec = model_spec(config) if method is None else model_spec(config, method.surgery)
    return spec.model(jax.tree.map(lambda shape: jnp.zeros(shape.shape), spec.shapes))


def assert_throws_of_coins(counts: np.ndarray, coins: int) -> None:
    """Check that counts are distributed as the heads of so many independent coins."""
    for heads in range(coins + 1):
        assert_share(counts == heads, math.comb(coins, heads) / 2**coins)


def test_no_two_places_share_their_choices() -> None:
    """The embedding and both sublayers of two layers add 1, in training 2 or 0: five coins."""
    model = zero_model(plain_config(layers=2, dropout=0.5, bias=True))
    model.tokens.weight[...] = jnp.ones((5, WIDTH))
    block = model.decoder.stack.layers["0"]
    block.attention.out.bias[...] = jnp.ones((2, WIDTH))
    block.feedforward.down.bias[...] = jnp.ones((2, WIDTH))
    tokens = jnp.zeros((50, 40), jnp.int32)
    np.testing.assert_array_equal(model(tokens), np.full((50, 40, WIDTH), 5.0))
    assert_throws_of_coins(np.asarray(model(tokens, key=KEY)) / 2, coins=5)


def test_no_two_products_of_lora_share_their_choices() -> None:
    """The inputs of two products in each of two layers are ones, of which each product adds the first: four coins."""
    method = LoRA(rank=1, alpha=1.0, dropout=0.5, targets=r"attention\.out$|feedforward\.down$")
    model = zero_model(plain_config(layers=2, bias=True), method)
    block = model.decoder.stack.layers["0"]
    block.attention.value.bias[...] = jnp.ones((2, 1, WIDTH))
    block.feedforward.up.bias[...] = jnp.ones((2, WIDTH))
    for linear in (block.attention.out, block.feedforward.down):
        down = linear.adapter.down.weight
        down[...] = jnp.zeros_like(down[...]).at[..., 0, 0].set(1)
        linear.adapter.up.weight[...] = jnp.ones_like(linear.adapter.up.weight[...])
    tokens = jnp.zeros((100, 40), jnp.int32)
    np.testing.assert_allclose(model(tokens), 4.0, rtol=1e-6)
    assert_throws_of_coins(np.round(np.asarray(model(tokens, key=KEY))[..., 0] / 2, 5), coins=4)
