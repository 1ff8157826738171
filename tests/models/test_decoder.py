"""The decoder, by properties that hold for any causal language model."""

import math
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from t5x_lite.models.attention.context import AttentionContext, TokenPositions
from t5x_lite.models.attention.layer import Attention
from t5x_lite.models.config import ModelConfig
from t5x_lite.models.layers import dropout
from t5x_lite.models.spec import init_params, model_spec
from tests.models.weights import random_model

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
    "sinusoidal post-LN": {
        "positions": "sinusoidal",
        "norm_place": "post",
        "feedforward": {"mlp": {"activation": "relu"}},
    },
    "alibi, sandwiched": {"positions": "alibi", "norm_place": "sublayer", "query_key_norm": "width", "kv_heads": 2},
    "relative": {"positions": {"relative": {"buckets": 8, "distance": 10}}, "attention_scale": 1.0},
    "a table a layer": {"positions": {"relative": {"buckets": 8, "distance": 10, "shared": False}}},
    "shared layers": {"shared_layers": True, "query_key_value_bias": False},
    "pattern": {"pattern": [{}, {"feedforward": "glu"}], "query_key_norm": "head", "logit_softcap": 30.0},
}


def decoder(**settings: object) -> tuple[ModelConfig, object]:
    settings = {"layers": 4, "embed": 16, "heads": 4, "vocab": 50, "positions": {"learned": {"length": 32}}} | settings
    config = ModelConfig.model_validate(settings)
    return config, model_spec(config).model(jax.jit(lambda key: init_params(config, key))(jax.random.key(0)))


@pytest.fixture(params=VARIANTS)
def model(request: pytest.FixtureRequest) -> object:
    settings = {"layers": 4, "embed": 16, "heads": 4, "vocab": 50, "positions": {"learned": {"length": 32}}}
    return random_model(ModelConfig.model_validate(settings | VARIANTS[request.param]))


def tokens(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 50, shape).astype(np.int32)


@partial(jax.jit, static_argnums=0)
def forward(graph: object, state: object, *arguments: object, **named: object) -> jax.Array:
    model = nnx.merge(graph, state)
    return model.logits(model(*arguments, **named))


def logits(model: object, *arguments: object, **named: object) -> np.ndarray:
    return np.asarray(forward(*nnx.split(model), *arguments, **named))


def test_later_tokens_do_not_move_earlier_logits(model: object) -> None:
    one, other = tokens(1, 12), tokens(1, 12)
    other[0, 7:] = (other[0, 7:] + 1) % 50
    before, after = logits(model, one), logits(model, other)
    np.testing.assert_array_equal(before[:, :7], after[:, :7])
    assert np.abs(before[:, 7:] - after[:, 7:]).max() > 1e-4


def test_documents_of_one_row_get_the_logits_that_they_get_apart(model: object) -> None:
    first, second = tokens(1, 5, seed=1), tokens(1, 7, seed=2)
    packed = np.concatenate([first, second, np.zeros((1, 4), np.int32)], axis=1)
    positions = np.array([[*range(5), *range(7), 0, 0, 0, 0]])
    segments = np.array([[1] * 5 + [2] * 7 + [0] * 4])
    together = logits(model, packed, positions=positions, segment_ids=segments)
    np.testing.assert_allclose(together[:, :5], logits(model, first), atol=1e-5)
    np.testing.assert_allclose(together[:, 5:12], logits(model, second), atol=1e-5)
    assert np.isfinite(together).all()


def test_cached_decoding_equals_uncached_with_prompts_of_unequal_length(model: object) -> None:
    long, short = tokens(1, 6, seed=3), tokens(1, 3, seed=4)
    continued = tokens(2, 4, seed=5)
    padded = np.zeros((2, 6), np.int32)
    padded[0], padded[1, 3:] = long, short
    segments = np.array([[1] * 6, [0] * 3 + [1] * 3])
    extend = jax.jit(model.decode_step)
    hidden, cache = model.prefill(jnp.asarray(padded), jnp.asarray(segments), 4)
    steps = [np.asarray(model.logits(hidden))]
    for column in range(4):
        hidden, cache = extend(continued[:, column : column + 1], np.ones((2, 1), np.int32), cache)
        steps.append(np.asarray(model.logits(hidden)))
    for row, prompt in enumerate([long, short]):
        whole = logits(model, np.concatenate([prompt, continued[row : row + 1]], axis=1))
        cached = np.concatenate([step[row] for step in steps])
        np.testing.assert_allclose(cached, whole[0, prompt.shape[1] - 1 :], atol=1e-5)


