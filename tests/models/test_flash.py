"""Flash attention, interpreted on a CPU, against attention written out from its definition; and lowered for a GPU."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from t5x_lite.models.attention.flash import flash_attention
from t5x_lite.models.attention.flash_tiles import (
    FlashInputs,
    FlashSettings,
    diagonal_tiles,
    keep_mask,
    row_number,
)

BATCH, HEADS, WIDTH = 2, 4, 16


def arrays(length: int, keys: int, kv_heads: int, *, packed: bool) -> tuple[jax.Array, ...]:
    """Random query, key and value, and segments of both sides; packed rows end in padding."""
    rng = np.random.default_rng(0)
    query = rng.normal(size=(BATCH, length, HEADS, WIDTH))
    key, value = rng.normal(size=(2, BATCH, keys, kv_heads, WIDTH))
    segments = []
    for size in (length, keys):
        numbers = np.minimum(np.arange(size) // (size // 3) + 1, 3) * (np.arange(size) < size - 4)
        segments.append(np.broadcast_to(numbers if packed else np.ones(size), (BATCH, size)))
    floats = tuple(jnp.asarray(x, jnp.float32) for x in (query, key, value))
    return (*floats, *(jnp.asarray(x, jnp.int32) for x in segments))


def defined(
    settings: FlashSettings, query: Any, key: Any, value: Any, of_query: Any, of_key: Any, bias: Any, prefix: Any
) -> jax.Array:
    """Vaswani et al. 2017, §3.2.1, with a mask, a bias and dropout, in one piece."""
    groups = query.shape[2] // key.shape[2]
    key, value = jnp.repeat(key, groups, 2), jnp.repeat(value, groups, 2)
    offset = np.arange(key.shape[1])[None, :] - np.arange(query.shape[1])[:, None]
    seen = (of_query[:, :, None] == of_key[:, None, :]) & (of_key[:, None, :] > 0)
    if settings.causal:
        past = jnp.asarray(offset <= 0)[None]
        seen = seen & (past if prefix is None else past | (prefix[:, None, :] > 0))
    if settings.window is not None:
        seen = seen & jnp.asarray(abs(offset) < settings.window)[None]
    scores = jnp.einsum("blhk,bmhk->bhlm", query, key, precision="highest") * settings.scale
    if bias is not None:
        scores = scores + bias[:, offset + query.shape[1] - 1]
    weights = jax.nn.softmax(jnp.where(seen[:, None], scores, -1e30), axis=-1) * seen[:, None]
    if settings.dropout:
        batch, head = np.arange(BATCH)[:, None, None, None], np.arange(HEADS)[:, None, None]
        rows = row_number(batch, head, HEADS, jnp.arange(query.shape[1])[:, None])
        keep = keep_mask(jnp.int32(7), rows, jnp.arange(key.shape[1])[None, :], settings.dropout)
        weights = jnp.where(keep, weights / (1 - settings.dropout), 0)
    return jnp.einsum("bhlm,bmhk->blhk", weights, value, precision="highest")


CASES = {
    "causal": {"causal": True},
    "both ways, packed": {"packed": True},
    "bias both ways": {"bias": True, "packed": True},
    "causal bias, dropout": {"causal": True, "bias": True, "dropout": 0.2},
    "cross, packed, lengths that fill no tile": {"length": 41, "keys": 60, "packed": True, "bias": True},
    "causal window": {"causal": True, "window": 7, "packed": True},
    "window both ways, bias": {"window": 7, "bias": True},
    "prefix": {"causal": True, "has_prefix": True, "kv_heads": 1},
    "prefix in a window, dropout": {"causal": True, "has_prefix": True, "window": 20, "dropout": 0.1},
    "grouped heads": {"causal": True, "kv_heads": 2, "packed": True},
    "oblong tiles": {"causal": True, "block_q": 32, "packed": True},
}


@pytest.mark.parametrize("name", CASES)
def test_outputs_and_gradients_equal_the_definition(name: str) -> None:
    case = {"length": 48, "keys": 48, "kv_heads": HEADS, "packed": False, "bias": False, "causal": False, **CASES[name]}
    length, keys, kv_heads = case.pop("length"), case.pop("keys"), case.pop("kv_heads")
    *sides, of_query, of_key = arrays(length, keys, kv_heads, packed=case.pop("packed"))
    bias = None
    if case.pop("bias"):
        bias = jnp.asarray(np.random.default_rng(1).normal(size=(HEADS, length + keys)), jnp.float32)
    settings = FlashSettings(scale=0.3, **({"block_q": 16, "block_k": 16, "interpret": True} | case))
    prefix = None
    if settings.has_prefix:
        prefix = jnp.asarray(np.arange(keys) < np.array([[keys // 3], [keys // 2]]), jnp.int32)

    def flash(query: Any, key: Any, value: Any, bias: Any) -> jax.Array:
        scalars = jnp.array([0, 7], jnp.int32)
        inputs = FlashInputs(query, key, value, of_query, of_key, prefix, bias, scalars)
        return flash_attention(inputs, settings)

    def expected(query: Any, key: Any, value: Any, bias: Any) -> jax.Array:
        return defined(settings, query, key, value, of_query, of_key, bias, prefix)

    np.testing.assert_allclose(flash(*sides, bias), expected(*sides, bias), atol=2e-5)
    wanted = (0, 1, 2) if bias is None else (0, 1, 2, 3)
    gradients = [
        jax.grad(lambda *given, run=run: jnp.sum(jnp.sin(run(*given))), wanted)(*sides, bias)
        for run in (flash, expected)
    ]
    for found, true in zip(*gradients, strict=True):
        np.testing.assert_allclose(found, true, atol=1e-4)


def test_tiles_of_a_bias_are_the_blocks_of_its_matrix() -> None:
    """Block row i and block column j of the matrix of offsets hold tile j - i + rows - 1; the gradient adds all up."""
    block, rows, columns = 4, 3, 5
    bias = jnp.asarray(np.random.default_rng(0).normal(size=(2, (rows + columns) * block)), jnp.float32)
    length, keys = rows * block, columns * block
    matrix = np.asarray(bias)[:, np.arange(keys)[None] - np.arange(length)[:, None] + length - 1]
    tiles = np.asarray(diagonal_tiles(bias, block))
    assert tiles.shape == (2, rows + columns - 1, block, block)
    for i in range(rows):
        for j in range(columns):
            part = matrix[:, i * block : (i + 1) * block, j * block : (j + 1) * block]
            np.testing.assert_array_equal(tiles[:, j - i + rows - 1], part)
    weights = np.random.default_rng(1).normal(size=tiles.shape)
    found = jax.grad(lambda bias: jnp.sum(diagonal_tiles(bias, block) * weights))(bias)
    by_hand = np.zeros(bias.shape)
    for d, i, j in np.ndindex(tiles.shape[1:]):
        by_hand[:, d * block + block - 1 + j - i] += weights[:, d, i, j]
    np.testing.assert_allclose(found, by_hand, atol=1e-5)


@pytest.mark.parametrize("rate", [0.1, 0.5])
def test_dropout_drops_its_share_and_no_two_rows_alike(rate: float) -> None:
    """Binomial bounds over 2^20 draws; rows, keys and seeds are not correlated."""
    rows, keys = jnp.arange(1024)[:, None], jnp.arange(1024)[None, :]
    kept = np.asarray(keep_mask(jnp.int32(3), rows, keys, rate), np.float64)
    deviation = (rate * (1 - rate)) ** 0.5
    assert abs(kept.mean() - (1 - rate)) < 5 * deviation / 1024
    assert np.abs(kept.mean(0) - (1 - rate)).max() < 6 * deviation / 32
    assert np.abs(kept.mean(1) - (1 - rate)).max() < 6 * deviation / 32
    other = np.asarray(keep_mask(jnp.int32(4), rows, keys, rate), np.float64)
    for a, b in ((kept[:-1], kept[1:]), (kept[:, :-1], kept[:, 1:]), (kept, other)):
        assert abs(np.corrcoef(a.ravel(), b.ravel())[0, 1]) < 5 / 1024


def test_the_kernels_lower_for_a_gpu_that_is_not_here() -> None:
    """The Triton program of every kernel is made on this machine, and no array of heads x length x length is there."""
    length = 256
    settings = FlashSettings(scale=0.125, causal=True, dropout=0.1)

    def total(query: Any, key: Any, value: Any, segments: Any, bias: Any, scalars: Any) -> jax.Array:
        inputs = FlashInputs(query, key, value, segments, segments, None, bias, scalars)
        return jnp.sum(flash_attention(inputs, settings).astype(jnp.float32))

    side = jax.ShapeDtypeStruct((1, length, HEADS, 64), jnp.bfloat16)
    numbers = jax.ShapeDtypeStruct((1, length), jnp.int32)
    bias = jax.ShapeDtypeStruct((HEADS, 2 * length), jnp.float32)
    step = jax.jit(jax.grad(total, (0, 1, 2, 4)))
    device = jax.sharding.AbstractDevice("NVIDIA H100", num_cores=1, platform="gpu")
    with jax.sharding.use_abstract_mesh(jax.sharding.AbstractMesh((), (), abstract_device=device)):
        traced = step.trace(side, side, side, numbers, bias, jax.ShapeDtypeStruct((2,), jnp.int32))
        text = traced.lower(lowering_platforms=("cuda",)).as_text()
    assert text.count("triton") == 4
    assert f"{length}x{length}" not in text
