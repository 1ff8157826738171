"""Patterns of layers: any period, in every family, as a YAML says them."""

from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest

from t5x_lite.models.config import ModelConfig
from t5x_lite.models.experts.config import MoE
from t5x_lite.models.feedforward.config import GLU, MLP
from tests.models.weights import random_model

SIZES: dict[str, Any] = {"layers": 6, "embed": 16, "heads": 2, "vocab": 11}


@pytest.mark.parametrize("family", ["decoder", "encoder", "encoder_decoder"])
def test_layers_of_any_period_differ_in_attention_and_feedforward(family: str) -> None:
    pattern = [
        {"attention": "dense", "feedforward": "dense"},
        {"attention": {"local": {"window": 4}}, "feedforward": {"moe": {"experts": 4}}},
        {"attention": {"strided": {"stride": 3}}, "feedforward": "glu"},
    ]
    config = ModelConfig.model_validate({**SIZES, "family": family, "pattern": pattern})
    model: Any = random_model(config)
    tokens = jnp.asarray(np.random.default_rng(0).integers(0, 11, (2, 9)))
    states = model(tokens, tokens) if family == "encoder_decoder" else model(tokens)
    assert states.shape == (2, 9, 16)
    side = getattr(model, "decoder", None) or model.encoder
    assert side.stack.repeats == 2
    assert hasattr(side.stack.layers["1"].feedforward, "router")
    assert side.stack.layers["1"].feedforward.experts.up.weight.shape == (2, 4, 16, 64)
    assert hasattr(side.stack.layers["2"].feedforward, "gate")
    assert not hasattr(side.stack.layers["0"].feedforward, "gate")


def test_dense_is_the_models_feedforward_without_experts() -> None:
    plain = ModelConfig.model_validate({**SIZES, "feedforward": "glu", "pattern": [{"feedforward": "dense"}]})
    assert isinstance(plain.feedforward_of(plain.pattern[0]), GLU)
    moe = {"moe": {"experts": 4, "expert": {"mlp": {"activation": "relu"}}}}
    mixed = ModelConfig.model_validate({**SIZES, "feedforward": moe, "pattern": [{"feedforward": "dense"}, {}]})
    assert mixed.feedforward_of(mixed.pattern[0]) == MLP(activation="relu")
    assert isinstance(mixed.feedforward_of(mixed.pattern[1]), MoE)
    assert len(mixed.mixtures) == 1
