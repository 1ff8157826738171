"""DeBERTa's disentangled attention against its equations (He et al. 2021, §3.1)."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jaxtyping import Float

from t5x_lite.models.attention.context import AttentionContext, AttentionSettings, ContentPairs, TokenPositions
from t5x_lite.models.attention.kernels import attend, planned_kernels
from t5x_lite.models.attention.kinds import Dense
from t5x_lite.models.config import ModelConfig
from t5x_lite.models.outputs import DetectionOutput
from t5x_lite.models.positions.disentangled import distance_rows
from tests.models.test_kernels import BATCH, SMALL_BLOCKS, self_context
from tests.models.weights import random_model

LARGEST = 3
LENGTH = 9
HEADS = 2
SIZES = {"family": "encoder", "layers": 1, "embed": 8, "heads": HEADS, "vocab": 11}
V1 = {"positions": {"disentangled": {"distance": LARGEST}}, "key_bias": False}
V3 = {"positions": {"disentangled": {"distance": 8, "buckets": 4, "shared_projections": True, "norm": True}}}


def build_config(**settings: object) -> ModelConfig:
    return ModelConfig.model_validate({**SIZES, **settings})


def relative_distance(query: int, key: int) -> int:
    """Return δ(i, j), equation 3."""
    if query - key <= -LARGEST:
        return 0
    if query - key >= LARGEST:
        return 2 * LARGEST - 1
    return query - key + LARGEST


def positions_of(start: int, count: int) -> TokenPositions:
    return TokenPositions(np.arange(start, start + count), jnp.ones((1, count), jnp.int32))


@pytest.mark.parametrize("terms", [["c2p", "p2c"], ["p2c"]])
def test_scores_with_distances_are_those_of_equation_4(terms: list[str]) -> None:
    """A query with the key of δ(i, j); a key with the query of it, as the authors' code has it."""
    config = build_config(positions={"disentangled": {"distance": LARGEST, "terms": terms}}, key_bias=False)
    model = random_model(config)
    stack = model.encoder.stack
    attention = jax.tree.map(lambda array: array[0], stack.layers)["0"].attention
    rng = np.random.default_rng(0)
    query, key = rng.normal(size=(2, 1, LENGTH, HEADS, 4)).astype(np.float32)
    table = np.asarray(stack.positions.table.weight[...])
    expected = np.zeros((HEADS, LENGTH, LENGTH))
    for head, i, j in np.ndindex(expected.shape):
        vector = table[relative_distance(i, j)]
        if "c2p" in terms:
            projection = np.asarray(attention.positions.key.weight[...])[:, head]
            expected[head, i, j] += query[0, i, head] @ (vector @ projection)
        projection = np.asarray(attention.positions.query.weight[...])[:, head]
        bias = np.asarray(attention.positions.query.bias[...])[head]
        expected[head, i, j] += key[0, j, head] @ (vector @ projection + bias)

    row = positions_of(0, LENGTH)
    context = AttentionContext(row, row, causal=False, stack_positions=stack.positions)
    content_bias = attention.positions.content_bias(context, attention.query, attention.key)
    scores = content_bias(ContentPairs(jnp.asarray(query), jnp.asarray(key), row, row))
    np.testing.assert_allclose(scores[0], expected, atol=1e-5)
    part = ContentPairs(query[:, 4:7, 1:], key[:, 2:, 1:], positions_of(4, 3), positions_of(2, 7), slice(1, 2))
    np.testing.assert_allclose(content_bias(part)[0], expected[1:, 4:7, 2:], atol=1e-5)
    assert config.positions.score_scale == pytest.approx((1 + len(terms)) ** -0.5)


def test_buckets_are_single_distances_and_then_wider_ones() -> None:
    """By hand for 4 buckets in each direction of up to 8: 0, 1 and 2; then 3 to 7; distances from 8 on are clipped."""
    rows = distance_rows(8, 4) - 4
    assert rows.tolist() == [-4, *[-3] * 5, -2, -1, 0, 1, 2, *[3] * 5, 3]


