"""Decoding token by token equals one pass over the whole row, whatever the attention kind; a window keeps a ring."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from t5x_lite.models.config import ModelConfig
from tests.models.weights import random_model

KINDS = [
    {"local": {"window": 5}},
    {"strided": {"stride": 4, "share": "near"}},
    {"strided": {"stride": 4, "share": "heads"}},
    {"strided": {"stride": 4, "share": "both"}},
    {"fixed": {"stride": 4, "summary": 1, "share": "near"}},
    {"fixed": {"stride": 4, "summary": 1, "share": "heads"}},
]
PROMPTS, TOKENS = (13, 3), 9


@pytest.mark.parametrize(
    ("kind", "prefix_lm"), [*((kind, False) for kind in KINDS), (KINDS[0], True), (KINDS[-1], True)], ids=str
)
def test_token_by_token_equals_one_pass(kind: Any, prefix_lm: bool) -> None:
    """Unequal prompts, padded on the left as in generation, some longer than the window, some shorter."""
    settings = {"layers": 2, "pattern": [{"attention": "dense"}, {"attention": kind}], "prefix_lm": prefix_lm}
    settings |= {"positions": "rotary", "embed": 16, "heads": 4, "kv_heads": 2, "vocab": 11}
    model: Any = random_model(ModelConfig.model_validate(settings))
    rng = np.random.default_rng(0)
    rows = [rng.integers(0, 11, size + TOKENS) for size in PROMPTS]

    longest = max(PROMPTS)
    padded = np.zeros((2, len(rows), longest), np.int32)
    for n, (row, size) in enumerate(zip(rows, PROMPTS, strict=True)):
        padded[:, n, longest - size :] = row[:size], np.ones(size)
    hidden, cache = jax.jit(model.prefill, static_argnums=2)(*map(jnp.asarray, padded), TOKENS)
    decode_step, states = jax.jit(model.decode_step), [hidden]
    for step in range(TOKENS - 1):
        token = jnp.array([[row[size + step]] for row, size in zip(rows, PROMPTS, strict=True)])
        hidden, cache = decode_step(token, jnp.ones_like(token), cache)
        states.append(hidden)
    found = np.concatenate(states, axis=1)

    for n, (row, size) in enumerate(zip(rows, PROMPTS, strict=True)):
        inputs = jnp.asarray(np.arange(len(row))[None] < size, jnp.int32)
        whole = np.asarray(model(jnp.asarray(row[None], jnp.int32), prefix=inputs))[0]
        np.testing.assert_allclose(found[n], whole[size - 1 : -1], atol=1e-5)


def test_a_window_keeps_a_cache_of_its_size() -> None:
    pattern = [{"attention": "dense"}, {"attention": {"local": {"window": 5}}}]
    settings = {"layers": 2, "pattern": pattern, "embed": 16, "heads": 2, "vocab": 11}
    model: Any = random_model(ModelConfig.model_validate(settings))
    dense, local = model.decoder.empty_state(3, 100).layers
    assert dense.key.shape == (1, 3, 2, 100, 8)
    assert local.key.shape == (1, 3, 2, 5, 8)