def test_a_fresh_model_knows_nothing() -> None:
    _, model = decoder(vocab=1000, embed=64)
    targets = np.random.default_rng(0).integers(0, 1000, (8, 32))
    scores = jax.nn.log_softmax(logits(model, targets))
    loss = -np.take_along_axis(np.asarray(scores), np.roll(targets, -1, 1)[..., None], axis=-1).mean()
    assert loss == pytest.approx(math.log(1000), rel=0.02)


@pytest.mark.parametrize(
    "changes", [{"unroll": 0}, {"remat": "full"}, {"remat": "dots"}, {"remat": "dots_no_batch"}, {"remat": "offload"}]
)
def test_unrolling_and_remat_change_neither_values_nor_gradients(changes: dict[str, object]) -> None:
    inputs = tokens(2, 8)

    def loss_and_gradient(**settings: object) -> tuple[jax.Array, object]:
        config = ModelConfig.model_validate({"layers": 4, "embed": 16, "heads": 4, "vocab": 50} | settings)
        plan, params = model_spec(config), init_params(config, jax.random.key(0))
        loss = lambda p: jnp.square(plan.model(p).logits(plan.model(p)(inputs))).mean()  # noqa: E731
        return jax.jit(jax.value_and_grad(loss))(params)

    expected, found = loss_and_gradient(), loss_and_gradient(**changes)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), expected, found)


def test_attention_equals_a_loop_over_heads_and_queries() -> None:
    config, _ = decoder(layers=1, kv_heads=2, positions="none", bias=True)
    layer = model_spec(config).model(init_params(config, jax.random.key(0))).decoder.stack.layers["0"].attention
    plain = {name: np.asarray(getattr(layer, name).weight[...])[0] for name in ("query", "key", "value", "out")}
    x = np.random.default_rng(0).normal(size=(6, 16)).astype(np.float32)
    expected = np.zeros_like(x)
    for position in range(6):
        for head in range(4):
            q = x[position] @ plain["query"][:, head]
            scores = [q @ (x[m] @ plain["key"][:, head // 2]) / 2 for m in range(position + 1)]
            shares = np.exp(scores) / np.exp(scores).sum()
            mixed = sum(s * (x[m] @ plain["value"][:, head // 2]) for m, s in enumerate(shares))
            expected[position] += mixed @ plain["out"][head]
    own = Attention(config, config.pattern[0].attention, rngs=nnx.Rngs(params=0))
    for name, value in plain.items():
        getattr(own, name).weight[...] = jnp.asarray(value)
    places = TokenPositions(jnp.arange(6), jnp.ones((1, 6), jnp.int32))
    view, states = AttentionContext(places, places, causal=True), jnp.asarray(x)[None]
    found = own(states, own.keys_values(states, view), view)
    np.testing.assert_allclose(found[0], expected, atol=1e-5)


def test_rotary_scores_depend_on_distance_alone() -> None:
    _, model = decoder(positions="rotary")
    x = np.random.default_rng(0).normal(size=(1, 1, 1, 4)).astype(np.float32)
    y = np.random.default_rng(1).normal(size=(1, 1, 1, 4)).astype(np.float32)
    rotate = lambda z, at: np.asarray(model.decoder.stack.positions.rotate(z, jnp.array([[at]])))[0, 0, 0]  # noqa: E731
    assert rotate(x, 3) @ rotate(y, 8) == pytest.approx(rotate(x, 20) @ rotate(y, 25), abs=1e-5)
    assert rotate(x, 3) @ rotate(y, 8) != pytest.approx(rotate(x, 3) @ rotate(y, 9), abs=1e-3)


def test_dropout_is_off_without_a_key_and_keeps_the_mean_with_one() -> None:
    x = jnp.ones((200, 200))
    assert dropout(x, 0.3, None) is x
    dropped = np.asarray(dropout(x, 0.3, jax.random.key(0)))
    assert dropped.mean() == pytest.approx(1.0, abs=0.02)
    assert (dropped == 0).mean() == pytest.approx(0.3, abs=0.02)


def test_gpt2s_initialisation() -> None:
    """Radford et al. 2019, §2.3: 0.02, and residual projections divided by the root of their number, 2·layers."""
    _, model = decoder(layers=8, embed=64, heads=4, vocab=500)
    block = model.decoder.stack.layers["0"]
    deviations = {
        "embedding": model.tokens.weight,
        "query": block.attention.query.weight,
        "up": block.feedforward.up.weight,
        "out": block.attention.out.weight,
        "down": block.feedforward.down.weight,
    }
    for name, weight in deviations.items():
        expected = 0.02 / (4 if name in {"out", "down"} else 1)
        assert float(weight[...].std()) == pytest.approx(expected, rel=0.03), name
    assert not block.attention.out.bias[...].any()
    assert (block.attention_norm.scale[...] == 1).all()
