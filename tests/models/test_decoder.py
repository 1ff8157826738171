"""The decoder, by properties that hold for any causal language model."""

import math
from functools import partial
from typing import get_args

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jaxtyping import Float, Int, PyTree

from t5x_lite.models.attention.context import AttentionContext, TokenPositions
from t5x_lite.models.attention.layer import Attention
from t5x_lite.models.config import ModelConfig
from t5x_lite.models.layers import Embed, dropout
from t5x_lite.models.remat_policy import RematPolicy
from t5x_lite.models.spec import init_params, model_spec
from t5x_lite.models.transformer import Decoder
from tests.models.decoding import decode_states, pad_left
from tests.models.weights import random_model

VOCAB = 50
SIZES = {"layers": 4, "embed": 16, "heads": 4, "vocab": VOCAB}
LEARNED_POSITIONS = {"positions": {"learned": {"length": 32}}}
VARIANTS = {
    "gpt2": {},
    "llama": {
        "positions": "rotary",
        "norm": "rmsnorm",
        "feedforward": "glu",
        "bias": False,
        "kv_heads": 1,
        "tied": False,
    },
    "sinusoidal, post-norm": {
        "positions": "sinusoidal",
        "norm_place": "post",
        "feedforward": {"mlp": {"activation": "relu"}},
    },
    "alibi, norms around sublayers": {
        "positions": "alibi",
        "norm_place": "sublayer",
        "query_key_norm": "width",
        "kv_heads": 2,
    },
    "relative": {"positions": {"relative": {"buckets": 8, "distance": 10}}, "attention_scale": 1.0},
    "relative, a table per layer": {"positions": {"relative": {"buckets": 8, "distance": 10, "shared": False}}},
    "transformer_xl": {"positions": {"transformer_xl": {"shared_biases": True}}, "kv_heads": 2},
    "shared layers": {"shared_layers": True, "shared_groups": 2, "query_key_value_bias": False},
    "softcaps, positions by layer, a pattern cut short": {
        "positions": {"rotary": {"theta": 100.0}},
        "pattern": [{"attention": {"local": {"window": 3}}, "positions": "rotary"}, {}, {"positions": "none"}],
        "norm": {"rmsnorm": {"unit_offset": True}},
        "norm_place": "sandwich",
        "attention_softcap": 1.0,
    },
    "pattern": {"pattern": [{}, {"feedforward": "glu"}], "query_key_norm": "head", "logit_softcap": 30.0},
}


def decoder_config(**settings: object) -> ModelConfig:
    return ModelConfig.model_validate({**SIZES, **LEARNED_POSITIONS, **settings})


def fresh_model(config: ModelConfig) -> Decoder:
    """Return a model with the weights that training begins with."""
    params = jax.jit(init_params, static_argnums=0)(config, jax.random.key(0))
    return model_spec(config).model(params)


@pytest.fixture(params=VARIANTS)
def model(request: pytest.FixtureRequest) -> Decoder:
    return random_model(decoder_config(**VARIANTS[request.param]))


def random_tokens(*shape: int, seed: int = 0) -> Int[np.ndarray, "b l"]:
    return np.random.default_rng(seed).integers(0, VOCAB, shape).astype(np.int32)


@partial(jax.jit, static_argnums=0)
def compute_logits(
    graph: nnx.GraphDef, weights: PyTree, tokens: Int[np.ndarray, "b l"], features: dict[str, np.ndarray]
) -> Float[jax.Array, "b l v"]:
    model = nnx.merge(graph, weights)
    return model.logits(model(tokens, **features))


def logits_of(
    model: Decoder, tokens: Int[np.ndarray, "b l"], **features: Int[np.ndarray, "b l"]
) -> Float[np.ndarray, "b l v"]:
    graph, weights = nnx.split(model)
    return np.asarray(compute_logits(graph, weights, tokens, features))


def test_later_tokens_do_not_change_earlier_logits(model: Decoder) -> None:
    tokens = random_tokens(1, 12)
    changed_tokens = tokens.copy()
    changed_tokens[0, 7:] = (changed_tokens[0, 7:] + 1) % VOCAB
    logits = logits_of(model, tokens)
    changed_logits = logits_of(model, changed_tokens)
    np.testing.assert_array_equal(logits[:, :7], changed_logits[:, :7])
    assert np.abs(logits[:, 7:] - changed_logits[:, 7:]).max() > 1e-4


