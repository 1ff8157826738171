"""Fill the reference pages from the declarations of the package, when MkDocs builds the site.

A page asks for generated text by a comment on a line of its own:

* `<!-- settings: run model -->`: the settings of `model` in a class of `CLASSES`, with types, defaults and meanings;
* `<!-- components: attention -->`: a table of the entries of a registry of `REGISTRIES`;
* `<!-- commands -->`: the commands with their options;
* `<!-- configs -->`: the files in `configs`, with their first comment.
"""

import argparse
import inspect
import re
from collections.abc import Mapping
from pathlib import Path

import t5x_lite
from t5x_lite import schema
from t5x_lite.adapt import ADAPTATIONS
from t5x_lite.arguments import build_parser
from t5x_lite.command_parser import CommandParser
from t5x_lite.config import RunConfig
from t5x_lite.data.cleaning import CLEANING
from t5x_lite.data.tokenizer_config import TOKENIZERS
from t5x_lite.evaluate.demonstrations import DEMONSTRATIONS
from t5x_lite.evaluate.evaluators import EVALUATORS
from t5x_lite.models.attention.kinds import ATTENTION
from t5x_lite.models.experts.routers import ROUTERS
from t5x_lite.models.mixers import MIXERS
from t5x_lite.models.positions import POSITIONS
from t5x_lite.objectives import OBJECTIVES
from t5x_lite.schema import Config, Explanation
from t5x_lite.sweep.config import SweepConfig
from t5x_lite.tasks import TaskSpec
from t5x_lite.train.optimizers import OPTIMIZERS
from t5x_lite.train.schedules import SCHEDULES
from t5x_lite.train.trackers import TRACKERS
from t5x_lite.verifiers import VERIFIERS

REPOSITORY = Path(__file__).resolve().parents[2]
INSTALLATION = Path(t5x_lite.__file__).resolve().parents[1]
"""Folder of the package that is imported."""
CLASSES: dict[str, type[Config]] = {
    "run": RunConfig,
    "task": TaskSpec,
    "sweep": SweepConfig,
}
REGISTRIES: dict[str, Mapping[str, type[Config]]] = {
    "adaptations": ADAPTATIONS,
    "attention": ATTENTION,
    "cleaning": CLEANING,
    "demonstrations": DEMONSTRATIONS,
    "evaluators": EVALUATORS,
    "mixers": MIXERS,
    "objectives": OBJECTIVES,
    "optimizers": OPTIMIZERS,
    "positions": POSITIONS,
    "routers": ROUTERS,
    "schedules": SCHEDULES,
    "tokenizers": TOKENIZERS,
    "trackers": TRACKERS,
    "verifiers": VERIFIERS,
}
MARKER = re.compile(r"^<!-- (\w+)(?:: (.*?))? -->$", re.MULTILINE)
TABLE_HEAD = "| setting | type | default | meaning |\n|---|---|---|---|\n"


def on_page_markdown(markdown: str, **_: object) -> str:
    """Replace the comments of a page. MkDocs calls this for every page."""
    return MARKER.sub(_generate, markdown)


def _generate(match: re.Match[str]) -> str:
    name, argument = match[1], match[2] or ""
    generators = {"settings": settings, "components": components, "commands": commands, "configs": configs}
    if name not in generators:
        raise ValueError(f"no generated text is named {name!r}; there are {', '.join(generators)}")
    return generators[name](*argument.split())


def settings(class_name: str, *groups: str) -> str:
    """Return tables of settings. Settings of components follow in tables of their own."""
    explanations = list(schema.explain(CLASSES[class_name]))
    unknown = [group for group in groups if not any(_is_in_group(setting.key, group) for setting in explanations)]
    if unknown:
        raise ValueError(f"{class_name} has no settings {', '.join(unknown)}")
    sections = []
    for group in groups or [""]:
        selected = [setting for setting in explanations if _is_in_group(setting.key, group)]
        sections.append(_settings_of_group(group, selected))
    return "\n".join(sections)


def _is_in_group(key: str, group: str) -> bool:
    return not group or key == group or key.startswith(f"{group}.")


