"""The cache of keys and values with every kind of attention: decoding token by token equals one pass over a row."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from t5x_lite.models.config import ModelConfig
from tests.models.weights import random_model

KINDS: tuple[dict[str, dict[str, object]], ...] = (
    {"local": {"window": 5}},
    {"strided": {"stride": 4, "share": "near"}},
    {"strided": {"stride": 4, "share": "heads"}},
    {"strided": {"stride": 4, "share": "both"}},
    {"fixed": {"stride": 4, "summary": 1, "share": "near"}},
    {"fixed": {"stride": 4, "summary": 1, "share": "heads"}},
)
CASES = [
    *((kind, False, "rotary") for kind in KINDS),
    (KINDS[0], True, "rotary"),
    (KINDS[-1], True, "rotary"),
    pytest.param(KINDS[0], False, "transformer_xl", marks=pytest.mark.slow),
    pytest.param(KINDS[3], False, "transformer_xl", marks=pytest.mark.slow),
]
PROMPT_LENGTHS = (13, 3)
"""One prompt is longer than the window, one is shorter."""
NEW_TOKENS = 9


@pytest.mark.parametrize(("kind", "prefix_lm", "positions"), CASES, ids=str)
def test_decoding_token_by_token_equals_one_pass(
    kind: dict[str, dict[str, object]], prefix_lm: bool, positions: str
) -> None:
    """Prompts of unequal length are padded on the left, as in generation."""
    config = ModelConfig.model_validate(
        {
            "layers": 2,
            "pattern": [{"attention": "dense"}, {"attention": kind}],
            "prefix_lm": prefix_lm,
            "positions": positions,
            "embed": 16,
            "heads": 4,
            "kv_heads": 2,
            "vocab": 11,
        }
    )
    model = random_model(config)
    rng = np.random.default_rng(0)
    rows = [rng.integers(0, 11, length + NEW_TOKENS) for length in PROMPT_LENGTHS]

    longest = max(PROMPT_LENGTHS)
    prompts = np.zeros((len(rows), longest), np.int32)
    segment_ids = np.zeros_like(prompts)
    for number, (row, length) in enumerate(zip(rows, PROMPT_LENGTHS, strict=True)):
        prompts[number, longest - length :] = row[:length]
        segment_ids[number, longest - length :] = 1
    prefill = jax.jit(model.prefill, static_argnums=2)
    decode_step = jax.jit(model.decode_step)
    states, cache = prefill(jnp.asarray(prompts), jnp.asarray(segment_ids), NEW_TOKENS)
    states_of_steps = [states]
    for step in range(NEW_TOKENS - 1):
        tokens = jnp.array([[row[length + step]] for row, length in zip(rows, PROMPT_LENGTHS, strict=True)])
        states, cache = decode_step(tokens, jnp.ones_like(tokens), cache)
        states_of_steps.append(states)
    cached_states = np.concatenate(states_of_steps, axis=1)

    for number, (row, length) in enumerate(zip(rows, PROMPT_LENGTHS, strict=True)):
        is_prompt = jnp.asarray(np.arange(len(row))[None] < length, jnp.int32)
        expected_states = np.asarray(model(jnp.asarray(row[None], jnp.int32), prefix=is_prompt))[0]
        np.testing.assert_allclose(cached_states[number], expected_states[length - 1 : -1], atol=1e-5)


def test_the_cache_of_local_attention_has_the_size_of_the_window() -> None:
    pattern = [{"attention": "dense"}, {"attention": {"local": {"window": 5}}}]
    settings = {"layers": 2, "pattern": pattern, "embed": 16, "heads": 2, "vocab": 11}
    model = random_model(ModelConfig.model_validate(settings))
    dense_cache, local_cache = model.decoder.empty_cache(3, 100).layers
    assert dense_cache.key.shape == (1, 3, 2, 100, 8)
    assert local_cache.key.shape == (1, 3, 2, 5, 8)
