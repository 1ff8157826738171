"""Transient global attention in packed rows; tests/reference compares whole models of LongT5 with Transformers."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from t5x_lite.models.attention.context import BlockLimits
from t5x_lite.models.attention.transient_global import document_blocks
from t5x_lite.models.config import ModelConfig
from t5x_lite.models.transformer import EncoderDecoder

SEGMENTS = np.array([[1] * 11 + [2] * 3 + [3] * 8 + [0] * 2, [1] * 24])
"""Two rows: documents of 11, 3 and 8 tokens and padding; one document of 24."""
BLOCK = 4


def small_model() -> EncoderDecoder:
    config = ModelConfig(
        family="encoder_decoder",
        layers=2,
        embed=16,
        heads=2,
        vocab=32,
        positions="relative",
        norm="rmsnorm",
        pattern=[{"attention": {"transient_global": {"window": 3, "block": BLOCK}}}],
        decoder_attention=["dense"],
    )
    return EncoderDecoder(config, rngs=nnx.Rngs(params=0))


def encode(model: EncoderDecoder, tokens: np.ndarray, segments: np.ndarray) -> np.ndarray:
    positions = np.zeros_like(segments)
    for row in range(len(segments)):
        for document in np.unique(segments[row]):
            places = segments[row] == document
            positions[row, places] = np.arange(places.sum())
    states, _ = model.encoder(model.tokens(jnp.array(tokens)), jnp.array(positions), jnp.array(segments))
    return np.array(states)


def test_blocks_are_counted_by_document_and_the_last_one_takes_the_orphans() -> None:
    """Guo et al. 2022, §3.2.2: of 11 tokens the third block is not whole, so that block 1 has tokens 4 to 10."""
    blocks = document_blocks(jnp.array(SEGMENTS), BLOCK)
    none = SEGMENTS.shape[1] // BLOCK
    first_row = [0] * 4 + [1] * 7 + [none] * 3 + [2] * 4 + [3] * 4 + [none] * 2
    second_row = [place // 4 for place in range(24)]
    assert blocks.of_tokens.tolist() == [first_row, second_row]
    assert blocks.segment_ids.tolist() == [[1, 1, 3, 3, 0, 0], [1] * 6]


def test_documents_that_share_a_row_are_encoded_as_alone() -> None:
    model = small_model()
    tokens = np.random.default_rng(0).integers(1, 32, SEGMENTS.shape)
    packed = encode(model, tokens, SEGMENTS)
    for document in (1, 2, 3):
        places = SEGMENTS[0] == document
        alone = encode(model, tokens[:1, places], np.ones((1, places.sum()), int))
        np.testing.assert_allclose(packed[0, places], alone[0], atol=2e-6)


@pytest.mark.slow
def test_a_token_far_away_is_seen_through_its_block_alone() -> None:
    """Of a document of 24 tokens in 6 blocks, the first token sees the last one; without a whole block it does not."""
    model = small_model()

    def first_state(embedded: jax.Array, segments: np.ndarray) -> jax.Array:
        states, _ = model.encoder(embedded, None, jnp.array(segments))
        return states[0, 0].sum()

    tokens = model.tokens(jnp.ones((1, 24), int))
    far = jax.grad(first_state)(tokens, np.ones((1, 24), int))[0, -1]
    assert np.abs(far).max() > 1e-4
    # Two layers of a window of 3 reach 4 tokens; documents of 3 tokens have no global token.
    other_document = jax.grad(first_state)(tokens, np.repeat(np.arange(1, 9), 3)[None])[0, 3:]
    assert np.abs(other_document).max() == 0


def test_queries_in_chunks_give_the_same_states() -> None:
    model = small_model()
    tokens = np.random.default_rng(1).integers(1, 32, SEGMENTS.shape)
    expected = encode(model, tokens, SEGMENTS)
    attention = model.encoder.stack.layers["0"].attention
    attention.settings = replace(attention.settings, limits=BlockLimits(max_scores=1, chunk_bytes=400))
    np.testing.assert_allclose(encode(model, tokens, SEGMENTS), expected, atol=2e-6)