def _settings_of_group(group: str, selected: list[Explanation]) -> str:
    """Return the table of a group, then one for each component in it that has settings."""
    depth = len(group.split(".")) if group else 0
    main = []
    by_component: dict[str, list[Explanation]] = {}
    for setting in selected:
        parts = setting.key.split(".")
        if len(parts) <= depth + 1:
            main.append(setting)
        else:
            by_component.setdefault(".".join(parts[: depth + 1]), []).append(setting)
    text = ""
    if group:
        text += f"## `{group}`\n\n"
    if main:
        text += _table(main)
    for component, rows in by_component.items():
        text += f"\n### `{component}`\n\n" + _table(rows)
    return text


def _table(rows: list[Explanation]) -> str:
    lines = []
    for row in rows:
        meaning = row.description
        if row.unit:
            meaning += f" ({row.unit})"
        kinds = ", ".join(f"`{kind}`" for kind in row.type.split(" | "))
        lines.append(f"| `{row.key}` | {kinds} | `{row.default or '(empty)'}` | {_escape(meaning)} |\n")
    return TABLE_HEAD + "".join(lines)


def _escape(text: str) -> str:
    """Escape what Markdown tables and HTML would interpret, outside code."""
    pieces = text.split("`")
    for number in range(0, len(pieces), 2):
        pieces[number] = re.sub(r"([|*_<>\[\]])", r"\\\1", pieces[number])
    return "`".join(pieces).replace("\\<", "&lt;").replace("\\>", "&gt;")


def components(registry: str) -> str:
    """Return a table of the entries of a registry: name, file, first sentences of the docstring."""
    lines = ["| name | what it is | file |\n|---|---|---|\n"]
    for name, kind in REGISTRIES[registry].items():
        summary = (inspect.getdoc(kind) or "").split("\n\n")[0].replace("\n", " ")
        path = Path(inspect.getfile(kind)).relative_to(INSTALLATION)
        lines.append(f"| `{name}` | {_escape(summary)} | `{path}` |\n")
    return "".join(lines)


def commands() -> str:
    """Return the usage and the options of every command."""
    sections = []
    for name, parser in _subparsers().items():
        lines = [f"## `{name}`\n", f"{parser.description}\n", "| argument | meaning |\n|---|---|"]
        for action in parser._actions:
            if action.dest != "help":
                lines.append(f"| `{_spelling(action)}` | {_escape(_help_of(action))} |")
        if parser.late_epilog is not None:
            lines.append(f"\n```text\n{parser.late_epilog()}\n```")
        sections.append("\n".join(lines))
    return "\n\n".join(sections)


def _subparsers() -> dict[str, CommandParser]:
    """Return the parser of every command, by name."""
    for action in build_parser()._actions:
        if isinstance(action, argparse._SubParsersAction):
            return dict(action.choices)
    raise ValueError("the parser has no commands")


def _spelling(action: argparse.Action) -> str:
    metavar = action.metavar or action.dest.upper()
    if isinstance(metavar, tuple):
        metavar = " ".join(metavar)
    if not action.option_strings:
        return metavar if action.choices is None else " or ".join(map(str, action.choices))
    if action.nargs == 0:
        return action.option_strings[0]
    return f"{action.option_strings[0]} {metavar}"


def _help_of(action: argparse.Action) -> str:
    return (action.help or "").replace("%(default)s", str(action.default))


def configs() -> str:
    """Return a table of the shipped configs for each folder."""
    sections = []
    folder = REPOSITORY / "configs"
    for directory in [folder, *sorted(path for path in folder.iterdir() if path.is_dir())]:
        lines = [f"## `{directory.relative_to(REPOSITORY)}`\n", "| file | first comment |\n|---|---|"]
        for path in sorted(directory.glob("*.yaml")):
            lines.append(f"| `{path.name}` | {_escape(_first_comment(path))} |")
        sections.append("\n".join(lines))
    return "\n\n".join(sections)


def _first_comment(path: Path) -> str:
    """Return the first sentence of the comment at the top of a file, or of the task that it declares."""
    comment = ""
    for line in path.read_text(encoding="utf-8").splitlines():
        about = re.fullmatch(r'about: "?(.*?)"?', line)
        if about:
            return about[1]
        if not line.startswith("#"):
            break
        comment += line.removeprefix("#").strip() + " "
    return re.split(r"(?<=[.:])\s+(?=[A-Z]|bash|t5x)", comment.strip())[0].rstrip(":")
