"""Patterns of layers: any period, in every family."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from t5x_lite.models.config import ModelConfig
from t5x_lite.models.experts.config import MoE
from t5x_lite.models.feedforward.config import GLU, MLP
from t5x_lite.models.spec import model_spec
from tests.models.weights import random_model

SIZES = {"layers": 6, "embed": 16, "heads": 2, "vocab": 11}


@pytest.mark.parametrize("family", ["decoder", "encoder", "encoder_decoder"])
def test_the_layers_of_a_pattern_differ_in_attention_and_feedforward(family: str) -> None:
    pattern = [
        {"attention": "dense", "feedforward": "dense"},
        {"attention": {"local": {"window": 4}}, "feedforward": {"moe": {"experts": 4}}},
        {"attention": {"strided": {"stride": 3}}, "feedforward": "glu"},
    ]
    model = random_model(ModelConfig.model_validate({**SIZES, "family": family, "pattern": pattern}))
    tokens = jnp.asarray(np.random.default_rng(0).integers(0, 11, (2, 9)))
    if family == "encoder_decoder":
        states = model(tokens, tokens)
    else:
        states = model(tokens)
    assert states.shape == (2, 9, 16)
    backbone = model.encoder if family == "encoder" else model.decoder
    assert backbone.stack.repeats == 2
    dense_layer, moe_layer, glu_layer = (backbone.stack.layers[place].feedforward for place in ("0", "1", "2"))
    assert hasattr(moe_layer, "router")
    assert moe_layer.experts.up.weight.shape == (2, 4, 16, 64)
    assert hasattr(glu_layer, "gate")
    assert not hasattr(dense_layer, "gate")


def test_dense_in_a_pattern_is_the_feedforward_of_the_model_without_experts() -> None:
    glu_model = ModelConfig.model_validate({**SIZES, "feedforward": "glu", "pattern": [{"feedforward": "dense"}]})
    assert isinstance(glu_model.feedforward_of(glu_model.pattern[0]), GLU)
    moe = {"moe": {"experts": 4, "expert": {"mlp": {"activation": "relu"}}}}
    moe_model = ModelConfig.model_validate({**SIZES, "feedforward": moe, "pattern": [{"feedforward": "dense"}, {}]})
    assert moe_model.feedforward_of(moe_model.pattern[0]) == MLP(activation="relu")
    assert isinstance(moe_model.feedforward_of(moe_model.pattern[1]), MoE)
    assert len(moe_model.mixtures) == 1


def test_a_pattern_that_does_not_divide_the_layers_is_cut_short_at_the_end() -> None:
    """Seven layers of a period of three: two whole repeats, and its first layer again."""
    local = {"attention": {"local": {"window": 4}}, "positions": {"rotary": {"theta": 100.0}}}
    settings = {**SIZES, "layers": 7, "positions": "rotary"}
    short = ModelConfig.model_validate({**settings, "pattern": [local, {}, {"feedforward": "glu"}]})
    layers = [local, {}, {"feedforward": "glu"}, local, {}, {"feedforward": "glu"}, local]
    listed = ModelConfig.model_validate({**settings, "pattern": layers})
    assert short.period == listed.pattern
    assert model_spec(short).shapes == model_spec(listed).shapes
    tokens = jnp.asarray(np.random.default_rng(0).integers(0, 11, (2, 9)))
    np.testing.assert_array_equal(random_model(short)(tokens), random_model(listed)(tokens))
    with pytest.raises(ValueError, match="layers 7 is not a multiple of the pattern's 3 layers"):
        ModelConfig.model_validate({**settings, "pattern": [local, {}, {}], "shared_layers": True})
    with pytest.raises(ValueError, match="10000 layers without a repeat; patterns of up to 512 can be compiled"):
        ModelConfig.model_validate({**settings, "layers": 10_000, "pattern": [local, {}, {}]})


@pytest.mark.parametrize("positions", ["learned", "alibi", {"relative": {}}])
def test_layers_rotate_by_themselves_only_in_models_whose_positions_are_rotary_or_none(positions: object) -> None:
    with pytest.raises(ValueError, match="are for a model whose own are rotary or none"):
        ModelConfig.model_validate({**SIZES, "positions": positions, "pattern": [{"positions": "rotary"}]})


GROUPED = {**SIZES, "shared_layers": True, "shared_groups": 3}


def test_groups_of_layers_compute_what_separate_layers_with_their_weights_compute() -> None:
    """Six layers in three groups: layers 1 and 2 are equal, 3 and 4, and 5 and 6."""
    grouped = random_model(ModelConfig.model_validate(GROUPED))
    separate = ModelConfig.model_validate(SIZES)
    shapes = model_spec(separate).shapes

    def repeat(values: jax.Array, shape: jax.ShapeDtypeStruct) -> jax.Array:
        return values if values.shape == shape.shape else jnp.repeat(values, 2, axis=0)

    params = jax.tree.map(repeat, nnx.to_pure_dict(nnx.state(grouped, nnx.Param)), shapes)
    assert params["decoder"]["stack"]["layers"]["0"]["attention"]["query"]["weight"].shape[0] == 6
    tokens = jnp.asarray(np.random.default_rng(0).integers(0, 11, (2, 9)))
    expected = model_spec(separate).model(params)(tokens)
    np.testing.assert_allclose(grouped(tokens), expected, atol=1e-5)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"shared_layers": False}, "shared_groups is for shared_layers"),
        ({"shared_groups": 4}, "layers: 6 repeats of the pattern cannot be cut into 4 equal groups"),
        ({"family": "encoder_decoder", "decoder_layers": 4}, "decoder_layers: 4 repeats of the pattern cannot be cut"),
    ],
)
def test_groups_of_unequal_size_are_refused(settings: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ModelConfig.model_validate({**GROUPED, **settings})
