"""Find the model type of Transformers that can hold a model."""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TypeAlias

from pydantic import ValidationError

from t5x_lite.convert import MODEL_TYPES
from t5x_lite.convert.config_table import ForeignModel, MissingComponent, resolve_settings
from t5x_lite.convert.model_type import NO_TOKEN_OUTPUT, SOME_OUTPUT_TENSOR, ModelType
from t5x_lite.errors import UserError, one_line
from t5x_lite.models.config import ModelConfig
from t5x_lite.trees import unflatten_names

DROPOUT = {
    "dropout",
    "attention_dropout",
    "embedding_dropout",
    "variational_dropout",
    "weight_dropout",
    "layer_dropout",
}
"""Names of settings by which activations or weights are dropped in training."""
COMPUTATION_AND_TRAINING = {"init", "compute", "remat", "unroll", "kernel", "chunk", "pipeline_microbatches"}
ROUTER_LOSSES_AND_BUFFERS = {"balance", "over", "z_loss", "jitter", "buffer", "update"}
NOT_COMPARED = DROPOUT | COMPUTATION_AND_TRAINING | ROUTER_LOSSES_AND_BUFFERS
"""Names of settings that do not change what a trained model computes in evaluation."""
COMPONENTS = ("positions", "norm", "feedforward")
"""Components that are replaced to compare the others."""


Difference: TypeAlias = tuple[str, str]
"""The value that a model has, and the value that a model type has instead."""


@dataclass(frozen=True)
class TypeComparison:
    """Differences between a model and the nearest one of a model type.

    Attributes:
        differences: what the model has, and what the model type has instead, by setting.
        is_complete: false where the model type could not be compared any further.
    """

    differences: Mapping[str, Difference]
    is_complete: bool = True


def find_model_type(model: ModelConfig, known_name: str | None) -> ModelType:
    """Return the model type that weights came from, or the first one whose config describes the model exactly.

    Args:
        model: the model.
        known_name: the name of the model type that the weights came from, if they were imported.

    Raises:
        UserError: no known model type can hold the model, with the components that none has.
    """
    if known_name in MODEL_TYPES:
        return MODEL_TYPES[known_name]
    comparisons = {}
    for name, model_type in MODEL_TYPES.items():
        if model_type.config.fixed["family"] != model.family:
            continue
        comparisons[name] = _compare(model, model_type)
        if not comparisons[name].differences:
            return model_type
    raise UserError(_describe_refusal(model, comparisons))


def _describe_refusal(model: ModelConfig, comparisons: Mapping[str, TypeComparison]) -> str:
    """Return the components that no model type has, and the differences from the nearest one."""

    def distance(name: str) -> tuple[bool, int]:
        comparison = comparisons[name]
        return not comparison.is_complete, len(comparison.differences)

    start = f"no known model type of Transformers ({', '.join(MODEL_TYPES)}) can hold this model"
    if not comparisons:
        return f"{start}: none is of family {model.family}"
    nearest = min(comparisons, key=distance)
    differences = comparisons[nearest].differences
    complete = [comparison for comparison in comparisons.values() if comparison.is_complete]
    unique = []
    for key, (value, _) in differences.items():
        if all(key in comparison.differences for comparison in complete):
            unique.append(f"{key} {value}")
    descriptions = [f"{key} {value} instead of {other}" for key, (value, other) in differences.items()]
    nothing_else = f"nearest is {nearest}, except for {'; '.join(descriptions)}"
    if not unique:
        return f"{start}; {nothing_else}"
    return f"{start}: none of family {model.family} has {', '.join(unique)}; {nothing_else}"


def _compare(model: ModelConfig, model_type: ModelType) -> TypeComparison:
    """Return the differences between a model and the nearest one of a model type.

    Components that the model type needs replace those of the model until an export and an import as this type work.
    """
    if not model.outputs:
        model = model.model_copy(update=NO_TOKEN_OUTPUT)  # parts of an output that is not there
    nearest = model
    for _ in range(len(COMPONENTS) + 1):
        try:
            return TypeComparison(_list_differences(model, _write_and_read(nearest, model_type)))
        except MissingComponent as error:
            component, *kinds = error.setting.split(".")
            if component not in COMPONENTS or not kinds:
                return TypeComparison({error.setting: ("missing", "a value")}, is_complete=False)
            try:
                nearest = _replace_component(nearest, component, kinds[0])
            except ValidationError:  # the model's other settings need its component
                return TypeComparison({error.setting: ("missing", "a value")}, is_complete=False)
        except (UserError, ValidationError) as error:
            reason = one_line(error)
            return TypeComparison({"model": ("as it is", f"what can be written ({reason})")}, is_complete=False)
    return TypeComparison({"model": ("as it is", "what can be written")}, is_complete=False)


def _replace_component(model: ModelConfig, component: str, kind: str) -> ModelConfig:
    """Return the model with a component of another kind and its default settings."""
    settings = model.model_dump(mode="json")
    settings[component] = {kind: {}}
    return ModelConfig.model_validate(settings)


def _write_and_read(model: ModelConfig, model_type: ModelType) -> ModelConfig:
    """Return the model that an export and an import as this type would give."""
    tensor_names = []
    if model.outputs:
        tensor_names.append(SOME_OUTPUT_TENSOR)
    if not model.tied:
        tensor_names.append(model_type.output_matrix)
    marker_tensor = model_type.select_architecture(model).marker_tensor
    if marker_tensor is not None:
        tensor_names.append(marker_tensor)
    config = model_type.write_config(model)
    return ModelConfig.model_validate(model_type.read_settings(ForeignModel(config, tensor_names)))


def _list_differences(model: ModelConfig, other: ModelConfig) -> dict[str, Difference]:
    """Return the settings that differ in what a trained model computes, with both values."""
    settings = unflatten_names(resolve_settings(model))
    other_settings = unflatten_names(resolve_settings(other))
    compared_layers = min(math.lcm(len(model.pattern), len(other.pattern)), model.layers)
    for compared in (settings, other_settings):
        repeats = math.ceil(compared_layers / len(compared["pattern"]))
        layers = compared["pattern"] * repeats
        compared["pattern"] = dict(enumerate(layers[:compared_layers]))
        compared["first"] = dict(enumerate(compared["first"]))
    return dict(_differences(settings, other_settings, ""))


def _differences(value: object, other: object, key: str) -> Iterator[tuple[str, Difference]]:
    """Yield the leaves that differ; of components of another kind, the names of both kinds."""
    if key.rpartition(".")[2] in NOT_COMPARED:
        return
    if not isinstance(value, Mapping) or not isinstance(other, Mapping):
        if value != other:
            yield key, (_describe(value), _describe(other))
    elif len(value) == len(other) == 1 and value.keys() != other.keys():
        yield key, (next(iter(value)), next(iter(other)))
    else:
        for name in sorted(value.keys() | other.keys()):
            yield from _differences(value.get(name), other.get(name), f"{key}.{name}".lstrip("."))


def _describe(value: object) -> str:
    return "null" if value is None else repr(value)
