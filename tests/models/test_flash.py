"""Flash attention, interpreted on a CPU, against attention written from its definition; and compiled for a GPU."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from typing import TypeAlias

import jax
import jax.extend as jex
import jax.numpy as jnp
import numpy as np
import pytest
from jaxtyping import Array, Bool, Float, Int

from t5x_lite.models.attention.flash import flash_attention
from t5x_lite.models.attention.flash_tiles import (
    FlashInputs,
    FlashSettings,
    diagonal_tiles,
    keep_mask,
)

Attention: TypeAlias = Callable[[FlashInputs, FlashSettings], Float[Array, "b l h k"]]

BATCH = 2
HEADS = 4
SEED = 7
"""Seed of dropout."""


def random_inputs(
    length: int, keys: int, kv_heads: int, width: int, *, packed: bool, has_bias: bool, has_prefix: bool
) -> FlashInputs:
    """Return random inputs. Packed rows have three documents and end in padding."""
    rng = np.random.default_rng(0)
    query = rng.normal(size=(BATCH, length, HEADS, width))
    key, value = rng.normal(size=(2, BATCH, keys, kv_heads, width))
    bias = None
    if has_bias:
        bias = jnp.asarray(np.random.default_rng(1).normal(size=(HEADS, length + keys)), jnp.float32)
    prefix = None
    if has_prefix:
        prefix = jnp.asarray(np.arange(keys) < np.array([[keys // 3], [keys // 2]]), jnp.int32)
    return FlashInputs(
        jnp.asarray(query, jnp.float32),
        jnp.asarray(key, jnp.float32),
        jnp.asarray(value, jnp.float32),
        segment_ids(length, packed=packed),
        segment_ids(keys, packed=packed),
        prefix,
        bias,
        jnp.array([0, SEED, 0, HEADS], jnp.int32),
    )


def segment_ids(length: int, *, packed: bool) -> Int[Array, "b l"]:
    numbers = np.ones(length)
    if packed:
        position = np.arange(length)
        document = np.minimum(position // (length // 3) + 1, 3)
        numbers = document * (position < length - 4)
    return jnp.asarray(np.broadcast_to(numbers, (BATCH, length)), jnp.int32)


def attention_by_definition(inputs: FlashInputs, settings: FlashSettings) -> Float[Array, "b l h k"]:
    """Vaswani et al. 2017, §3.2.1, with a mask, a bias and dropout, in one piece."""
    length = inputs.query.shape[1]
    keys = inputs.key.shape[1]
    heads_per_kv_head = inputs.query.shape[2] // inputs.key.shape[2]
    key = jnp.repeat(inputs.key, heads_per_kv_head, 2)
    value = jnp.repeat(inputs.value, heads_per_kv_head, 2)
    scores = jnp.einsum("blhk,bmhk->bhlm", inputs.query, key, precision="highest") * settings.scale
    if inputs.bias is not None:
        offset = np.arange(keys)[None, :] - np.arange(length)[:, None]
        scores = scores + inputs.bias[:, offset + length - 1]
    allowed = allowed_pairs(inputs, settings)[:, None]
    weights = jax.nn.softmax(jnp.where(allowed, scores, -1e30), axis=-1) * allowed
    if settings.dropout:
        batch = np.arange(BATCH)[:, None, None, None]
        head = np.arange(HEADS)[:, None, None]
        queries = jnp.arange(length)[:, None]
        is_kept = keep_mask(SEED, batch * HEADS + head, queries, jnp.arange(keys)[None, :], settings.dropout)
        weights = jnp.where(is_kept, weights / (1 - settings.dropout), 0)
    return jnp.einsum("bhlm,bmhk->blhk", weights, value, precision="highest")


def allowed_pairs(inputs: FlashInputs, settings: FlashSettings) -> Bool[Array, "b l m"]:
    """Return which query attends to which key."""
    query_segments = inputs.query_segments[:, :, None]
    key_segments = inputs.key_segments[:, None, :]
    allowed = (query_segments == key_segments) & (key_segments > 0)
    offset = np.arange(inputs.key.shape[1])[None, :] - np.arange(inputs.query.shape[1])[:, None]
    if settings.causal:
        visible = jnp.asarray(offset <= 0)[None]
        if inputs.prefix is not None:
            visible = visible | (inputs.prefix[:, None, :] > 0)
        allowed = allowed & visible
    if settings.window is not None:
        allowed = allowed & jnp.asarray(abs(offset) < settings.window)[None]
    return allowed


CASES: dict[str, tuple[dict[str, object], dict[str, object]]] = {
    "causal": ({}, {"causal": True}),
    "both directions, packed": ({"packed": True}, {}),
    "both directions, bias": ({"has_bias": True, "packed": True}, {}),
    "causal, bias, dropout": ({"has_bias": True}, {"causal": True, "dropout": 0.2}),
    "cross-attention, lengths that fill no tile": (
        {"length": 41, "keys": 60, "packed": True, "has_bias": True},
        {},
    ),
    "causal window": ({"packed": True}, {"causal": True, "window": 7}),
    "window in both directions, bias": ({"has_bias": True}, {"window": 7}),
    "prefix": ({"kv_heads": 1, "has_prefix": True}, {"causal": True, "has_prefix": True}),
    "prefix in a window, dropout": (
        {"has_prefix": True},
        {"causal": True, "has_prefix": True, "window": 20, "dropout": 0.1},
    ),
    "grouped heads": ({"kv_heads": 2, "packed": True}, {"causal": True}),
    "four heads in a row of lanes, bias, dropout": (
        {"width": 32, "packed": True, "has_bias": True},
        {"dropout": 0.2},
    ),
    "two heads in a row of lanes, lengths that fill no tile": (
        {"width": 64, "length": 41, "keys": 60, "packed": True, "has_bias": True},
        {},
    ),
    "two heads in a row of lanes, prefix": ({"width": 64, "has_prefix": True}, {"causal": True, "has_prefix": True}),
    "one head in a row of lanes, grouped": ({"width": 128, "kv_heads": 2}, {"causal": True, "dropout": 0.1}),
    "narrow heads that share keys": ({"width": 64, "kv_heads": 2, "packed": True}, {}),
    "oblong tiles": ({"packed": True}, {"causal": True, "block_q": 32}),
}
"""By name of the case: arguments of `random_inputs` and settings of the kernels that differ from the defaults."""
DEFAULT_INPUTS = {
    "length": 48,
    "keys": 48,
    "kv_heads": HEADS,
    "width": 16,
    "packed": False,
    "has_bias": False,
    "has_prefix": False,
}
DEFAULT_SETTINGS = {"scale": 0.3, "causal": False, "block_q": 16, "block_k": 16, "interpret": True}


@pytest.mark.parametrize("on_tpu", [False, True], ids=["gpu", "tpu"])
@pytest.mark.parametrize("name", CASES)
def test_outputs_and_gradients_equal_the_definition(name: str, on_tpu: bool) -> None:
    input_options, setting_options = CASES[name]
    inputs = random_inputs(**{**DEFAULT_INPUTS, **input_options})
    settings = FlashSettings(**{**DEFAULT_SETTINGS, **setting_options, "on_tpu": on_tpu})
    differentiable = {"query": inputs.query, "key": inputs.key, "value": inputs.value}
    if inputs.bias is not None:
        differentiable["bias"] = inputs.bias

    def total(compute: Attention, arrays: dict[str, Array]) -> Float[Array, ""]:
        return jnp.sum(jnp.sin(compute(replace(inputs, **arrays), settings)))

    expected = attention_by_definition(inputs, settings)
    np.testing.assert_allclose(flash_attention(inputs, settings), expected, atol=2e-5)
    gradients = jax.grad(partial(total, flash_attention))(differentiable)
    expected_gradients = jax.grad(partial(total, attention_by_definition))(differentiable)
    for argument, gradient in gradients.items():
        np.testing.assert_allclose(gradient, expected_gradients[argument], atol=1e-4, err_msg=argument)


def test_the_tiles_of_a_bias_are_the_blocks_of_its_matrix() -> None:
    """Block row i and block column j of the matrix are tile j - i + rows - 1; the gradient adds up all blocks."""
    block = 4
    rows = 3
    columns = 5
    length = rows * block
    keys = columns * block
    bias = jnp.asarray(np.random.default_rng(0).normal(size=(2, length + keys)), jnp.float32)
    offset = np.arange(keys)[None] - np.arange(length)[:, None]
    matrix = np.asarray(bias)[:, offset + length - 1]
    tiles = np.asarray(diagonal_tiles(bias, block))
    assert tiles.shape == (2, rows + columns - 1, block, block)
    for i, j in np.ndindex(rows, columns):
        block_of_matrix = matrix[:, i * block : (i + 1) * block, j * block : (j + 1) * block]
        np.testing.assert_array_equal(tiles[:, j - i + rows - 1], block_of_matrix)

    weights = np.random.default_rng(1).normal(size=tiles.shape)

    def weighted_sum(bias: Float[Array, "h x"]) -> Float[Array, ""]:
        return jnp.sum(diagonal_tiles(bias, block) * weights)

    expected_gradient = np.zeros(bias.shape)
    for diagonal, i, j in np.ndindex(tiles.shape[1:]):
        expected_gradient[:, diagonal * block + block - 1 + j - i] += weights[:, diagonal, i, j]
    np.testing.assert_allclose(jax.grad(weighted_sum)(bias), expected_gradient, atol=1e-5)


@pytest.mark.parametrize("rate", [0.1, 0.5])
def test_dropout_drops_its_share_and_rows_keys_heads_and_seeds_are_not_correlated(rate: float) -> None:
    """Binomial bounds over 2^20 draws."""

    def draw(seed: int, head: int) -> Float[np.ndarray, "q k"]:
        return np.asarray(keep_mask(seed, head, jnp.arange(1024)[:, None], jnp.arange(1024)[None, :], rate), np.float64)

    is_kept = draw(3, 0)
    std = (rate * (1 - rate)) ** 0.5
    assert abs(is_kept.mean() - (1 - rate)) < 5 * std / 1024
    assert np.abs(is_kept.mean(0) - (1 - rate)).max() < 6 * std / 32
    assert np.abs(is_kept.mean(1) - (1 - rate)).max() < 6 * std / 32
    pairs = [(is_kept[:-1], is_kept[1:]), (is_kept[:, :-1], is_kept[:, 1:])]
    for seed, head in [(4, 0), (3, 1), (3, 4096), (2**31 - 1, 0)]:
        other = draw(seed, head)
        # Nor are the masks of other seeds and heads those of other rows or keys.
        pairs += [(is_kept, other), (is_kept[1:], other[:-1]), (is_kept[:, 1:], other[:, :-1])]
    for first, second in pairs:
        assert abs(np.corrcoef(first.ravel(), second.ravel())[0, 1]) < 5 / 1024


def test_the_kernels_compile_for_a_gpu_without_one_and_without_a_square_array() -> None:
    """Every kernel becomes a Triton program on this machine; no array has heads x length x length elements."""
    length = 256
    settings = FlashSettings(scale=0.125, causal=True, dropout=0.1)

    def total(query: Array, key: Array, value: Array, segments: Array, bias: Array, scalars: Array) -> Float[Array, ""]:
        inputs = FlashInputs(query, key, value, segments, segments, None, bias, scalars)
        return jnp.sum(flash_attention(inputs, settings).astype(jnp.float32))

    heads_of_tokens = jax.ShapeDtypeStruct((1, length, HEADS, 64), jnp.bfloat16)
    segments = jax.ShapeDtypeStruct((1, length), jnp.int32)
    bias = jax.ShapeDtypeStruct((HEADS, 2 * length), jnp.float32)
    scalars = jax.ShapeDtypeStruct((4,), jnp.int32)
    gradient = jax.jit(jax.grad(total, (0, 1, 2, 4)))
    device = jax.sharding.AbstractDevice("NVIDIA H100", num_cores=1, platform="gpu")
    with jax.sharding.use_abstract_mesh(jax.sharding.AbstractMesh((), (), abstract_device=device)):
        traced = gradient.trace(heads_of_tokens, heads_of_tokens, heads_of_tokens, segments, bias, scalars)
        text = traced.lower(lowering_platforms=("cuda",)).as_text()
    assert text.count("triton") == 4
    assert f"{length}x{length}" not in text


@pytest.mark.parametrize(("heads", "width", "channels"), [(4, 64, 256), (8, 32, 256), (2, 128, 256), (3, 64, 384)])
def test_heads_keep_their_place_on_a_tpu(heads: int, width: int, channels: int) -> None:
    """The kernels read queries, keys and values as the projections compute them, and nothing is transposed.

    Two heads of 64 channels or four of 32 share the 128 lanes of a row; an odd number of heads of 64 is padded.
    """
    length = 256
    shape = (2, length, heads, width)
    settings = FlashSettings(scale=0.125, causal=True, block_q=128, block_k=128, on_tpu=True)

    def total(rows: Float[Array, "b l c"]) -> Float[Array, ""]:
        states = rows.reshape(shape)
        segments = jnp.ones((2, length), jnp.int32)
        inputs = FlashInputs(states, states, states, segments, segments, None, None, jnp.zeros(4, jnp.int32))
        return jnp.sum(flash_attention(inputs, settings).reshape(2, length, -1).astype(jnp.float32))

    jaxpr = jax.make_jaxpr(jax.grad(total))(jax.ShapeDtypeStruct((2, length, heads * width), jnp.bfloat16))
    found = list(equations_outside_of_kernels(jaxpr.jaxpr))
    assert "transpose" not in {equation.primitive.name for equation in found}
    kernels = [equation for equation in found if equation.primitive.name == "pallas_call"]
    assert len(kernels) == 3
    for kernel in kernels:
        shapes = {str(variable.aval) for variable in kernel.invars}
        assert {shape for shape in shapes if shape.startswith("bfloat16")} == {f"bfloat16[2,{length},{channels}]"}


def equations_outside_of_kernels(jaxpr: jex.core.Jaxpr) -> Iterator[jex.core.JaxprEqn]:
    """Yield the equations of a program and of those that it calls, but for the kernels' own."""
    for equation in jaxpr.eqns:
        yield equation
        if equation.primitive.name == "pallas_call":
            continue
        for value in equation.params.values():
            if isinstance(value, jex.core.ClosedJaxpr):
                yield from equations_outside_of_kernels(value.jaxpr)
