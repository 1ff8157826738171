"""Patterns of layers: any period, in every family."""

import jax.numpy as jnp
import numpy as np
import pytest

from t5x_lite.models.config import ModelConfig
from t5x_lite.models.experts.config import MoE
from t5x_lite.models.feedforward.config import GLU, MLP
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