def test_documents_packed_in_a_row_have_the_logits_of_separate_rows(model: Decoder) -> None:
    first = random_tokens(1, 5, seed=1)
    second = random_tokens(1, 7, seed=2)
    packed = np.concatenate([first, second, np.zeros((1, 4), np.int32)], axis=1)
    positions = np.array([[*range(5), *range(7), 0, 0, 0, 0]])
    segment_ids = np.array([[1] * 5 + [2] * 7 + [0] * 4])
    packed_logits = logits_of(model, packed, positions=positions, segment_ids=segment_ids)
    np.testing.assert_allclose(packed_logits[:, :5], logits_of(model, first), atol=1e-5)
    np.testing.assert_allclose(packed_logits[:, 5:12], logits_of(model, second), atol=1e-5)
    assert np.isfinite(packed_logits).all()


def test_cached_decoding_equals_one_pass_for_prompts_of_unequal_length(model: Decoder) -> None:
    prompts = [random_tokens(1, 6, seed=3), random_tokens(1, 3, seed=4)]
    new_tokens = random_tokens(2, 4, seed=5)
    padded_prompts, segment_ids = pad_left(prompts)
    states = decode_states(model, padded_prompts, segment_ids, new_tokens)
    cached_logits = np.asarray(model.logits(jnp.asarray(states)))
    for number, prompt in enumerate(prompts):
        row = np.concatenate([prompt, new_tokens[number : number + 1]], axis=1)
        expected_logits = logits_of(model, row)[0, prompt.shape[1] - 1 :]
        np.testing.assert_allclose(cached_logits[number], expected_logits, atol=1e-5)


def test_a_fresh_model_predicts_all_tokens_with_nearly_equal_probability() -> None:
    model = fresh_model(decoder_config(vocab=1000, embed=64))
    tokens = np.random.default_rng(0).integers(0, 1000, (8, 32))
    log_probabilities = np.asarray(jax.nn.log_softmax(logits_of(model, tokens)))
    targets = np.roll(tokens, -1, axis=1)
    loss = -np.take_along_axis(log_probabilities, targets[..., None], axis=-1).mean()
    assert loss == pytest.approx(math.log(1000), rel=0.02)


def loss_and_gradients(**settings: object) -> tuple[Float[jax.Array, ""], PyTree]:
    config = ModelConfig.model_validate({**SIZES, **settings})
    spec = model_spec(config)

    def loss_fn(params: PyTree) -> Float[jax.Array, ""]:
        model = spec.model(params)
        return jnp.square(model.logits(model(random_tokens(2, 8)))).mean()

    return jax.jit(jax.value_and_grad(loss_fn))(init_params(config, jax.random.key(0)))


@pytest.fixture(scope="module")
def plain_gradients() -> PyTree:
    return loss_and_gradients()


@pytest.mark.parametrize(
    "settings", [{"unroll": 0}, *({"remat": policy} for policy in get_args(RematPolicy) if policy != "auto")]
)
def test_unrolling_and_remat_change_neither_values_nor_gradients(
    settings: dict[str, object], plain_gradients: PyTree
) -> None:
    assert_close = partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-6)
    jax.tree.map(assert_close, loss_and_gradients(**settings), plain_gradients)


@pytest.mark.parametrize(("attention_scale", "divisor"), [(None, 2.0), (1.0, 1.0)], ids=["by the width", "T5"])
def test_attention_equals_a_loop_over_heads_and_queries(attention_scale: float | None, divisor: float) -> None:
    """The root of a head's width 4 divides the scores (Vaswani et al. 2017, §3.2.1); T5's code divides by nothing."""
    length = 6
    heads = 4
    config = decoder_config(layers=1, kv_heads=2, positions="none", bias=True, attention_scale=attention_scale)
    layer = fresh_model(config).decoder.stack.layers["0"].attention
    weights = {}
    for name in ("query", "key", "value", "out"):
        weights[name] = np.asarray(getattr(layer, name).weight[...])[0]

    x = np.random.default_rng(0).normal(size=(length, 16)).astype(np.float32)
    expected = np.zeros_like(x)
    for position in range(length):
        for head in range(heads):
            kv_head = head // 2
            query = x[position] @ weights["query"][:, head]
            keys = x[: position + 1] @ weights["key"][:, kv_head]
            values = x[: position + 1] @ weights["value"][:, kv_head]
            scores = np.exp(keys @ query / divisor)
            expected[position] += (scores / scores.sum()) @ values @ weights["out"][head]

    attention = Attention(config, config.pattern[0].attention, rngs=nnx.Rngs(params=0))
    for name, weight in weights.items():
        getattr(attention, name).weight[...] = jnp.asarray(weight)
    positions = TokenPositions(jnp.arange(length), jnp.ones((1, length), jnp.int32))
    context = AttentionContext(positions, positions, causal=True)
    states = jnp.asarray(x)[None]
    output = attention(states, attention.keys_values(states, context), context)
    np.testing.assert_allclose(output[0], expected, atol=1e-5)


