"""The layers of the parameters of a stack, by their names."""

from typing import Any

import pytest

from t5x_lite.models.config import ModelConfig
from t5x_lite.models.layer_path import depth_of_stack, parse_layer_path
from t5x_lite.models.spec import model_spec
from t5x_lite.trees import flatten_names

FAMILIES: dict[str, dict[str, Any]] = {
    "decoder": {"layers": 5, "first": [{}], "pattern": [{}, {"attention": {"local": {"window": 2}}}]},
    "encoder_decoder": {"family": "encoder_decoder", "layers": 2, "decoder_layers": 3, "decoder_embedding": "separate"},
    "electra": {
        "family": "electra",
        "layers": 4,
        "outputs": ["detection"],
        "generator": {"layers": 3, "embed": 8, "heads": 1},
    },
}


@pytest.mark.parametrize("family", FAMILIES)
def test_arrays_of_layers_have_an_entry_for_each_of_their_layers(family: str) -> None:
    """By the shapes of a model; together the places of a stack number its layers from 0 on."""
    model = ModelConfig.model_validate({"embed": 16, "heads": 2, "vocab": 10, **FAMILIES[family]})
    layers: dict[str, list[int]] = {}
    depths = {}
    for name, shape in flatten_names(model_spec(model).shapes).items():
        path = parse_layer_path(name)
        assert (path is None) == (".layers." not in name)
        if path is None:
            continue
        assert path.name == name
        numbers = path.numbers(model).tolist()
        assert len(numbers) == shape.shape[0]
        if path.parameter == "attention.query.weight":
            layers.setdefault(path.stack, []).extend(numbers)
            depths[path.stack] = depth_of_stack(model, name)
    expected = {
        "decoder": {"decoder": 5},
        "encoder_decoder": {"encoder": 2, "decoder": 3},
        "electra": {"discriminator.encoder": 4, "generator.encoder": 3},
    }
    assert depths == expected[family]
    for stack, numbers in layers.items():
        assert sorted(numbers) == list(range(depths[stack]))


def test_layers_are_numbered_from_the_first_ones_on() -> None:
    model = ModelConfig.model_validate({"embed": 16, "heads": 2, "vocab": 10, **FAMILIES["decoder"]})

    def numbers(layer: str) -> list[int]:
        path = parse_layer_path(f"decoder.stack.{layer}.attention.out.weight")
        assert path is not None
        return path.numbers(model).tolist()

    assert numbers("first.layers.0") == [0]
    assert numbers("layers.0") == [1, 3]
    assert numbers("layers.1") == [2, 4]
    assert parse_layer_path("decoder.stack.final_norm.scale") is None


def test_a_token_table_belongs_to_the_stack_that_reads_it() -> None:
    model = ModelConfig.model_validate({"embed": 16, "heads": 2, "vocab": 10, **FAMILIES["encoder_decoder"]})
    assert depth_of_stack(model, "tokens.weight") == 2
    assert depth_of_stack(model, "decoder_tokens.weight") == 3
