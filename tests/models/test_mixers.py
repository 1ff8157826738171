"""Sequence mixers other than attention: documents, decoding, and recurrences against their step-by-step definitions."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jaxtyping import Float, Int

from t5x_lite.models.attention.kernels import planned_kernels
from t5x_lite.models.config import ModelConfig
from t5x_lite.models.mixers.gated_deltanet import DeltaRuleInputs, gated_delta_rule
from t5x_lite.models.mixers.linear_recurrence import bounded_sqrt, linear_recurrence
from t5x_lite.models.mixers.mamba2 import StateSpaceInputs, state_space
from tests.models.decoding import decode_states, pad_left
from tests.models.weights import random_model

SIZES = {"layers": 4, "embed": 16, "heads": 2, "vocab": 11, "positions": "rotary"}
MIXERS: dict[str, Any] = {
    "lstm": {"lstm": {"hidden": [12, 20], "projection": 16}},
    "gru": {"gru": {"hidden": [12], "out": True}},
    "rnn": {"rnn": {"activation": "relu"}},
    "rg_lru": {"rg_lru": {"width": 24, "blocks": 3}},
    "mamba2": {"mamba2": {"head_dim": 8, "state": 4, "groups": 2, "chunk": 4}},
    "gated_deltanet": {"gated_deltanet": {"heads": 4, "key_heads": 2, "key_dim": 6, "value_dim": 4, "chunk": 4}},
}
CLASSICAL = ("lstm", "gru", "rnn")


def hybrid(mixer: str, **settings: Any) -> ModelConfig:
    """Return the config of two periods of the mixer and local attention."""
    pattern = [{"mixer": MIXERS[mixer]}, {"attention": {"local": {"window": 5}}}]
    return ModelConfig.model_validate({**SIZES, "pattern": pattern, **settings})


def states_of(model: nnx.Module, tokens: Int[np.ndarray, "b l"], **inputs: Any) -> Float[np.ndarray, "b l d"]:
    """Return the states of the last layer, compiled."""
    graph, weights = nnx.split(model)

    def run(weights: nnx.State, tokens: jax.Array, inputs: dict[str, jax.Array]) -> jax.Array:
        return nnx.merge(graph, weights)(tokens, **inputs)

    return np.asarray(jax.jit(run)(weights, tokens, inputs))


@pytest.mark.parametrize("mixer", MIXERS)
def test_a_packed_row_equals_its_documents_alone(mixer: str) -> None:
    """Documents of a packed row are shorter, equal to and longer than a chunk and than the filters' reach."""
    lengths = (1, 4, 2, 9, 6)
    row = np.random.default_rng(0).integers(0, 11, sum(lengths))
    documents = np.split(row, np.cumsum(lengths)[:-1])
    positions = np.concatenate([np.arange(length) for length in lengths])
    tokens = np.zeros((6, len(row)), int)
    segment_ids = np.zeros_like(tokens)
    tokens[0] = row
    segment_ids[0] = np.repeat(np.arange(1, 6), lengths)
    for number, document in enumerate(documents):
        tokens[number + 1, : len(document)] = document
        segment_ids[number + 1, : len(document)] = 1
    all_positions = np.concatenate([positions[None], np.tile(np.arange(len(row)), (5, 1))])
    states = states_of(random_model(hybrid(mixer)), tokens, positions=all_positions, segment_ids=segment_ids)
    alone = [states[number + 1, :length] for number, length in enumerate(lengths)]
    np.testing.assert_allclose(states[0], np.concatenate(alone), atol=2e-5)


@pytest.mark.parametrize("mixer", MIXERS)
def test_decoding_token_by_token_equals_one_pass(mixer: str) -> None:
    model = random_model(hybrid(mixer))
    rng = np.random.default_rng(1)
    rows = [rng.integers(0, 11, (1, length + 5)) for length in (7, 3)]
    prompts, segment_ids = pad_left([row[:, :-5] for row in rows])
    decoded = decode_states(model, prompts, segment_ids, np.concatenate([row[:, -5:] for row in rows]))
    for number, row in enumerate(rows):
        padded = np.pad(row, [(0, 0), (0, 12 - row.shape[1])])
        expected = states_of(model, padded)[0, row.shape[1] - 6 : row.shape[1]]
        np.testing.assert_allclose(decoded[number], expected, atol=2e-5)


