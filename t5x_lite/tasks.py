"""Tasks: where records with labels come from, what is learnt from them, and how it is measured. One YAML file each.

The shipped ones are `configs/tasks/*.yaml`; any other is named by its path. No JAX here.
"""

import difflib
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from t5x_lite import schema
from t5x_lite.errors import UserError
from t5x_lite.objectives import OBJECTIVES, Objective, TextToText
from t5x_lite.objectives.supervised import Record, Supervised
from t5x_lite.schema import Config, Int, OneOf, Strings, setting

TASKS = Path(__file__).resolve().parents[1] / "configs" / "tasks"
PLACE = re.compile(r"\{(\w+)\}")
TaskForm = Literal["auto", "head", "text"]


class Splits(Config):
    """Names of a TFDS builder's splits."""

    train: str = setting("train", "trained on")
    validation: str = setting("validation", "evaluated")


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
    targets: str = setting("", "text form of text_to_text: the targets, roles in braces; else the label as a text")
    target_len: Int = setting(16, "text form: longest targets, EOS included", unit="tokens", ge=2)
    metrics: Strings = setting(..., "names in evaluate/metrics.py", min_length=1)

    def problems(self) -> Iterator[str]:
        """An objective without what it needs, or a role that no column has."""
        own = self.objective
        if isinstance(own, TextToText) and not (self.inputs and self.targets):
            yield "objective text_to_text needs `inputs` and `targets`"
        if not isinstance(own, Supervised | TextToText):
            yield f"objective {own.name} learns from running text, not from records"
        unknown = set(PLACE.findall(self.inputs + self.targets)) - set(self.columns) - {"choices"}
        missing = set(getattr(own, "roles", ())) - set(self.columns)
        if unknown or missing:
            yield f"`columns` has no role {', '.join(sorted(unknown | missing))}"

    def text(self, record: Record) -> tuple[str, str]:
        """Inputs and targets of a record in text form."""
        own, reference = self.objective, self.reference(record)
        targets = own.to_text(record) if isinstance(own, Supervised) else reference
        return _filled(self.inputs, record), targets[0] if isinstance(targets, list) else targets

    def reference(self, record: Record) -> Any:
        """What metrics compare with; a list where any of several targets is right."""
        if isinstance(self.objective, Supervised):
            return self.objective.reference(record)
        role = PLACE.fullmatch(self.targets)
        several = role is not None and isinstance(record[role[1]], list)
        return [str(one) for one in record[role[1]]] if role and several else _filled(self.targets, record)


def _filled(template: str, record: Record) -> str:
    def value(found: re.Match[str]) -> str:
        own = record[found[1]]
        return ", ".join(map(str, own)) if isinstance(own, list) else str(own)

    return PLACE.sub(value, template)


def names() -> list[str]:
    """The shipped tasks."""
    return sorted(path.stem for path in TASKS.glob("*.yaml"))


def find_task(name: str) -> TaskSpec:
    """A shipped task by its name, or the task of a YAML file.

    Raises:
        UserError: there is none, with the nearest names.
    """
    path = Path(name) if name.endswith((".yaml", ".yml")) else TASKS / f"{name}.yaml"
    if not path.is_file():
        near = difflib.get_close_matches(name, names(), n=3)
        hint = f"did you mean {' or '.join(near)}?" if near else f"there are {', '.join(names())}."
        raise UserError(f"tasks: no task {name!r}; {hint} A YAML file of your own is named by its path")
    return schema.validate(TaskSpec, schema.read(TaskSpec, path))


def short_name(name: str) -> str:
    """A task's name in metrics and files."""
    return Path(name).stem if name.endswith((".yaml", ".yml")) else name


def objective_settings(tasks: tuple[str, ...], form: TaskForm, family: str) -> dict[str, Any]:
    """The objective, as a config has it, of a run that is trained on these tasks.

    Raises:
        UserError: several tasks that are not in text form; one that this family cannot learn.
    """
    found = [find_task(name) for name in tasks]
    as_text = form == "text" or (form == "auto" and family != "encoder")
    if as_text or all(isinstance(task.objective, TextToText) for task in found):
        unwritten = [short_name(name) for name, task in zip(tasks, found, strict=True) if not task.inputs]
        if unwritten:
            remedy = "set task_form=head" if family == "decoder" else "take an encoder or a decoder, which have a head"
            raise UserError(f"tasks: {', '.join(unwritten)} has no text form (`inputs`); {remedy}")
        return {"text_to_text": {"target_len": max(task.target_len for task in found)}}
    if len(found) > 1:
        raise UserError("tasks: several tasks are learnt together in text form alone; set task_form=text, or name one")
    own = found[0].objective
    unseen = set(PLACE.findall(found[0].inputs)) - {*getattr(own, "roles", ()), "second"}
    if unseen:
        raise UserError(
            f"tasks: a head would not see {', '.join(sorted(unseen))} of {short_name(tasks[0])}; it is learnt as text, "
            "by a decoder or an encoder_decoder (task_form=text)"
        )
    return {own.name: own.model_dump(mode="json")}
