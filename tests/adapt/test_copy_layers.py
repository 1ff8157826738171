"""A shallower model whose layers begin as some of those of a deeper one."""

import jax
import numpy as np
import pytest

from t5x_lite.adapt.copy_layers import CopyLayers, evenly_spaced
from t5x_lite.adapt.method import ModelPair
from t5x_lite.errors import UserError
from t5x_lite.models.config import ModelConfig
from t5x_lite.models.spec import init_params
from t5x_lite.trees import flatten_names

SIZES = {"embed": 8, "heads": 2, "vocab": 11, "head_dim": 4}
ENCODER = {**SIZES, "family": "encoder", "token_types": 2, "positions": {"learned": {"length": 8}}}
T5 = {**SIZES, "family": "encoder_decoder", "positions": {"relative": {"buckets": 4}}}


def model(sizes: dict[str, object], **settings: object) -> ModelConfig:
    return ModelConfig.model_validate({**sizes, **settings})


def weights(config: ModelConfig, seed: int = 0) -> dict[str, np.ndarray]:
    """Return weights that all differ, by name."""
    params = jax.eval_shape(lambda: init_params(config, jax.random.key(0)))
    rng = np.random.default_rng(seed)
    return {name: rng.normal(size=shape.shape).astype(np.float32) for name, shape in flatten_names(params).items()}


def copied(method: CopyLayers, old: ModelConfig, new: ModelConfig) -> tuple[dict, dict]:
    """Return the old weights, and the first weights of the new model."""
    old_weights = weights(old)
    fresh = weights(new, seed=1)
    first = method.initial_weights(old_weights, fresh, ModelPair(old, new))
    assert first.keys() == fresh.keys()
    for name, value in fresh.items():
        assert first[name].shape == value.shape, name
    return old_weights, first


@pytest.mark.parametrize(
    ("count", "layers", "expected"),
    [
        # Sanh et al. 2019: `for teacher_idx in [0, 2, 4, 7, 9, 11]` in extract.py and extract_distilbert.py.
        (6, 12, (0, 2, 4, 7, 9, 11)),
        # Shleifer & Rush 2020, LAYERS_TO_COPY in make_student.py.
        (3, 12, (0, 6, 11)),
        (4, 16, (0, 5, 10, 15)),
        (12, 12, tuple(range(12))),
    ],
)
def test_layers_are_spaced_as_in_the_published_students(count: int, layers: int, expected: tuple[int, ...]) -> None:
    assert evenly_spaced(count, layers) == expected


def test_each_layer_is_the_layer_that_the_method_names() -> None:
    old, new = model(ENCODER, layers=12), model(ENCODER, layers=6, token_types=0)
    old_weights, first = copied(CopyLayers(), old, new)
    for name, value in first.items():
        if ".layers." in name:
            np.testing.assert_array_equal(value, old_weights[name][[0, 2, 4, 7, 9, 11]])
        else:
            np.testing.assert_array_equal(value, old_weights[name])
    assert not any("type" in name for name in first)


def test_patterns_of_other_lengths_are_mapped_layer_by_layer() -> None:
    """Four layers in a pattern of two become three layers in a pattern of one."""
    pattern = [{"attention": "dense"}, {"attention": {"local": {"window": 4}}}]
    decoder = {**SIZES, "family": "decoder", "positions": "rotary"}
    old, new = model(decoder, layers=4, pattern=pattern), model(decoder, layers=3)
    old_weights, first = copied(CopyLayers(layers=(3, 0, 1)), old, new)
    name = "decoder.stack.layers.{}.attention.query.weight"
    for layer, (place, repeat) in enumerate([(1, 1), (0, 0), (1, 0)]):
        np.testing.assert_array_equal(first[name.format(0)][layer], old_weights[name.format(place)][repeat])


def test_encoders_and_decoders_have_layers_of_their_own() -> None:
    old, new = model(T5, layers=4, decoder_layers=3), model(T5, layers=2, decoder_layers=1)
    old_weights, first = copied(CopyLayers(layers=(1, 2), decoder_layers=(2,)), old, new)
    encoder = "encoder.stack.layers.0.feedforward.up.weight"
    decoder = "decoder.stack.layers.0.cross_attention.key.weight"
    np.testing.assert_array_equal(first[encoder], old_weights[encoder][[1, 2]])
    np.testing.assert_array_equal(first[decoder], old_weights[decoder][[2]])


@pytest.mark.parametrize(
    ("method", "settings", "message"),
    [
        ({"layers": [0, 1, 2]}, {"layers": 2}, "copy_layers.layers: names 3 layers, and the model has 2"),
        ({"layers": [-1]}, {"layers": 1}, "layers are numbered from 0"),
        ({"decoder_layers": [0]}, {"layers": 1}, "is for an encoder_decoder"),
        ({}, {"layers": 2, "shared_layers": True}, "share their weights; take full"),
    ],
)
def test_settings_that_do_not_fit_the_model_are_refused(
    method: dict[str, object], settings: dict[str, object], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        CopyLayers.model_validate(method).check(model(ENCODER, **settings))


def test_a_run_with_too_few_layers_is_refused() -> None:
    old, new = model(ENCODER, layers=2), model(ENCODER, layers=3)
    with pytest.raises(UserError, match="the other run has 2 layers, too few for 3; name them"):
        copied(CopyLayers(), old, new)
    with pytest.raises(UserError, match="the other run has no layer 5, only 2"):
        copied(CopyLayers(layers=(0, 1, 5)), old, new)