@pytest.mark.parametrize("settings", [V1, pytest.param(V3, marks=pytest.mark.slow)])
def test_documents_of_a_packed_row_have_the_states_of_their_own_rows(settings: dict[str, object]) -> None:
    model = random_model(build_config(**settings, layers=2))
    tokens = np.random.default_rng(0).integers(0, 11, (1, LENGTH))
    segment_ids = np.array([[1] * 5 + [2] * 3 + [0]])
    packed = jax.jit(model)(tokens, segment_ids=segment_ids)
    alone = jax.jit(model)(tokens[:, 5:8])
    np.testing.assert_allclose(packed[:, 5:8], alone, atol=1e-5)


@pytest.mark.slow
def test_a_token_is_detected_in_the_context_of_its_documents_first_token() -> None:
    """DeBERTa-v3's code: the score of the norm of the sum of both states."""
    config = build_config(outputs=["detection"], detection_context=True)
    output = random_model(config).detection
    states = np.random.default_rng(0).normal(size=(2, 6, 8)).astype(np.float32)
    plain = DetectionOutput.__call__

    def score(sums: Float[np.ndarray, "l d"]) -> Float[np.ndarray, "l"]:
        norm = output.norm
        output.norm = None
        scores = plain(output, norm(jnp.asarray(sums))[None])[0]
        output.norm = norm
        return np.asarray(scores)

    scores = output(jnp.asarray(states), jnp.asarray([[1, 1, 1, 1, 1, 1], [1, 1, 2, 2, 2, 0]]))
    np.testing.assert_allclose(scores[0], score(states[0] + states[0, 0]), atol=1e-5)
    np.testing.assert_allclose(scores[1, :2], score(states[1, :2] + states[1, 0]), atol=1e-5)
    np.testing.assert_allclose(scores[1, 2:5], score(states[1, 2:5] + states[1, 2]), atol=1e-5)
    np.testing.assert_allclose(output(jnp.asarray(states))[0], scores[0], atol=1e-6)


@pytest.mark.parametrize(
    ("settings", "refusal"),
    [
        ({"family": "decoder"}, "positions disentangled are for encoders, not a model of family decoder"),
        ({"kv_heads": 1}, "positions disentangled have keys for every head: kv_heads is 1, heads 2"),
        ({"query_key_norm": "head"}, "query_key_norm: head is not for positions disentangled"),
        ({"positions": {"disentangled": {"buckets": 16, "distance": 8}}}, "must be 0, or from 4 to 13, found 16"),
        ({"positions": {"disentangled": {"terms": ["c2p", "c2p"]}}}, "terms names c2p twice"),
    ],
)
def test_what_has_no_vectors_of_distances_is_refused(settings: dict[str, object], refusal: str) -> None:
    with pytest.raises(ValueError, match=refusal):
        build_config(**{**V1, **settings})


def test_a_fused_kernel_is_refused_before_training() -> None:
    config = build_config(**V3, kernel="splash", compute="bfloat16")
    with pytest.raises(ValueError, match=r"model.kernel=splash cannot compute this attention: .* depends on queries"):
        planned_kernels(config, 512, "tpu")


@pytest.mark.slow
def test_rows_in_chunks_have_the_scores_of_rows_in_one_piece() -> None:
    """Chunks of 7 of 24 queries, the last one of 3."""
    stack = random_model(build_config(**V1)).encoder.stack
    attention = jax.tree.map(lambda array: array[0], stack.layers)["0"].attention
    rng = np.random.default_rng(0)
    q, k, v = rng.normal(size=(3, BATCH, 24, HEADS, 4)).astype(np.float32)
    context = replace(self_context(np.ones((BATCH, 24), np.int32), causal=False), stack_positions=stack.positions)
    content_bias = attention.positions.content_bias(context, attention.query, attention.key)
    context = replace(context, content_bias=content_bias)
    outs = []
    for chunk in (24, 7):
        limits = replace(SMALL_BLOCKS, max_scores=16, chunk_bytes=4 * BATCH * HEADS * 24 * chunk)
        outs.append(attend(q, k, v, Dense(), context, AttentionSettings(limits=limits)))
    np.testing.assert_allclose(outs[1], outs[0], atol=1e-5)
