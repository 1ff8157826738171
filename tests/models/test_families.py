"""Encoders and encoder-decoders, by properties that hold whatever their weights."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from t5x_lite.models.config import ModelConfig
from t5x_lite.models.positions.relative import relative_bucket
from t5x_lite.models.spec import model_spec
from tests.models.weights import random_model

SIZES = {"layers": 2, "embed": 16, "heads": 4, "vocab": 50}
T5 = {"family": "encoder_decoder", "positions": {"relative": {"buckets": 8, "distance": 10}}, "norm": "rmsnorm"}
ENCODER_DECODERS = {
    "T5": T5,
    "umT5": T5 | {"positions": {"relative": {"buckets": 8, "distance": 10, "shared": False}}, "decoder_layers": 1},
    "shared stacks": T5 | {"shared_stacks": True},
    "original": {"family": "encoder_decoder", "positions": "sinusoidal", "norm_place": "post", "scale_embedding": True},
    "learned": {"family": "encoder_decoder", "positions": {"learned": {"length": 32}}},
}


def make(**settings: object) -> object:
    return random_model(ModelConfig.model_validate(SIZES | settings))


def tokens(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(1, 50, shape).astype(np.int32)


@pytest.fixture(params=ENCODER_DECODERS)
def model(request: pytest.FixtureRequest) -> object:
    return make(**ENCODER_DECODERS[request.param])


def test_targets_see_all_inputs_and_no_later_target(model: object) -> None:
    run = jax.jit(model)
    inputs, targets = tokens(1, 9), tokens(1, 6, seed=1)
    before = np.asarray(run(inputs, targets))
    later = targets.copy()
    later[0, 4] += 1
    np.testing.assert_allclose(before[:, :4], np.asarray(run(inputs, later))[:, :4], atol=1e-6)
    assert np.abs(before - np.asarray(run(inputs, later)))[:, 4:].max() > 1e-4
    for place in (0, 8):
        changed = inputs.copy()
        changed[0, place] = changed[0, place] % 49 + 1
        assert (np.abs(before - np.asarray(run(changed, targets))).max(-1) > 1e-5).all()


def test_pairs_packed_in_a_row_get_the_states_that_they_get_apart(model: object) -> None:
    """Segments on both sides: cross-attention stays inside its own."""
    sources, targets = [tokens(1, n, seed=n) for n in (5, 7)], [tokens(1, n, seed=n) for n in (4, 3)]
    row = lambda parts, size: np.concatenate([*parts, np.zeros((1, size), np.int32)], axis=1)  # noqa: E731
    numbered = lambda *sizes: np.array([[n for n, size in enumerate(sizes, 1) for _ in range(size)] + [0, 0]])  # noqa: E731
    places = lambda *sizes: np.array([[i for size in sizes for i in range(size)] + [0, 0]])  # noqa: E731
    together = jax.jit(model)(
        row(sources, 2),
        row(targets, 2),
        positions=places(5, 7),
        segment_ids=numbered(5, 7),
        decoder_positions=places(4, 3),
        decoder_segment_ids=numbered(4, 3),
    )
    start = 0
    for source, target in zip(sources, targets, strict=True):
        alone = jax.jit(model)(source, target)
        stop = start + target.shape[1]
        np.testing.assert_allclose(np.asarray(together)[:, start:stop], alone, atol=2e-5)
        start = stop


def test_cached_decoding_equals_uncached_with_inputs_of_unequal_length(model: object) -> None:
    inputs, targets = [tokens(1, 6, seed=3), tokens(1, 4, seed=4)], tokens(2, 5, seed=5)
    padded, segments = np.zeros((2, 2, 6), np.int32)
    for row, own in enumerate(inputs):
        padded[row, 6 - own.shape[1] :], segments[row, 6 - own.shape[1] :] = own[0], 1
    hidden, cache = model.prefill(jnp.asarray(padded), jnp.asarray(segments), 5)
    steps = [np.asarray(hidden)]
    extend = jax.jit(model.decode_step)
    for column in range(5):
        hidden, cache = extend(targets[:, column : column + 1], np.ones((2, 1), np.int32), cache)
        steps.append(np.asarray(hidden))
    for row, own in enumerate(inputs):
        whole = model(own, np.concatenate([[[0]], targets[row : row + 1]], axis=1))
        np.testing.assert_allclose(np.concatenate(steps, 1)[row], np.asarray(whole)[0], atol=2e-5)


def test_shared_stacks_have_the_parameters_of_one() -> None:
    one, both = (
        model_spec(ModelConfig.model_validate(SIZES | T5 | {"shared_stacks": shared})) for shared in (True, False)
    )
    cross = 2 * (4 * 16 * 16 + 4 * 16 + 16)  # matrices, their biases, the norm before them
    per_stack = both.parameters - 50 * 16 - cross
    assert one.parameters == 50 * 16 + cross + per_stack // 2


def test_every_token_of_an_encoder_sees_its_whole_segment_and_no_other() -> None:
    model = jax.jit(make(family="encoder", token_types=2))
    text, segments = tokens(1, 10), np.array([[1] * 6 + [2] * 3 + [0]])
    before = np.asarray(model(text, segment_ids=segments))
    for place, inside in ((0, range(6)), (5, range(6)), (7, range(6, 9))):
        changed = text.copy()
        changed[0, place] = changed[0, place] % 49 + 1
        moved = np.abs(before - np.asarray(model(changed, segment_ids=segments)))[0].max(-1) > 1e-6
        assert moved[:9].tolist() == [n in inside for n in range(9)]


def test_token_types_and_positions_are_told_apart() -> None:
    model = jax.jit(make(family="encoder", token_types=2))
    same = np.full((1, 6), 7, np.int32)
    plain, typed = (np.asarray(model(same, token_types=types)) for types in (None, np.array([[0, 0, 0, 1, 1, 1]])))
    assert np.abs(plain - typed).max() > 1e-3
    assert np.abs(plain[0, 0] - plain[0, 1]).max() > 1e-3


def test_a_prefix_is_seen_both_ways_and_the_rest_back_only() -> None:
    """Raffel et al. 2020, figure 4."""
    model = make(prefix_lm=True, positions="rotary")
    text, prefix = tokens(1, 8), np.array([[1] * 4 + [0] * 4])
    run = jax.jit(lambda t: model(t, prefix=prefix))
    before = np.asarray(run(text))
    for place, moved in ((3, range(8)), (5, range(5, 8))):
        changed = text.copy()
        changed[0, place] = changed[0, place] % 49 + 1
        difference = np.abs(before - np.asarray(run(changed)))[0].max(-1) > 1e-6
        assert difference.tolist() == [n in moved for n in range(8)]


def test_a_prompt_is_the_prefix_of_a_prefix_model() -> None:
    model = make(prefix_lm=True, positions="rotary")
    prompt, following = tokens(1, 5), tokens(1, 3, seed=1)
    hidden, cache = model.prefill(jnp.asarray(prompt), jnp.ones_like(prompt), 3)
    steps = [np.asarray(hidden)]
    for column in range(3):
        hidden, cache = model.decode_step(following[:, column : column + 1], np.ones((1, 1), np.int32), cache)
        steps.append(np.asarray(hidden))
    whole = model(np.concatenate([prompt, following], 1), prefix=np.array([[1] * 5 + [0] * 3]))
    np.testing.assert_allclose(np.concatenate(steps, 1), np.asarray(whole)[:, 4:], atol=1e-5)


def test_electras_replacements_are_drawn_where_told_from_the_generators_softmax() -> None:
    model = make(family="electra", outputs=["detection"], embedding=8, generator={"layers": 1, "embed": 8, "heads": 2})
    assert model.generator.tokens.weight is model.discriminator.tokens.weight
    text, places = tokens(2, 6), np.array([[1, 4, 0], [2, 0, 0]])
    weights = np.array([[1, 1, 0], [1, 0, 0]], np.float32)
    states = jnp.take_along_axis(model.generator(text), jnp.asarray(places)[..., None], axis=1)
    shares = jax.nn.softmax(model.generator.logits(states))[0, 0]
    draw = jax.jit(lambda key: model.replace_tokens(jnp.asarray(text), places, weights, states, key))
    counts = np.zeros(50)
    for seed in range(500):
        drawn = np.asarray(draw(jax.random.key(seed)))
        changed = {tuple(place) for place in np.argwhere(drawn != text)}
        assert changed <= {(0, 1), (0, 4), (1, 2)}
        counts[drawn[0, 1]] += 1
    np.testing.assert_allclose(counts / 500, shares, atol=0.08)


def test_relative_buckets_are_those_of_t5(real_data: Path) -> None:
    """The table that Transformers computes, for offsets of -200 to 200, both directions."""
    lines = (real_data / "t5_relative_buckets.tsv").read_text().splitlines()
    table = np.array([line.split("\t") for line in lines[1:]], int)
    for column, both_ways in ((1, True), (2, False)):
        found = relative_bucket(jnp.asarray(table[:, :1]), 32, 128, bidirectional=both_ways)
        np.testing.assert_array_equal(found[:, 0], table[:, column])


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"prefix_lm": True, "family": "encoder"}, "prefix_lm is for a decoder"),
        ({"decoder_layers": 2}, "decoder_layers is for encoder_decoder"),
        ({"family": "electra", "outputs": ["detection"]}, "`generator`"),
        ({"outputs": ["tokens", "sentence"]}, "outputs of a decoder"),
        ({"family": "encoder", "embedding": 8}, "output_transform"),
        ({"family": "encoder_decoder", "shared_stacks": True, "decoder_layers": 4}, "equal stacks"),
    ],
)
def test_compositions_that_make_no_sense_are_refused(settings: dict[str, object], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        ModelConfig.model_validate(SIZES | settings)
