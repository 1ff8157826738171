"""Encoders and encoder-decoders, by properties that hold whatever their weights."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jaxtyping import Bool, Float, Int

from t5x_lite.models.config import ModelConfig
from t5x_lite.models.positions.relative import relative_bucket
from t5x_lite.models.spec import model_spec
from t5x_lite.models.transformer import EncoderDecoder
from tests.models.decoding import decode_states, pad_left
from tests.models.weights import random_model

VOCAB = 50
SIZES = {"layers": 2, "embed": 16, "heads": 4, "vocab": VOCAB}
T5 = {"family": "encoder_decoder", "positions": {"relative": {"buckets": 8, "distance": 10}}, "norm": "rmsnorm"}
ENCODER_DECODERS = {
    "T5": T5,
    "umT5": {**T5, "positions": {"relative": {"buckets": 8, "distance": 10, "shared": False}}, "decoder_layers": 1},
    "shared stacks": {**T5, "shared_stacks": True},
    "original": {"family": "encoder_decoder", "positions": "sinusoidal", "norm_place": "post", "scale_embedding": True},
    "learned": {"family": "encoder_decoder", "positions": {"learned": {"length": 32}}},
}


def build_model(**settings: object) -> Any:
    return random_model(ModelConfig.model_validate({**SIZES, **settings}))


def random_tokens(*shape: int, seed: int = 0) -> Int[np.ndarray, "b l"]:
    """Return tokens without 0, which is padding."""
    return np.random.default_rng(seed).integers(1, VOCAB, shape).astype(np.int32)


def change_token(tokens: Int[np.ndarray, "1 l"], position: int) -> Int[np.ndarray, "1 l"]:
    """Return the tokens with another one at a position."""
    changed = tokens.copy()
    changed[0, position] = changed[0, position] % (VOCAB - 1) + 1
    return changed


def changed_positions(
    states: Float[np.ndarray, "1 l d"], other_states: Float[np.ndarray, "1 l d"]
) -> Bool[np.ndarray, "l"]:
    return np.abs(np.asarray(states) - np.asarray(other_states))[0].max(axis=-1) > 1e-6


@pytest.fixture(params=ENCODER_DECODERS)
def encoder_decoder(request: pytest.FixtureRequest) -> EncoderDecoder:
    return build_model(**ENCODER_DECODERS[request.param])


def test_targets_depend_on_all_inputs_and_on_no_later_target(encoder_decoder: EncoderDecoder) -> None:
    compute_states = jax.jit(encoder_decoder)
    inputs = random_tokens(1, 9)
    targets = random_tokens(1, 6, seed=1)
    states = np.asarray(compute_states(inputs, targets))
    states_of_changed_target = np.asarray(compute_states(inputs, change_token(targets, 4)))
    np.testing.assert_allclose(states[:, :4], states_of_changed_target[:, :4], atol=1e-6)
    assert np.abs(states - states_of_changed_target)[:, 4:].max() > 1e-4
    for position in (0, 8):
        states_of_changed_input = np.asarray(compute_states(change_token(inputs, position), targets))
        assert (np.abs(states - states_of_changed_input).max(axis=-1) > 1e-5).all()


@dataclass(frozen=True)
class PackedRow:
    """Texts one after the other in one row, which ends in padding."""

    tokens: Int[np.ndarray, "1 l"]
    positions: Int[np.ndarray, "1 l"]
    segment_ids: Int[np.ndarray, "1 l"]


def pack(texts: Sequence[Int[np.ndarray, "1 _"]], padding: int = 2) -> PackedRow:
    zeros = np.zeros((1, padding), np.int32)
    positions = [np.arange(text.shape[1])[None] for text in texts]
    segment_ids = [np.full_like(text, number) for number, text in enumerate(texts, start=1)]
    return PackedRow(
        tokens=np.concatenate([*texts, zeros], axis=1),
        positions=np.concatenate([*positions, zeros], axis=1),
        segment_ids=np.concatenate([*segment_ids, zeros], axis=1),
    )


def test_pairs_packed_in_a_row_have_the_states_of_separate_rows(encoder_decoder: EncoderDecoder) -> None:
    """With segments on both sides, cross-attention stays inside its pair."""
    compute_states = jax.jit(encoder_decoder)
    inputs = [random_tokens(1, length, seed=length) for length in (5, 7)]
    targets = [random_tokens(1, length, seed=length) for length in (4, 3)]
    input_row = pack(inputs)
    target_row = pack(targets)
    packed_states = compute_states(
        input_row.tokens,
        target_row.tokens,
        positions=input_row.positions,
        segment_ids=input_row.segment_ids,
        decoder_positions=target_row.positions,
        decoder_segment_ids=target_row.segment_ids,
    )
    for number, (text, target) in enumerate(zip(inputs, targets, strict=True), start=1):
        is_in_segment = target_row.segment_ids[0] == number
        separate_states = compute_states(text, target)
        np.testing.assert_allclose(np.asarray(packed_states)[:, is_in_segment], separate_states, atol=2e-5)


def test_cached_decoding_equals_one_pass_for_inputs_of_unequal_length(encoder_decoder: EncoderDecoder) -> None:
    inputs = [random_tokens(1, 6, seed=3), random_tokens(1, 4, seed=4)]
    targets = random_tokens(2, 5, seed=5)
    padded_inputs, segment_ids = pad_left(inputs)
    cached_states = decode_states(encoder_decoder, padded_inputs, segment_ids, targets)
    start_token = np.zeros((1, 1), np.int32)
    for number, text in enumerate(inputs):
        decoder_tokens = np.concatenate([start_token, targets[number : number + 1]], axis=1)
        expected_states = np.asarray(encoder_decoder(text, decoder_tokens))
        np.testing.assert_allclose(cached_states[number], expected_states[0], atol=2e-5)


def test_shared_stacks_have_the_parameters_of_one_stack() -> None:
    shared = model_spec(ModelConfig.model_validate({**SIZES, **T5, "shared_stacks": True}))
    separate = model_spec(ModelConfig.model_validate({**SIZES, **T5, "shared_stacks": False}))
    table = VOCAB * 16
    cross_attention = 2 * (4 * 16 * 16 + 4 * 16 + 16)  # matrices, their biases, the norm before them
    both_stacks = separate.parameters - table - cross_attention
    assert shared.parameters == table + cross_attention + both_stacks // 2


def test_a_token_of_an_encoder_attends_to_all_of_its_segment_and_to_no_other() -> None:
    compute_states = jax.jit(build_model(family="encoder", token_types=2))
    tokens = random_tokens(1, 10)
    segment_ids = np.array([[1] * 6 + [2] * 3 + [0]])
    states = compute_states(tokens, segment_ids=segment_ids)
    for position in (0, 5, 7):
        changed_states = compute_states(change_token(tokens, position), segment_ids=segment_ids)
        is_in_segment = segment_ids[0] == segment_ids[0, position]
        np.testing.assert_array_equal(changed_positions(states, changed_states)[:9], is_in_segment[:9])


def test_token_types_and_positions_change_the_states_of_equal_tokens() -> None:
    compute_states = jax.jit(build_model(family="encoder", token_types=2))
    tokens = np.full((1, 6), 7, np.int32)
    states = np.asarray(compute_states(tokens, token_types=None))
    typed_states = np.asarray(compute_states(tokens, token_types=np.array([[0, 0, 0, 1, 1, 1]])))
    assert np.abs(states - typed_states).max() > 1e-3
    assert np.abs(states[0, 0] - states[0, 1]).max() > 1e-3


def test_a_prefix_is_attended_to_in_both_directions_and_later_tokens_are_causal() -> None:
    """Raffel et al. 2020, figure 4."""
    model = build_model(prefix_lm=True, positions="rotary")
    tokens = random_tokens(1, 8)
    prefix = np.array([[1] * 4 + [0] * 4])
    compute_states = jax.jit(model)
    states = compute_states(tokens, prefix=prefix)
    for position, dependent_positions in ((3, range(8)), (5, range(5, 8))):
        changed_states = compute_states(change_token(tokens, position), prefix=prefix)
        is_changed = changed_positions(states, changed_states)
        assert np.flatnonzero(is_changed).tolist() == list(dependent_positions)


def test_the_prompt_of_a_prefix_model_is_its_prefix() -> None:
    model = build_model(prefix_lm=True, positions="rotary")
    prompt = random_tokens(1, 5)
    new_tokens = random_tokens(1, 3, seed=1)
    cached_states = decode_states(model, prompt, np.ones_like(prompt), new_tokens)
    row = np.concatenate([prompt, new_tokens], axis=1)
    states = model(row, prefix=np.array([[1] * 5 + [0] * 3]))
    np.testing.assert_allclose(cached_states, np.asarray(states)[:, 4:], atol=1e-5)


def test_electra_replaces_the_chosen_tokens_by_draws_from_the_softmax_of_its_generator() -> None:
    generator = {"layers": 1, "embed": 8, "heads": 2}
    model = build_model(family="electra", outputs=["detection"], embedding=8, generator=generator)
    assert model.generator.tokens.weight is model.discriminator.tokens.weight
    tokens = jnp.asarray(random_tokens(2, 6))
    target_positions = np.array([[1, 4, 0], [2, 0, 0]])
    loss_weights = np.array([[1, 1, 0], [1, 0, 0]], np.float32)
    states = jnp.take_along_axis(model.generator(tokens), jnp.asarray(target_positions)[..., None], axis=1)
    probabilities = jax.nn.softmax(model.generator.logits(states))[0, 0]

    @jax.jit
    def replace_tokens(key: jax.Array) -> Int[jax.Array, "b l"]:
        return model.replace_tokens(tokens, target_positions, loss_weights, states, key)

    draws = 500
    counts = np.zeros(VOCAB)
    for seed in range(draws):
        replaced = np.asarray(replace_tokens(jax.random.key(seed)))
        changed = {tuple(position) for position in np.argwhere(replaced != np.asarray(tokens))}
        assert changed <= {(0, 1), (0, 4), (1, 2)}
        counts[replaced[0, 1]] += 1
    np.testing.assert_allclose(counts / draws, probabilities, atol=0.08)


def test_relative_buckets_are_those_of_t5(real_data: Path) -> None:
    """The table that Transformers computes, for offsets of -200 to 200, both directions."""
    _, *rows = (real_data / "t5_relative_buckets.tsv").read_text().splitlines()
    table = np.array([row.split("\t") for row in rows], int)
    offsets = jnp.asarray(table[:, :1])
    for column, bidirectional in ((1, True), (2, False)):
        buckets = relative_bucket(offsets, 32, 128, bidirectional=bidirectional)
        np.testing.assert_array_equal(buckets[:, 0], table[:, column])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"prefix_lm": True, "family": "encoder"}, "prefix_lm is for a decoder"),
        ({"token_types": 2}, "token_types is for an encoder"),
        ({"decoder_layers": 2}, "decoder_layers is for encoder_decoder"),
        ({"family": "electra", "outputs": ["detection"]}, "`generator`"),
        ({"outputs": ["tokens", "sentence"]}, "outputs of a decoder"),
        ({"family": "encoder", "embedding": 8}, "output_transform"),
        ({"family": "encoder_decoder", "shared_stacks": True, "decoder_layers": 4}, "equal stacks"),
    ],
)
def test_components_that_do_not_fit_together_are_refused(settings: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ModelConfig.model_validate({**SIZES, **settings})
