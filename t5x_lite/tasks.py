"""Tasks: where labelled records come from, what is learnt from them, and how it is measured. One YAML file each.

The shipped tasks are `configs/tasks/*.yaml`; any other file is named by its path. Nothing here imports JAX.
"""

import difflib
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Literal

from t5x_lite import schema
from t5x_lite.config_files import SHIPPED_CONFIGS
from t5x_lite.errors import UserError
from t5x_lite.objectives import OBJECTIVES, Objective, TextToText
from t5x_lite.objectives.supervised import Answer, Record, Supervised
from t5x_lite.schema import Config, Int, OneOf, Strings, setting

TASKS = SHIPPED_CONFIGS / "tasks"
PLACEHOLDER = re.compile(r"\{(\w+)\}")
"""A role in a template, such as `{text}`."""
TaskForm = Literal["auto", "head", "text"]


class Splits(Config):
    """Names of the splits of a TFDS builder."""

    train: str = setting("train", "split for training")
    validation: str = setting("validation", "split for evaluation")


class TaskSpec(Config):
    """A task."""

    about: str = setting(..., "what it is, and where it was published")
    tfds: str = setting("", "TFDS builder, `name/config`, where `data.files` gives no files")
    splits: Splits = setting(Splits(), "its splits")
    columns: Mapping[str, str | list[str]] = setting(
        ..., "role → column of a record, or several that make a list; `a/b` is b inside a"
    )
    objective: Annotated[Objective, OneOf(OBJECTIVES)] = setting(
        ..., "what a model with a head learns, or text_to_text"
    )
    inputs: str = setting("", "text form: the inputs, roles in braces")
    instructions: Strings = setting(
        (),
        "text form: other inputs, in words; a training example has `inputs` or one of these at random",
        source="FLAN, Wei et al. 2022, §2.1",
    )
    targets: str = setting("", "text form of text_to_text: the targets, roles in braces; else the label as a text")
    target_len: Int = setting(16, "text form: longest targets, EOS included", unit="tokens", ge=2)
    metrics: Strings = setting(..., "names in evaluate/metrics.py; [] measures the validation loss alone")

    def problems(self) -> Iterator[str]:
        """Yield an error for an objective that lacks what it needs, and for roles without a column."""
        objective = self.objective
        if isinstance(objective, TextToText) and not (self.inputs and self.targets):
            yield "objective text_to_text needs `inputs` and `targets`"
        if not isinstance(objective, Supervised | TextToText):
            yield f"objective {objective.name} learns from running text, not from records"
        needed = roles_in(self.targets)
        for template in self.input_forms:
            needed |= roles_in(template)
        needed -= {"choices"}
        if self.instructions and not self.inputs:
            yield "`instructions` are beside `inputs`, which are missing"
        if isinstance(objective, Supervised):
            needed |= set(objective.roles)
        missing = needed - set(self.columns)
        if missing:
            yield f"`columns` has no role {', '.join(sorted(missing))}"

    @property
    def input_forms(self) -> tuple[str, ...]:
        """Return the templates of the inputs; the first is that of evaluation."""
        return (self.inputs, *self.instructions)

    @property
    def optional_roles(self) -> tuple[str, ...]:
        """Roles whose value may be null."""
        return self.objective.optional_roles if isinstance(self.objective, Supervised) else ()

    def text(self, record: Record, form: int = 0) -> tuple[str, str]:
        """Return the inputs, by the template of this number, and the targets of a record in text form."""
        if isinstance(self.objective, Supervised):
            targets = self.objective.to_text(record)
        else:
            targets = self._references(record)[0]
        return _fill(self.input_forms[form], record), targets

    def reference(self, record: Record) -> Answer:
        """Return what metrics compare with; a list if any of several targets is right."""
        if isinstance(self.objective, Supervised):
            return self.objective.reference(record)
        references = self._references(record)
        if self._has_several_targets(record):
            return references
        return references[0]

    def _references(self, record: Record) -> list[str]:
        """Return all right targets of a record in text form, at least one.

        Raises:
            ValueError: the record's list of targets is empty; the caller names the record.
        """
        if self._has_several_targets(record):
            (role,) = roles_in(self.targets)
            if not record[role]:
                raise ValueError(f"its list {role!r}, the target, is empty; give one or more")
            return [str(target) for target in record[role]]
        return [_fill(self.targets, record)]

    def _has_several_targets(self, record: Record) -> bool:
        """Return True if the template is a role alone whose value is a list."""
        role = PLACEHOLDER.fullmatch(self.targets)
        return role is not None and isinstance(record[role[1]], list)