def test_rotary_scores_depend_on_the_distance_only() -> None:
    rotary = fresh_model(decoder_config(positions="rotary")).decoder.stack.positions
    query, key = np.random.default_rng(0).normal(size=(2, 1, 1, 1, 4)).astype(np.float32)

    def score(query_position: int, key_position: int) -> float:
        rotated_query = np.asarray(rotary.rotate(query, jnp.array([[query_position]])))
        rotated_key = np.asarray(rotary.rotate(key, jnp.array([[key_position]])))
        return float(rotated_query.ravel() @ rotated_key.ravel())

    assert score(3, 8) == pytest.approx(score(20, 25), abs=1e-5)
    assert score(3, 8) != pytest.approx(score(3, 9), abs=1e-3)


def test_dropout_is_the_identity_without_a_key_and_preserves_the_mean_with_one() -> None:
    x = jnp.ones((200, 200))
    assert dropout(x, 0.3, None) is x
    dropped = np.asarray(dropout(x, 0.3, jax.random.key(0)))
    assert dropped.mean() == pytest.approx(1.0, abs=0.02)
    assert (dropped == 0).mean() == pytest.approx(0.3, abs=0.02)


def test_initial_weights_have_the_standard_deviations_of_gpt2() -> None:
    """Radford et al. 2019, §2.3: 0.02, and residual projections divided by the root of their number, 2·layers."""
    model = fresh_model(decoder_config(layers=8, embed=64, heads=4, vocab=500))
    block = model.decoder.stack.layers["0"]
    residual_std = 0.02 / math.sqrt(2 * 8)
    assert isinstance(model.tokens, Embed)
    expected_stds = {
        "embedding": (model.tokens.weight, 0.02),
        "query": (block.attention.query.weight, 0.02),
        "up": (block.feedforward.up.weight, 0.02),
        "out": (block.attention.out.weight, residual_std),
        "down": (block.feedforward.down.weight, residual_std),
    }
    for name, (weight, expected_std) in expected_stds.items():
        assert float(weight[...].std()) == pytest.approx(expected_std, rel=0.03), name
    assert not block.attention.out.bias[...].any()
    assert (block.attention_norm.scale[...] == 1).all()


def test_initial_weights_have_the_standard_deviations_of_t5() -> None:
    """`_init_weights` of Transformers' T5: 1/sqrt(inputs), and for queries 1/sqrt(inputs · width of a head).

    Projections into the residual stream have a quarter of it here.
    """
    init = {"fan_in": {"embedding_deviation": 1.0, "residual_scale": 0.25}}
    sizes = {"layers": 4, "embed": 64, "heads": 4, "head_dim": 32, "mlp": 256, "vocab": 500}
    model = fresh_model(decoder_config(**sizes, attention_scale=1.0, init=init))
    block = model.decoder.stack.layers["0"]
    assert isinstance(model.tokens, Embed)
    expected_stds = {
        "embedding": (model.tokens.weight, 1.0),
        "query": (block.attention.query.weight, (64 * 32) ** -0.5),
        "key": (block.attention.key.weight, 64**-0.5),
        "value": (block.attention.value.weight, 64**-0.5),
        "out": (block.attention.out.weight, 0.25 * (4 * 32) ** -0.5),
        "up": (block.feedforward.up.weight, 64**-0.5),
        "down": (block.feedforward.down.weight, 0.25 * 256**-0.5),
    }
    for name, (weight, expected_std) in expected_stds.items():
        assert float(weight[...].std()) == pytest.approx(expected_std, rel=0.03), name
