"""The rules of methods that decide which parameters train and how fast, against the papers."""

import math
from typing import Any, Literal

import numpy as np
import pytest

from t5x_lite import config as configuration
from t5x_lite.adapt import BitFit, Features, Top, Unfreeze
from t5x_lite.models.config import ModelConfig
from t5x_lite.models.spec import model_spec
from t5x_lite.trees import flatten_names
from tests.conftest import REPOSITORY


def test_unfreezing_adds_layers_from_the_top_at_lower_learning_rates() -> None:
    """ULMFiT's rule by hand: of 2 layers all train from half of the run on, each 2.6 times slower than that above."""
    model = ModelConfig(layers=2, embed=8, heads=2, family="encoder")

    def factors(name: str, progress: float) -> float | list[float]:
        return Unfreeze().learning_rate_factor(name, model, progress).tolist()

    layer_weight = "encoder.stack.layers.0.attention.query.weight"
    assert factors("head.scores.weight", 0.0) == 1
    assert factors(layer_weight, 0.0) == [0, 0]
    assert factors(layer_weight, 0.17) == pytest.approx([0, 1 / 2.6])
    assert factors(layer_weight, 0.34) == pytest.approx([1 / 2.6**2, 1 / 2.6])
    for name in ("tokens.weight", "encoder.embedding.norm.scale", "encoder.project.weight"):
        assert factors(name, 0.34) == 0
    assert factors("encoder.stack.positions.table", 0.34) == 0
    assert factors("tokens.weight", 0.5) == pytest.approx(2.6**-3)


@pytest.mark.parametrize(
    ("size", "width", "mlp", "layers", "share"),
    [("base", 768, 3072, 12, 0.0009), ("large", 1024, 4096, 24, 0.0008)],
    ids=["base", "large"],
)
def test_the_biases_of_bert_are_the_published_share(size: str, width: int, mlp: int, layers: int, share: float) -> None:
    """Ben Zaken et al. 2022, Table 1: 0.08 % of BERT large; the count by hand."""
    config = configuration.load(REPOSITORY / f"configs/bert/{size}.yaml", ["data.files=x", "model.vocab=30522"])
    spec = model_spec(config.model)
    biases = 0
    for name, shape in flatten_names(spec.shapes).items():
        if "encoder." in name and BitFit().first_trained_repeat(name, config.model) == 0:
            biases += math.prod(shape.shape)
    assert biases == layers * (7 * width + mlp) + width
    assert biases / spec.parameters == pytest.approx(share, abs=0.0001)


NO_BIAS = {"layers": 1, "embed": 8, "heads": 2, "vocab": 10, "bias": False, "norm": "rmsnorm"}


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"norm": "layernorm"},
        {"norm": {"layernorm": {"bias": False}}},
        {"query_key_value_bias": True},
        {"key_bias": True},
        {"feedforward_bias": True},
        {"output_bias": True},
        {"output_bias": True, "family": "encoder", "outputs": ["sentence"]},
        {"family": "encoder", "outputs": ["neighbours"], "tied": False, "output_bias": True},
        {"feedforward": {"moe": {"experts": 2, "router": {"top_k": {"bias": True}}}}},
        {"pattern": [{"mixer": {"rg_lru": {"width": 8, "blocks": 2}}}]},
        {"pattern": [{"mixer": {"mamba2": {"head_dim": 8, "state": 4}}}]},
        {"pattern": [{"mixer": "lstm"}]},
        {"pattern": [{"mixer": "gru"}]},
    ],
)
def test_bitfit_is_refused_if_there_is_no_bias_at_all(settings: dict[str, Any]) -> None:
    """By the names of the parameters of the model itself."""
    model = ModelConfig.model_validate({**NO_BIAS, **settings})
    names = flatten_names(model_spec(model).shapes)
    if any(name.endswith(".bias") for name in names):
        BitFit().check(model)
    else:
        with pytest.raises(ValueError, match="this model has no biases"):
            BitFit().check(model)


def test_both_biases_of_a_gru_train() -> None:
    """PyTorch's `bias_ih` and `bias_hh`, in an encoder of one layer that reads in one direction."""
    settings = {"family": "encoder", "outputs": ["tokens"], "pattern": [{"mixer": "gru"}], "bias": True}
    model = ModelConfig.model_validate({**NO_BIAS, **settings})
    trained = []
    for name in flatten_names(model_spec(model).shapes):
        if ".mixer." in name and BitFit().first_trained_repeat(name, model) == 0:
            trained.append(name.rpartition(".")[2])
    assert sorted(trained) == ["bias", "hidden_bias"]


def test_the_outputs_train_with_the_top_layers() -> None:
    settings = {"outputs": ["tokens", "neighbours", "sentence", "detection", "span"], "output_bias": True}
    model = ModelConfig.model_validate(
        {"layers": 2, "embed": 8, "heads": 2, "vocab": 10, "family": "encoder", **settings}
    )
    trained = set()
    for name in flatten_names(model_spec(model).shapes):
        if Top(layers=1).first_trained_repeat(name, model) is not None:
            trained.add(name.partition(".")[0])
    assert trained == {"encoder", "output", "neighbours", "sentence", "detection", "span"}


def test_layers_of_cells_in_one_mixer_join_one_after_the_other() -> None:
    """AWD-LSTM's three layers, embedding and output by hand, as ULMFiT unfreezes them (Howard & Ruder 2018, §3.3)."""
    model = configuration.load(REPOSITORY / "configs/rnn/awd_lstm.yaml", ["data.files=x"]).model
    method = Unfreeze(share=0.08)

    def factor(name: str, progress: float) -> list[float]:
        return method.learning_rate_factor(name, model, progress).tolist()

    for depth, layer in enumerate(("forward_2", "forward_1", "forward_0"), start=1):
        name = f"decoder.stack.layers.0.mixer.{layer}.hidden"
        assert factor(name, depth / 50 - 1e-3) == [0]
        assert factor(name, depth / 50 + 1e-3) == pytest.approx([2.6**-depth])
    assert method.learning_rate_factor("tokens.weight", model, 4 / 50 + 1e-3).tolist() == pytest.approx(2.6**-4)
    assert method.learning_rate_factor("head.scores.weight", model, 0.0).tolist() == 1


@pytest.mark.parametrize("mix", ["mean", "softmax"])
def test_a_head_on_a_mixture_of_layers_is_no_head_of_a_plain_model(mix: Literal["mean", "softmax"]) -> None:
    assert Features(mix=mix).merged_weights({"head.scores.weight": np.zeros((2, 2))}) is None


def test_the_penalty_of_a_mixture_is_the_square_of_its_weights() -> None:
    """Peters et al. 2018, §3.3: λ·Σ w², of the weights before the softmax."""
    weights = {"encoder.stack.mix.weights": np.array([1.0, 2.0, -2.0]), "encoder.stack.mix.gamma": np.array(5.0)}
    assert Features(mix="softmax", weight_penalty=0.5).penalty(weights) == pytest.approx(4.5)
    assert Features(mix="softmax").penalty(weights) is None
    with pytest.raises(ValueError, match="weight_penalty is for the learnt weights of mix: softmax"):
        Features(weight_penalty=0.5)