def roles_in(template: str) -> set[str]:
    """Return the roles that a template names."""
    return set(PLACEHOLDER.findall(template))


def _fill(template: str, record: Record) -> str:
    """Replace each role in the template by its value in the record; the values of a list are joined by commas."""

    def value(match: re.Match[str]) -> str:
        role_value = record[match[1]]
        if isinstance(role_value, list):
            return ", ".join(map(str, role_value))
        return str(role_value)

    return PLACEHOLDER.sub(value, template)


def names() -> list[str]:
    """Return the names of the shipped tasks."""
    return sorted(path.stem for path in TASKS.glob("*.yaml"))


def find_task(name: str) -> TaskSpec:
    """Return a shipped task by its name, or the task of a YAML file by its path.

    Raises:
        UserError: there is no such task; the message names the nearest ones.
    """
    path = TASKS / f"{name}.yaml"
    if _is_path(name):
        path = Path(name)
        if not path.is_file():
            raise UserError(f"tasks: there is no file {name} (looked from {Path.cwd()})")
    if not path.is_file():
        nearest = difflib.get_close_matches(name, names(), n=3)
        hint = f"there are {', '.join(names())}."
        if nearest:
            hint = f"did you mean {' or '.join(nearest)}?"
        raise UserError(f"tasks: no task {name!r}; {hint} A YAML file of your own is named by its path")
    return schema.validate(TaskSpec, schema.read(TaskSpec, path))


def short_name(name: str) -> str:
    """Return a task's name in metrics and files."""
    if _is_path(name):
        return Path(name).stem
    return name


def _is_path(name: str) -> bool:
    return name.endswith((".yaml", ".yml"))


def objective_settings(task_names: tuple[str, ...], form: TaskForm, family: str) -> dict[str, dict[str, object]]:
    """Return the objective of a run that is trained on these tasks, as a config writes it.

    Raises:
        UserError: several tasks that are not in text form, or a task that this family cannot learn.
    """
    tasks = [find_task(name) for name in task_names]
    is_text_form = form == "text" or (form == "auto" and family != "encoder")
    if any(_trains_probabilities(task) for task in tasks):
        is_text_form = False
    if is_text_form or all(isinstance(task.objective, TextToText) for task in tasks):
        _check_text_forms(task_names, tasks, family)
        return {"text_to_text": {"target_len": max(task.target_len for task in tasks)}}
    if len(tasks) > 1:
        remedy = "name one" if family == "encoder" else "set task_form=text, or name one"
        raise UserError(f"tasks: several tasks are learnt together in text form alone; {remedy}")
    task = tasks[0]
    _check_roles_of_head(task_names[0], task)
    return {task.objective.name: task.objective.model_dump(mode="json")}


def _trains_probabilities(task: TaskSpec) -> bool:
    """Return whether a task is learnt by the model's own probabilities of tokens, in neither of the forms."""
    return isinstance(task.objective, Supervised) and not task.objective.uses_head


def _check_text_forms(task_names: tuple[str, ...], tasks: list[TaskSpec], family: str) -> None:
    """Refuse tasks without a text form."""
    without_text = [short_name(name) for name, task in zip(task_names, tasks, strict=True) if not task.inputs]
    if without_text:
        remedy = "take an encoder or a decoder, which have a head"
        if family == "decoder":
            remedy = "set task_form=head"
        raise UserError(f"tasks: {', '.join(without_text)} has no text form (`inputs`); {remedy}")


def _check_roles_of_head(name: str, task: TaskSpec) -> None:
    """Refuse a task whose inputs have roles that its objective does not show to the model."""
    shown = {"second"}
    if isinstance(task.objective, Supervised):
        shown |= set(task.objective.roles)
    unseen = roles_in(task.inputs) - shown
    if unseen:
        raise UserError(
            f"tasks: a head would not see {', '.join(sorted(unseen))} of {short_name(name)}; it is learnt as text, "
            "by a decoder or an encoder_decoder (task_form=text)"
        )
