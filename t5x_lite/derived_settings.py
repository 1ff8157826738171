"""Settings of a run that follow from others: an adapted run's model, and a task's objective and head."""

from typing import Annotated

import yaml

from t5x_lite import schema
from t5x_lite.errors import UserError, one_line
from t5x_lite.local_copies import local_path
from t5x_lite.models.config import DECODER_SETTINGS, ModelConfig
from t5x_lite.objectives import OBJECTIVES, Objective
from t5x_lite.objectives.policy_optimization import PolicyOptimization
from t5x_lite.objectives.supervised import Supervised
from t5x_lite.run_layout import CONFIG_FILE
from t5x_lite.schema import Config, OneOf, Settings
from t5x_lite.tasks import find_task, objective_settings


def add_derived_settings(values: Settings) -> Settings:
    """Add the settings that follow from others: an adapted run's model, and a task's objective and head."""
    model = values.get("model", {})
    if not isinstance(model, dict):
        return values  # validation reports it
    adapt = values.get("adapt")
    adapted_run = adapt.get("from") if isinstance(adapt, dict) else None
    if adapted_run and isinstance(adapted_run, str):
        model = schema.merge(ModelConfig, _read_model_of_run(adapted_run, model.get("family")), model)
        values = {**values, "model": model}
    tasks = _task_names(values.get("tasks"))
    if not tasks:
        return values
    objective = _objective_of_tasks(tasks, values, model.get("family", "decoder"))
    return {**values, "model": _add_head(model, objective), "objective": objective}


def _task_names(tasks: object) -> tuple[str, ...]:
    """Return the names of the tasks; none if they are not strings, which validation reports."""
    if isinstance(tasks, str) and tasks:
        return (tasks,)
    if isinstance(tasks, list) and all(isinstance(name, str) for name in tasks):
        return tuple(tasks)
    return ()


def _read_model_of_run(folder: str, family: object) -> Settings:
    """Return the model settings of a run that is to be adapted.

    Of ELECTRA, the discriminator is adapted; of an encoder_decoder the encoder, if the config's `family` is that. The
    head of a policy estimates rewards in its own training alone.
    """
    path = local_path(folder) / CONFIG_FILE
    try:
        if not path.is_file():
            raise UserError(f"adapt.from {folder}: is not a run directory (no config.yaml)")
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, RecursionError, ValueError, yaml.YAMLError) as error:
        raise UserError(f"adapt.from {path}: cannot be read: {one_line(error)}") from None
    model = values.get("model") if isinstance(values, dict) else None
    if not isinstance(model, dict):
        raise UserError(f"adapt.from {path}: is not the config of a run: it has no model")
    if model.get("family") == "electra":
        model = {**model, "family": "encoder", "generator": None}
    if _is_policy_objective(values.get("objective")):
        model = {**model, "head": None}
    if model.get("family") == "encoder_decoder" and family == "encoder":
        model = {name: value for name, value in model.items() if name not in DECODER_SETTINGS}
    return model


def _is_policy_objective(objective: object) -> bool:
    """Return whether the setting of a run's objective names one that samples answers."""
    name = next(iter(objective), None) if isinstance(objective, dict) else objective
    kind = OBJECTIVES.get(name) if isinstance(name, str) else None
    return kind is not None and issubclass(kind, PolicyOptimization)


class _ObjectiveSetting(Config):
    """The objective alone, which is merged and validated before the rest of a config."""

    objective: Annotated[Objective, OneOf(OBJECTIVES)]


def _objective_of_tasks(tasks: tuple[str, ...], values: Settings, family: str) -> Settings:
    """Return the objective that the tasks ask for, updated with the settings that the config gives for it.

    Raises:
        UserError: settings of a head's objective for tasks that are learnt as text.
    """
    objective = objective_settings(tasks, values.get("task_form", "auto"), family)
    configured = values.get("objective")
    if not configured:
        return objective
    name = next(iter(configured)) if isinstance(configured, dict) else str(configured)
    if name not in objective and name in {find_task(task).objective.name for task in tasks}:
        raise UserError(
            f"objective.{name}: a model of family {family} learns {', '.join(tasks)} as text; "
            "set task_form=head, or the settings of objective.text_to_text"
        )
    merged = schema.merge(_ObjectiveSetting, {"objective": objective}, {"objective": configured})
    return merged["objective"]


def _add_head(model: Settings, objective_values: Settings) -> Settings:
    """Return the model settings with the head that a supervised objective needs."""
    sources = schema.Sources({"objective": objective_values}, {})
    objective = schema.validate(_ObjectiveSetting, sources).objective
    if not isinstance(objective, Supervised):
        return model
    family = model.get("family", "decoder")
    head = objective.head(ModelConfig.model_construct(family=family, query_stream=bool(model.get("query_stream"))))
    if head is None:
        return model
    model = {**model, "head": head.model_dump(mode="json")}
    if family == "encoder":
        model["outputs"] = []
    return model
