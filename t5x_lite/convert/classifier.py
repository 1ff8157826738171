"""Classifiers in Transformers: the labels in a config.json, and the head and the objective that they stand for."""

from collections.abc import Mapping
from typing import Any, TypeAlias

from t5x_lite.convert.config_table import ForeignConfig, Settings, check_count
from t5x_lite.errors import UserError
from t5x_lite.models.head_config import HeadActivation, HeadConfig
from t5x_lite.objectives import Classify, Objective

ObjectiveSetting: TypeAlias = str | dict[str, Any] | None
"""The `objective` of a run config: a name, or a name with its settings."""

TASK_HEADS = ("classifier.", "score.", "qa_outputs.", "sequence_summary.", "multiple_choice_head.")
"""First parts of the names of modules that only classes for tasks have."""
REGRESSION = "regression"
SINGLE_LABEL = "single_label_classification"
LABEL_FIELDS = ("id2label", "label2id", "problem_type")
DEFAULT_LABELS = 2
"""The number of labels that Transformers takes where a config names none."""


def is_named(name: str, config: Mapping[str, Any]) -> bool:
    """Return whether a config names a class of Transformers."""
    return name in architectures_of(config)


def architectures_of(config: Mapping[str, Any]) -> list[str]:
    """Return the names of Transformers' classes in a config; empty if it has none."""
    names = config.get("architectures")
    return [str(name) for name in names] if isinstance(names, list) else []


def read_labels(config: Mapping[str, Any]) -> list[str]:
    """Return the names of the labels.

    Raises:
        UserError: `id2label` is not a table of numbers from 0, or names a label twice.
    """
    table = config.get("id2label")
    if table is None:
        return [
            f"LABEL_{number}" for number in range(check_count("num_labels", config.get("num_labels", DEFAULT_LABELS)))
        ]
    if not isinstance(table, dict) or {str(number) for number in table} != {str(n) for n in range(len(table))}:
        raise UserError(f"id2label={str(table)[:60]} is not a table of labels by their numbers from 0")
    by_number = {int(number): str(label) for number, label in table.items()}
    labels = [by_number[number] for number in range(len(by_number))]
    if not labels or len(set(labels)) < len(labels):
        raise UserError(f"id2label={str(table)[:60]} names no label, or the same twice")
    return labels


def read_head(config: Mapping[str, Any], activation: HeadActivation) -> Settings:
    """Return the head of a classifier: a dense layer on the first token's state, and a score for each label.

    Raises:
        UserError: several labels of a text, or several numbers, which this project does not learn.
    """
    labels = read_labels(config)
    problem = config.get("problem_type")
    is_supported = problem is None or problem == SINGLE_LABEL or (problem == REGRESSION and len(labels) == 1)
    if not is_supported:
        raise UserError(f"problem_type={problem!r} with {len(labels)} labels is not supported (only one label a text)")
    return {"outputs": len(labels), "pool": "first", "transform": True, "activation": activation}


def read_objective(config: Mapping[str, Any], head: HeadConfig) -> ObjectiveSetting:
    """Return the objective of a classifier: its labels, or a number."""
    labels = read_labels(config)
    layer = {"transform": head.transform, "activation": head.activation}
    if len(labels) == 1:
        return {"regress": layer}
    return {"classify": {"labels": labels, **layer}}


def write_labels(outputs: int, objective: Objective | None = None) -> ForeignConfig:
    """Return the fields of a config.json about labels; without an objective they are numbered."""
    labels = [f"LABEL_{number}" for number in range(outputs)]
    if isinstance(objective, Classify):
        labels = list(objective.labels)
    return {
        "id2label": {str(number): label for number, label in enumerate(labels)},
        "label2id": {label: number for number, label in enumerate(labels)},
        "problem_type": REGRESSION if outputs == 1 else SINGLE_LABEL,
    }
