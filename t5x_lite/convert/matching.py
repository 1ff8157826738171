"""Find the model type of Transformers that can hold a model."""

from pydantic import ValidationError

from t5x_lite.convert import MODEL_TYPES
from t5x_lite.convert.config_table import ForeignModel, resolve_settings
from t5x_lite.convert.model_type import OUTPUT_MATRIX, SOME_OUTPUT_TENSOR, ModelType
from t5x_lite.errors import UserError
from t5x_lite.models.config import ModelConfig

NOT_COMPARED = {"dropout", "init", "compute", "remat", "unroll", "kernel"}
"""Settings of a model that a foreign config need not hold."""


def find_model_type(model: ModelConfig, known_name: str | None) -> ModelType:
    """Return the model type that weights came from, or the first one whose config describes the model exactly.

    Args:
        model: the model.
        known_name: the name of the model type that the weights came from, if they were imported.

    Raises:
        UserError: no known model type can hold the model, with what stands in the way of the nearest one.
    """
    if known_name in MODEL_TYPES:
        return MODEL_TYPES[known_name]
    differences = {}
    for name, model_type in MODEL_TYPES.items():
        if model_type.config.fixed["family"] != model.family:
            continue
        try:
            restored_model = _write_and_read(model, model_type)
        except (UserError, ValidationError):
            continue
        differences[name] = _list_differences(model, restored_model)
        if not differences[name]:
            return model_type
    reason = ""
    if differences:
        nearest = min(differences, key=lambda name: len(differences[name]))
        reason = f"; nearest is {nearest}, except for {'; '.join(differences[nearest])}"
    raise UserError(f"no known model type of Transformers ({', '.join(MODEL_TYPES)}) can hold this model{reason}")


def _write_and_read(model: ModelConfig, model_type: ModelType) -> ModelConfig:
    """Return the model that an export and an import as this type would give."""
    tensor_names = []
    if model.outputs:
        tensor_names.append(SOME_OUTPUT_TENSOR)
    if not model.tied:
        tensor_names.append(OUTPUT_MATRIX)
    marker_tensor = model_type.select_architecture(model).marker_tensor
    if marker_tensor is not None:
        tensor_names.append(marker_tensor)
    config = model_type.write_config(model)
    return ModelConfig.model_validate(model_type.read_settings(ForeignModel(config, tensor_names)))


def _list_differences(model: ModelConfig, other: ModelConfig) -> list[str]:
    settings = resolve_settings(model)
    other_settings = resolve_settings(other)
    differences = []
    for key in sorted(settings.keys() | other_settings.keys()):
        value = settings.get(key)
        other_value = other_settings.get(key)
        if value != other_value and NOT_COMPARED.isdisjoint(key.split(".")):
            differences.append(f"{key} {value!r} instead of {other_value!r}")
    return differences
