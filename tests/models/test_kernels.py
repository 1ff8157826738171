"""Every form of attention against one written out in NumPy from the definition of its mask."""

from itertools import product
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from t5x_lite.models import kernels
from t5x_lite.models.kernels import Places, Settings, View, attend
from t5x_lite.models.patterns import Dense, Local

BATCH, HEADS, WIDTH = 2, 4, 8


def sees(pattern: Any, q: int, m: int, *, causal: bool) -> bool:
    """Brute force: a causal query sees no later key; a window of w counts the query itself."""
    if causal and m > q:
        return False
    return not isinstance(pattern, Local) or abs(q - m) <= pattern.window - 1


def by_hand(q: Any, k: Any, v: Any, pattern: Any, segments: Any, bias: Any, *, causal: bool) -> np.ndarray:
    out = np.zeros(q.shape)
    groups = q.shape[2] // k.shape[2]
    for b, i, h in product(range(q.shape[0]), range(q.shape[1]), range(q.shape[2])):
        keys = [
            m
            for m in range(k.shape[1])
            if sees(pattern, i, m, causal=causal) and segments[b, m] == segments[b, i] and segments[b, m] > 0
        ]
        if not keys:
            continue
        scores = np.array([q[b, i, h] @ k[b, m, h // groups] / WIDTH**0.5 for m in keys])
        scores = scores + (0 if bias is None else bias[h, i, keys])
        shares = np.exp(scores - scores.max())
        out[b, i, h] = shares / shares.sum() @ v[b, keys, h // groups]
    return out


def case(length: int, kv_heads: int, packing: str) -> tuple[np.ndarray, ...]:
    rng = np.random.default_rng(0)
    segments = {
        "whole": np.ones((BATCH, length), int),
        "packed": np.sort(rng.integers(1, 4, (BATCH, length))),
        "padded": np.where(np.arange(length) < [[length - 5], [length // 2]], 1, 0),
    }[packing]
    q = rng.normal(size=(BATCH, length, HEADS, WIDTH)).astype(np.float32)
    k, v = rng.normal(size=(2, BATCH, length, kv_heads, WIDTH)).astype(np.float32)
    return q, k, v, segments


def alibi(query: jax.Array, key: jax.Array) -> jax.Array:
    return -jnp.arange(1, HEADS + 1)[:, None, None] * jnp.abs(query[:, None] - key[None]) / 10


CASES = [
    *product([48], [Dense(), Local(window=7)], ["whole", "packed", "padded"], [True, False]),
    *product([61], [Dense(), Local(window=16)], ["packed"], [True, False]),
]


@pytest.mark.parametrize(("length", "pattern", "packing", "causal"), CASES)
def test_every_form_equals_the_definition(
    length: int, pattern: Any, packing: str, causal: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Lengths that do and do not divide the block, grouped heads, a bias, packing and padding; values and gradients."""
    monkeypatch.setattr(kernels, "SMALLEST_BLOCK", 8)
    q, k, v, segments = case(length, 2, packing)
    places = Places(jnp.arange(length), jnp.asarray(segments))
    view = View(places, places, causal=causal, bias=alibi)
    bias = np.asarray(alibi(np.arange(length), np.arange(length)))
    expected = by_hand(q, k, v, pattern, segments, bias, causal=causal)
    real = (segments > 0)[..., None, None]
    forms = {"dense": kernels.dense, "chosen": attend}
    if isinstance(pattern, Local):
        forms["banded"] = kernels.banded
    monkeypatch.setattr(kernels, "CHUNK_BYTES", 4 * BATCH * HEADS * length * 10)
    forms["chunked"] = kernels.chunked
    gradients = {}
    for name, form in forms.items():

        def total(q: jax.Array, k: jax.Array, v: jax.Array, form: Any = form) -> tuple[jax.Array, jax.Array]:
            out = form(q, k, v, pattern, view, Settings()) * real
            return jnp.sum(jnp.sin(out)), out

        (_, found), gradients[name] = jax.jit(jax.value_and_grad(total, (0, 1, 2), has_aux=True))(q, k, v)
        np.testing.assert_allclose(found, expected * real, atol=1e-5, err_msg=name)
        for one, other in zip(gradients[name], gradients["dense"], strict=True):
            np.testing.assert_allclose(one, other, atol=1e-5, err_msg=name)


def test_a_prefix_is_seen_both_ways_inside_a_band(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels, "SMALLEST_BLOCK", 8)
    q, k, v, segments = case(48, 4, "whole")
    prefix = jnp.asarray(np.arange(48) < [[20], [9]])
    places = Places(jnp.arange(48), jnp.asarray(segments), prefix)
    view, pattern = View(places, places, causal=True), Local(window=7)
    found, expected = (form(q, k, v, pattern, view, Settings()) for form in (kernels.banded, kernels.dense))
    np.testing.assert_allclose(found, expected, atol=1e-5)


def flops(form: Any, pattern: Any, length: int) -> float:
    q, k, v, segments = case(length, 4, "whole")
    places = Places(jnp.arange(length), jnp.asarray(segments))
    run = jax.jit(lambda q, k, v: form(q, k, v, pattern, View(places, places, causal=True), Settings()))
    return run.lower(q, k, v).compile().cost_analysis()["flops"]


def test_a_band_works_in_proportion_to_length_times_window() -> None:
    """Counted by XLA: twice the length is twice the work, and far less than the square."""
    short, long = (flops(attend, Local(window=64), length) for length in (512, 1024))
    assert long / short == pytest.approx(2.0, rel=0.1)
    assert long < 0.2 * flops(kernels.dense, Local(window=64), 1024)


def test_a_long_square_is_never_whole_in_memory() -> None:
    """32k tokens, forward and backward, one head: the square alone would be 4 GiB."""
    length = 32768
    places = Places(jnp.arange(length), jnp.ones((1, length), jnp.int32))
    view = View(places, places, causal=True)
    shape = jax.ShapeDtypeStruct((1, length, 1, 64), jnp.float32)
    loss = lambda q, k, v: attend(q, k, v, Dense(), view, Settings()).sum()  # noqa: E731
    compiled = jax.jit(jax.grad(loss, (0, 1, 2))).lower(shape, shape, shape).compile()
    memory = compiled.memory_analysis()
    assert memory.temp_size_in_bytes + memory.output_size_in_bytes + memory.argument_size_in_bytes < 2 * 2**30


def test_dropout_in_blocks_keeps_its_share_and_its_mean() -> None:
    length = 400
    q, k, _, segments = case(length, 4, "whole")
    places = Places(jnp.arange(length), jnp.asarray(segments))
    view, ones = View(places, places, causal=True), jnp.ones((BATCH, length, 4, WIDTH))
    for form, pattern in ((kernels.banded, Local(window=64)), (kernels.dense, Local(window=64))):
        out = form(q, k, ones, pattern, view, Settings(dropout=0.3), jax.random.key(0))
        assert float(out.mean()) == pytest.approx(1.0, abs=0.02)
        assert float(out.std()) > 0.05
