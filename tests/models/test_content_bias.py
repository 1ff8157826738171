"""Biases of the scores that depend on queries and keys, in every form of attention, against their definition."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jaxtyping import Array, Float, Int

from t5x_lite.models.attention import layer
from t5x_lite.models.attention.context import (
    AttentionContext,
    AttentionSettings,
    BlockLimits,
    ContentPairs,
    TokenPositions,
    offsets,
)
from t5x_lite.models.attention.kernels import attend, choose_kernel, planned_kernels
from t5x_lite.models.attention.kinds import AttentionKind, BlockGlobal, Dense, Fixed, Local, Strided
from t5x_lite.models.attention.requirements import KernelRequirements
from t5x_lite.models.config import ModelConfig
from t5x_lite.models.positions.relative_shift import PairOffsets
from tests.models.test_kernels import (
    BATCH,
    HEADS,
    SMALL_BLOCKS,
    WIDTH,
    attention_by_hand,
    gradient_function,
    random_arrays,
    self_context,
)
from tests.models.weights import random_model

LENGTH = 24
OF_QUERY = np.random.default_rng(1).normal(size=(HEADS, WIDTH)).astype(np.float32)
OF_KEY = np.random.default_rng(2).normal(size=(HEADS, WIDTH)).astype(np.float32)


def both_sides(pairs: ContentPairs) -> Float[Array, "b h l m"]:
    """Return (q·a) sin(offset) + (k·c) cos(offset), with an a and a c of each head."""
    offset = offsets(pairs.queries, pairs.keys).astype(jnp.float32)
    group = pairs.query.shape[2] // pairs.key.shape[2]
    of_query = jnp.einsum("blhk,hk->bhl", pairs.query, OF_QUERY[pairs.heads])
    of_key = jnp.einsum("bmhk,hk->bhm", jnp.repeat(pairs.key, group, axis=2), OF_KEY[pairs.heads])
    return of_query[..., None] * jnp.sin(offset) + of_key[:, :, None] * jnp.cos(offset)


def both_sides_by_hand(q: np.ndarray, k: np.ndarray) -> Float[np.ndarray, "b h l l"]:
    bias = np.zeros((BATCH, HEADS, q.shape[1], q.shape[1]))
    for row, head, query, key in np.ndindex(bias.shape):
        of_query = q[row, query, head] @ OF_QUERY[head]
        of_key = k[row, key, head // (HEADS // k.shape[2])] @ OF_KEY[head]
        bias[row, head, query, key] = of_query * np.sin(key - query) + of_key * np.cos(key - query)
    return bias


def forms_of_attention(
    segments: Int[np.ndarray, "b l"], *, causal: bool
) -> dict[str, tuple[AttentionContext, AttentionSettings]]:
    """Return contexts and settings under which attention is computed in one piece, in parts, and in chunks."""
    context = replace(self_context(segments, causal=causal), content_bias=both_sides)
    chunk_limits = replace(SMALL_BLOCKS, max_scores=16, chunk_bytes=4 * BATCH * HEADS * LENGTH * 7)
    return {
        "one piece": (replace(context, self_attention=False), AttentionSettings(limits=SMALL_BLOCKS)),
        "parts": (context, AttentionSettings(limits=SMALL_BLOCKS)),
        "chunks": (context, AttentionSettings(limits=chunk_limits)),
    }


@pytest.mark.parametrize(
    ("kind", "causal"),
    [
        (Dense(), True),
        (Local(window=7), False),
        pytest.param(Fixed(stride=8, summary=2, share="heads"), True, marks=pytest.mark.slow),
        pytest.param(Dense(), False, marks=pytest.mark.slow),
        pytest.param(Strided(stride=6, share="both"), True, marks=pytest.mark.slow),
        pytest.param(Strided(stride=6, share="heads"), True, marks=pytest.mark.slow),
        pytest.param(BlockGlobal(block=4, neighbours=1, globals=3), False, marks=pytest.mark.slow),
    ],
    ids=str,
)
def test_every_form_of_attention_adds_the_bias_of_its_pairs(kind: AttentionKind, causal: bool) -> None:
    """In steps, blocks, columns and chunks, of grouped and of some heads, in packed rows."""
    q, k, v, segments = random_arrays(LENGTH, 2, "packed")
    bias = both_sides_by_hand(q, k) * WIDTH**-0.5
    rows = []
    for row in range(BATCH):
        q_row, k_row, v_row, row_segments = (x[row : row + 1] for x in (q, k, v, segments))
        rows.append(attention_by_hand(q_row, k_row, v_row, kind, row_segments, bias[row], causal=causal))
    is_token = (segments > 0)[..., None, None]
    forms = forms_of_attention(segments, causal=causal)

    @jax.jit
    def attend_in_every_form(q: Array, k: Array, v: Array) -> dict[str, Array]:
        return {form: attend(q, k, v, kind, context, settings) for form, (context, settings) in forms.items()}

    for form, out in attend_in_every_form(q, k, v).items():
        np.testing.assert_allclose(out * is_token, np.concatenate(rows) * is_token, atol=1e-5, err_msg=form)


@pytest.mark.slow
@pytest.mark.parametrize("kind", [Dense(), Strided(stride=6, share="both")], ids=str)
def test_gradients_are_those_of_the_bias_in_one_piece(kind: AttentionKind) -> None:
    q, k, v, segments = random_arrays(LENGTH, 2, "packed")
    is_token = (segments > 0)[..., None, None]
    gradients = {}
    for form, (context, settings) in forms_of_attention(segments, causal=True).items():
        _, gradients[form] = gradient_function(kind, context, settings, is_token)((q, k, v))
        for gradient, expected_gradient in zip(gradients[form], gradients["one piece"], strict=True):
            np.testing.assert_allclose(gradient, expected_gradient, atol=2e-5, err_msg=form)


@pytest.mark.parametrize(
    ("query_index", "key_index"),
    [
        (range(5), range(5)),
        (range(7, 10), range(4)),
        ([4], [2, 9, 0]),
        (range(0, 18, 6), range(0, 24, 6)),
        (range(9, 21, 3), [1, 2, 5, 6]),
        ([3, 0, 8], range(9)),
    ],
)
def test_scores_with_offsets_are_moved_to_their_pairs(query_index: range, key_index: range) -> None:
    """Each score of a query with an offset is 1000 times the number of the query, plus the offset."""
    sides = []
    for index in (query_index, key_index):
        sides.append(TokenPositions(np.array(index), jnp.ones((1, len(index)), jnp.int32)))
    pairs = PairOffsets.between(*sides)
    scores = 1000.0 * np.arange(len(query_index))[:, None] + np.asarray(pairs.offsets).reshape(-1)
    at_pairs = np.asarray(pairs.at_pairs(jnp.asarray(scores)[None, None]))[0, 0]
    for (row, column), score in np.ndenumerate(at_pairs):
        assert score == 1000 * row + key_index[column] - query_index[row]


def test_fused_kernels_refuse_it_and_auto_says_why() -> None:
    required = KernelRequirements(2048, 64, "bfloat16", causal=True, content_bias=True)
    reason = "it does not support positions whose bias depends on queries and keys"
    for kernel, platform in (("splash", "tpu"), ("cudnn", "gpu"), ("flash", "gpu")):
        with pytest.raises(ValueError, match=f"model.kernel={kernel} cannot compute this attention: {reason}"):
            choose_kernel(Dense(), required, kernel, platform)
    assert choose_kernel(Dense(), required, "auto", "tpu") == ("xla", f"not splash or flash: {reason}")
    config = ModelConfig.model_validate({**SETTINGS, "kernel": "auto"})
    assert planned_kernels(config, 2048, "gpu")["dense"] == f"xla (not cudnn or flash: {reason})"


SETTINGS = {"layers": 2, "embed": 16, "heads": 4, "kv_heads": 2, "vocab": 11, "positions": "transformer_xl"}


@pytest.mark.parametrize(
    ("settings", "refusal"),
    [
        ({"pattern": [{"mixer": {"latent_attention": {}}}]}, "content-dependent bias are not for latent"),
        ({"family": "encoder", "pattern": [{"attention": "transient_global"}]}, "not for latent or transient_global"),
        ({"embed": 15, "heads": 1, "kv_heads": 1}, "need an even embed, not 15"),
    ],
)
def test_what_cannot_have_such_a_bias_is_refused(settings: dict[str, object], refusal: str) -> None:
    with pytest.raises(ValueError, match=refusal):
        ModelConfig.model_validate({**SETTINGS, **settings})


@pytest.mark.slow
def test_rematerialised_layers_have_the_same_gradients() -> None:
    tokens = jnp.asarray(np.random.default_rng(0).integers(0, 11, (2, 9)), jnp.int32)
    gradients = []
    for remat in ("none", "full"):
        model = random_model(ModelConfig.model_validate({**SETTINGS, "remat": remat}))
        graph, weights = nnx.split(model)

        def total(weights: object, graph: object = graph) -> Array:
            return jnp.sum(jnp.sin(nnx.merge(graph, weights)(tokens)))

        gradients.append(jax.tree.leaves(jax.jit(jax.grad(total))(weights)))
    for plain, recomputed in zip(*gradients, strict=True):
        np.testing.assert_allclose(plain, recomputed, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize(
    "kind",
    [
        {"local": {"window": 5}},
        {"strided": {"stride": 4, "share": "both"}},
        {"fixed": {"stride": 4, "summary": 2, "share": "heads"}},
    ],
    ids=str,
)
def test_relative_positions_of_parts_and_chunks_are_those_of_one_piece(
    kind: dict[str, object], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The last chunk of a row is not full, and the tokens of a column are `stride` apart."""
    config = ModelConfig.model_validate({**SETTINGS, "pattern": [{"attention": kind}]})
    tokens = jnp.asarray(np.random.default_rng(0).integers(0, 11, (2, 27)), jnp.int32)
    segments = jnp.asarray([[1] * 10 + [2] * 17, [1] * 27])
    create = layer.attention_settings
    one_piece = BlockLimits(min_block=64, min_causal_step=64)
    states = []
    for limits in (one_piece, SMALL_BLOCKS, replace(SMALL_BLOCKS, max_scores=16, chunk_bytes=4 * 2 * 4 * 27 * 5)):

        def limited(*arguments: object, limits: BlockLimits = limits) -> AttentionSettings:
            return replace(create(*arguments), limits=limits)

        monkeypatch.setattr(layer, "attention_settings", limited)
        states.append(jax.jit(random_model(config))(tokens, segment_ids=segments))
    for other in states[1:]:
        np.testing.assert_allclose(other, states[0], atol=1e-5)
