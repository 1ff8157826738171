"""Refuse weights with a head for a task that cannot be imported."""

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from t5x_lite.convert.classifier import TASK_HEADS, architectures_of
from t5x_lite.convert.model_type import ModelType
from t5x_lite.errors import UserError


def check_task_head(
    config_path: Path, model_type: ModelType, config: Mapping[str, Any], tensor_names: Collection[str]
) -> None:
    """Refuse weights with a head for a task, unless it is one of a classifier that is imported.

    Raises:
        UserError: says how to import the model without its head, where there is a way.
    """
    stored = sorted(name for name in tensor_names if name.startswith(TASK_HEADS))
    if not stored:
        return
    classifiers = [architecture.name for architecture in model_type.architectures if architecture.is_classifier]
    names = architectures_of(config)
    if any(name in classifiers for name in names):
        return
    supported = "no head for a task is imported for this model type"
    if classifiers:
        supported = f"of heads for tasks that of {', '.join(classifiers)} alone is imported"
    remedy = "it has no output that predicts tokens; import a checkpoint that has"
    if model_type.headless is not None:
        remedy = "--without-head imports the encoder alone"
    name = ", ".join(names) or "the model"
    raise UserError(f"{config_path}: {name} has a head for a task ({stored[0]}, …); {supported}; {remedy}")