@pytest.mark.parametrize("mixer", CLASSICAL)
def test_a_bidirectional_encoder_reads_each_document_alone_and_both_ways(mixer: str) -> None:
    settings = {"family": "encoder", "positions": "none", "pattern": [{"mixer": {mixer: {"bidirectional": True}}}]}
    model = random_model(ModelConfig.model_validate({**SIZES, **settings}))
    row = np.random.default_rng(2).integers(0, 11, 8)
    changed = row.copy()
    changed[4] = (row[4] + 1) % 11
    first = np.pad(row[:5], (0, 3))
    tokens = np.stack([row, first, changed])
    segment_ids = np.array([[1] * 5 + [2] * 3, [1] * 5 + [0] * 3, [1] * 5 + [2] * 3])
    packed, alone, other = states_of(model, tokens, segment_ids=segment_ids)
    np.testing.assert_allclose(packed[:5], alone[:5], atol=1e-5)
    np.testing.assert_allclose(packed[5:], other[5:], atol=1e-5)
    assert not np.allclose(packed[0], other[0], atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("mixer", ["lstm", "mamba2", "gated_deltanet"])
def test_recomputation_leaves_gradients_as_they_are(mixer: str) -> None:
    tokens = jnp.asarray(np.random.default_rng(3).integers(0, 11, (2, 6)))

    def gradient(policy: str) -> Any:
        model = random_model(hybrid(mixer, remat=policy))

        def loss(vectors: jax.Array) -> jax.Array:
            return jnp.square(model.decoder(vectors, None, None)[0]).sum()

        return jax.jit(jax.grad(loss))(model.tokens(tokens))

    np.testing.assert_allclose(gradient("full"), gradient("none"), rtol=1e-4, atol=1e-4)


def test_a_parallel_linear_recurrence_equals_its_definition() -> None:
    rng = np.random.default_rng(4)
    decay = rng.uniform(0, 1, (2, 7, 3))
    entering = rng.normal(size=(2, 7, 3))
    state = rng.normal(size=(2, 3))
    expected = []
    h = state
    for step in range(7):
        h = decay[:, step] * h + entering[:, step]
        expected.append(h)
    h = linear_recurrence(jnp.asarray(decay), jnp.asarray(entering), jnp.asarray(state))
    np.testing.assert_allclose(h, np.stack(expected, axis=1), rtol=1e-5)


@pytest.mark.parametrize("chunk", [1, 4, 16])
def test_a_state_space_in_chunks_equals_its_definition(chunk: int) -> None:
    """Dao & Gu 2024, equation 2, with two heads for each B and C, and a state that is emptied between documents."""
    rng = np.random.default_rng(5)
    batch, length, heads, groups = 2, 11, 4, 2
    value = rng.normal(size=(batch, length, heads, 3))
    log_decay = -rng.uniform(0, 2, (batch, length, heads))
    key = rng.normal(size=(batch, length, groups, 5))
    query = rng.normal(size=(batch, length, groups, 5))
    continues = rng.uniform(size=(batch, length)) < 0.7
    state = rng.normal(size=(batch, heads, 3, 5))
    expected = np.zeros(value.shape)
    final = state.copy()
    for row in range(batch):
        for step in range(length):
            for head in range(heads):
                group = head // (heads // groups)
                decay = np.exp(log_decay[row, step, head]) if continues[row, step] else 0.0
                final[row, head] *= decay
                final[row, head] += np.outer(value[row, step, head], key[row, step, group])
                expected[row, step, head] = final[row, head] @ query[row, step, group]
    arrays = [jnp.asarray(array) for array in (value, log_decay, key, query, continues)]
    y, new_state = state_space(StateSpaceInputs(*arrays), jnp.asarray(state), chunk)
    np.testing.assert_allclose(y, expected, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(new_state, final, rtol=1e-4, atol=1e-4)


def delta_rule_by_definition(
    query: np.ndarray,
    key: np.ndarray,
    value: np.ndarray,
    log_decay: np.ndarray,
    strength: np.ndarray,
    continues: np.ndarray,
    state: np.ndarray,
) -> tuple[np.ndarray, np.ndarray]:
    """Yang et al. 2025, equation 10, token by token; the state is emptied between documents."""
    state = state.copy()
    y = np.zeros(value.shape)
    heads_of_a_key = value.shape[2] // key.shape[2]
    for row, step, head in np.ndindex(value.shape[:3]):
        k = key[row, step, head // heads_of_a_key]
        beta = strength[row, step, head]
        alpha = np.exp(log_decay[row, step, head]) if continues[row, step] else 0.0
        erased = np.eye(len(k)) - beta * np.outer(k, k)
        state[row, head] = alpha * state[row, head] @ erased + beta * np.outer(value[row, step, head], k)
        y[row, step, head] = state[row, head] @ query[row, step, head // heads_of_a_key]
    return y, state


@pytest.mark.parametrize(
    "chunk", [pytest.param(1, marks=pytest.mark.slow), 4, pytest.param(16, marks=pytest.mark.slow)]
)
def test_the_gated_delta_rule_in_chunks_equals_its_definition_with_its_gradients(chunk: int) -> None:
    """Two heads of values for each key; derivatives are differences of the definition in float64."""
    rng = np.random.default_rng(7)
    batch, length, heads, key_heads = 2, 11, 4, 2
    query, key = rng.normal(size=(2, batch, length, key_heads, 5))
    arrays = {
        "query": query,
        "key": key / np.linalg.norm(key, axis=-1, keepdims=True),
        "value": rng.normal(size=(batch, length, heads, 3)),
        "log_decay": -rng.uniform(0, 2, (batch, length, heads)),
        "strength": rng.uniform(size=(batch, length, heads)),
        "state": rng.normal(size=(batch, heads, 3, 5)),
    }
    continues = rng.uniform(size=(batch, length)) < 0.7
    expected, final = delta_rule_by_definition(continues=continues, **arrays)
    factors = rng.normal(size=expected.shape)
    factors_of_state = rng.normal(size=final.shape)

    def loss(arrays: dict[str, jax.Array]) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
        state = arrays["state"]
        inputs = {name: array for name, array in arrays.items() if name != "state"}
        y, new_state = gated_delta_rule(DeltaRuleInputs(continues=jnp.asarray(continues), **inputs), state, chunk)
        return (y * factors).sum() + (new_state * factors_of_state).sum(), (y, new_state)

    on_device = {name: jnp.asarray(array) for name, array in arrays.items()}
    gradients, (y, new_state) = jax.jit(jax.grad(loss, has_aux=True))(on_device)
    np.testing.assert_allclose(y, expected, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(new_state, final, rtol=1e-5, atol=1e-5)
    for name, array in arrays.items():
        direction = rng.normal(size=array.shape)
        losses = []
        for step in (-1e-5, 1e-5):
            moved = {**arrays, name: array + step * direction}
            y, new_state = delta_rule_by_definition(continues=continues, **moved)
            losses.append((y * factors).sum() + (new_state * factors_of_state).sum())
        derivative = (losses[1] - losses[0]) / 2e-5
        assert float((np.asarray(gradients[name]) * direction).sum()) == pytest.approx(derivative, rel=1e-4), name


def test_equal_keys_in_a_chunk_overwrite_each_other() -> None:
    """With full strength and no decay, the state returns the last value of a key, however often it was written."""
    length = 64
    key = np.zeros((1, length, 1, 4), np.float32)
    key[..., 0] = 1
    value = np.random.default_rng(8).normal(size=(1, length, 1, 2)).astype(np.float32)
    ones = jnp.ones((1, length, 1))
    inputs = DeltaRuleInputs(jnp.asarray(key), jnp.asarray(key), jnp.asarray(value), 0 * ones, ones, ones[..., 0] > 0)
    y, _ = jax.jit(lambda state: gated_delta_rule(inputs, state, length))(jnp.zeros((1, 1, 2, 4)))
    np.testing.assert_allclose(y, value, atol=1e-5)


def test_dropped_connections_and_outputs_are_the_same_at_every_token() -> None:
    """Merity et al. 2018, §2 and §4.1: with equal inputs, masks that changed from token to token would be seen."""
    mixer = {"rnn": {"hidden": [16, 16], "weight_dropout": 0.5, "layer_dropout": 0.5, "activation": "relu"}}
    settings = {"layers": 1, "positions": "none", "norm": "none", "feedforward": "none", "residual": False}
    model = random_model(ModelConfig.model_validate({**SIZES, **settings, "pattern": [{"mixer": mixer}]}), std=0.05)
    tokens = np.full((1, 12), 3)
    states = states_of(model, tokens, key=jax.random.key(0))
    # The recurrence is a contraction, so that with constant masks it comes to rest.
    np.testing.assert_allclose(states[0, -1], states[0, -2], atol=1e-6)
    assert not np.allclose(states, states_of(model, tokens), atol=1e-4)
    assert not np.allclose(states, states_of(model, tokens, key=jax.random.key(1)), atol=1e-4)


def test_dropped_words_are_dropped_wherever_they_are() -> None:
    """Merity et al. 2018, §4.3: a row of the table is zero for all its occurrences, the others are scaled."""
    config = ModelConfig.model_validate({**SIZES, "vocab": 64, "embedding_dropout": 0.25})
    table = random_model(config).tokens
    tokens = np.tile(np.arange(64), (2, 2))
    vectors = np.asarray(table(jnp.asarray(tokens), jax.random.key(3)))
    factors = vectors[..., 0] / np.asarray(table(jnp.asarray(tokens)))[..., 0]
    np.testing.assert_allclose(factors, np.tile(factors[:1, :64], (2, 2)), rtol=1e-5)
    assert {round(float(factor), 4) for factor in factors[0]} == {0.0, round(1 / 0.75, 4)}
    assert 4 < np.sum(factors[0, :64] == 0) < 32


def test_variational_dropout_zeroes_the_same_channels_at_every_token() -> None:
    settings = {"layers": 1, "positions": "none", "norm": "none", "feedforward": "none", "residual": False}
    mixer = {"rnn": {"activation": "sigmoid"}}
    config = {**SIZES, **settings, "dropout": 0.5, "variational_dropout": True, "pattern": [{"mixer": mixer}]}
    model = random_model(ModelConfig.model_validate(config))
    tokens = np.random.default_rng(6).integers(0, 11, (8, 5))
    is_zero = states_of(model, tokens, key=jax.random.key(0)) == 0
    assert (is_zero == is_zero[:, :1]).all()
    assert 0.25 < is_zero.mean() < 0.75
    assert (is_zero[0] != is_zero[1]).any()


def test_layers_without_residual_norm_and_feedforward_are_their_mixers_alone() -> None:
    settings = {"layers": 1, "positions": "none", "norm": "none", "feedforward": "none", "residual": False}
    config = ModelConfig.model_validate({**SIZES, **settings, "pattern": [{"mixer": "rnn"}]})
    model = random_model(config)
    layer = model.decoder.stack.layers["0"].mixer.forward_0
    tokens = np.array([3, 7, 1])
    vectors = np.asarray(model.tokens.weight[...])[tokens]
    expected = []
    h = np.zeros(16)
    for vector in vectors:
        from_input = vector @ layer.input.weight[...][0, :, 0] + layer.input.bias[...][0, 0]
        h = np.tanh(from_input + h @ layer.hidden[...][0, :, 0])
        expected.append(h)
    np.testing.assert_allclose(states_of(model, tokens[None])[0], np.stack(expected), atol=1e-6)


def test_separate_directions_see_one_side_of_each_token() -> None:
    """Of the states of a token the first half depends on the tokens before it, the second on those after it."""
    mixer = {"lstm": {"hidden": [12, 10], "projection": 8, "bidirectional": True, "separate_directions": True}}
    settings = {"family": "encoder", "positions": "none", "norm": "none", "feedforward": "none"}
    model = random_model(ModelConfig.model_validate({**SIZES, **settings, "pattern": [{"mixer": mixer}]}))
    row = np.random.default_rng(7).integers(0, 11, 9)
    vectors = np.asarray(model.tokens(jnp.asarray(row[None])))
    changed = vectors.copy()
    changed[0, 4] += 1

    def states(x: Float[np.ndarray, "b l d"]) -> Float[np.ndarray, "l d"]:
        return np.asarray(model.encoder(jnp.asarray(x), None, None)[0])[0]

    is_moved = np.abs(states(vectors) - states(changed)) > 1e-7
    np.testing.assert_array_equal(is_moved[:, :8].any(1), np.arange(9) >= 4)
    np.testing.assert_array_equal(is_moved[:, 8:].any(1), np.arange(9) <= 4)


def test_cells_and_projections_are_cut_off_as_by_definition() -> None:
    """One LSTM cell after the other in NumPy, with gates input, forget, candidate and output."""
    clips = {"cell_clip": 0.3, "projection_clip": 0.2}
    settings = {"layers": 1, "positions": "none", "norm": "none", "feedforward": "none", "residual": False}
    mixer = {"lstm": {"hidden": [12], "projection": 16, **clips}}
    model = random_model(ModelConfig.model_validate({**SIZES, **settings, "pattern": [{"mixer": mixer}]}), std=1.0)
    layer = model.decoder.stack.layers["0"].mixer.forward_0
    weights = [np.asarray(array[...])[0] for array in (layer.input.weight, layer.input.bias, layer.hidden)]
    matrix, bias, hidden = weights
    projection = np.asarray(layer.projection.weight[...])[0]
    tokens = np.array([3, 7, 1, 4, 4])
    h = np.zeros(16)
    c = np.zeros(12)
    expected = []
    for vector in np.asarray(model.tokens.weight[...])[tokens]:
        total = np.einsum("d,dgc->gc", vector, matrix) + bias + np.einsum("o,ogc->gc", h, hidden)
        gate_in, forget, gate_out = 1 / (1 + np.exp(-total[[0, 1, 3]]))
        c = np.clip(forget * c + gate_in * np.tanh(total[2]), -0.3, 0.3)
        h = np.clip((gate_out * np.tanh(c)) @ projection, -0.2, 0.2)
        expected.append(h)
    assert np.mean(np.abs(expected) == 0.2) > 0.1
    np.testing.assert_allclose(states_of(model, tokens[None])[0], np.stack(expected), atol=1e-5)


def test_a_layer_without_residual_connection_does_not_add_its_input() -> None:
    """Peters et al. 2018: the second of two layers alone adds its input."""
    settings = {"layers": 2, "positions": "none", "norm": "none", "feedforward": "none"}
    pattern = [{"mixer": "rnn", "residual": False}, {"mixer": "rnn"}]
    model = random_model(ModelConfig.model_validate({**SIZES, **settings, "pattern": pattern}))
    x = model.tokens(jnp.array([[3, 7, 1]]))
    outputs = []
    for number in ("0", "1"):
        graph, weights = nnx.split(model.decoder.stack.layers[number].mixer)
        mixer = nnx.merge(graph, jax.tree.map(lambda weight: weight[0], weights))
        y, _ = mixer(x, jnp.ones((1, 3), jnp.int32))
        x = y + x if number == "1" else y
        outputs.append(x)
    np.testing.assert_allclose(states_of(model, np.array([[3, 7, 1]])), outputs[-1], atol=1e-6)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"pattern": [{"mixer": {"lstm": {"hidden": [8]}}}]},
            "8 wide, model.embed is 16; make them equal or out: true",
        ),
        ({"pattern": [{"mixer": {"lstm": {"bidirectional": True}}}]}, "bidirectional is for encoders"),
        (
            {"family": "encoder_decoder", "decoder_mixer": {"lstm": {"bidirectional": True}}},
            "the decoder of an encoder_decoder needs a decoder_mixer",
        ),
        ({"decoder_mixer": "lstm"}, "decoder_mixer is for an encoder_decoder whose stacks are not shared"),
        (
            {"family": "encoder_decoder", "decoder_mixer": "lstm", "decoder_attention": ["strided"]},
            "decoder_attention is for layers of attention",
        ),
        ({"family": "encoder_decoder", "decoder_mixer": "lstm", "mup": {"embed": 8}}, "mup is for layers of attention"),
        ({"token_copies": 2, "embedding": 8, "embedding_projection": "tokens"}, "token_copies is for embedding_projec"),
        ({"pattern": [{"mixer": "lstm", "attention": "strided"}]}, "attention is for mixer: attention"),
        ({"pattern": [{"mixer": {"rg_lru": {"blocks": 3}}}]}, "width 16 is not a multiple of its 3 blocks"),
        ({"pattern": [{"mixer": {"mamba2": {"head_dim": 24}}}]}, "not a multiple of head_dim 24"),
        ({"pattern": [{"mixer": {"mamba2": {"head_dim": 8, "groups": 3}}}]}, "4 heads are not a multiple of 3 groups"),
        (
            {"pattern": [{"mixer": {"gated_deltanet": {"heads": 4, "key_heads": 3}}}]},
            "not a multiple of 3 heads of keys",
        ),
        ({"pattern": [{"mixer": {"rnn": {"hidden": [8, 16], "input_matrix": False}}}]}, "as many cells as the input"),
        ({"pattern": [{"mixer": "rnn"}], "prefix_lm": True}, "prefix_lm is for layers of attention"),
        ({"pattern": [{"mixer": "rnn"}], "mup": {"embed": 8}}, "mup is for layers of attention"),
        ({"residual": False, "norm_place": "post"}, "residual: false is for norm_place: pre, not post"),
        ({"pattern": [{"residual": False}], "norm_place": "post"}, "residual: false of a layer is for norm_place: pre"),
        ({"pattern": [{"mixer": {"lstm": {"separate_directions": True}}}]}, "separate_directions is for bidirectional"),
        ({"pattern": [{"mixer": {"lstm": {"projection_clip": 3.0}}}]}, "projection_clip is for a `projection`"),
    ],
)
def test_combinations_that_do_not_work_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ModelConfig.model_validate({**SIZES, **settings})


def test_the_root_of_what_enters_a_recurrence_is_exact_and_its_derivative_is_bounded() -> None:
    """RecurrentGemma's code: 1 / sqrt(max(4x, 1e-6)) is the derivative."""
    for x, derivative in ((0.0, 1000.0), (1e-8, 1000.0), (1e-4, 50.0), (0.25, 1.0)):
        assert float(bounded_sqrt(jnp.float32(x))) == pytest.approx(x**0.5)
        assert float(jax.grad(bounded_sqrt)(jnp.float32(x))) == pytest.approx(derivative)


def test_attention_of_a_decoder_alone_is_planned() -> None:
    """The kernel that a config asks for must be able to compute it."""
    encoder = [{"mixer": {"lstm": {"bidirectional": True}}}]
    settings = {**SIZES, "family": "encoder_decoder", "pattern": encoder, "decoder_mixer": "attention"}
    model = ModelConfig.model_validate({**settings, "positions": "relative"})
    assert list(planned_kernels(model, 64, "tpu", targets=64)) == ["dense", "cross-attention"]
    with pytest.raises(ValueError, match=r"model\.kernel=splash cannot compute this attention"):
        planned_kernels(model.model_copy(update={"kernel": "splash"}), 64, "tpu", targets=64)
