"""Describe every setting of a config class, for `--help-config` and for messages about unknown keys."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import groupby
from typing import Annotated, get_args, get_origin

from pydantic.fields import FieldInfo

from t5x_lite.schema.settings import Config, Declaration, OneOf, declarations

ITEM = "N"
"""The number of an item in the keys of explanations, such as `eval.evaluators.N.few_shot.tasks`."""
TYPE_WIDTH = 14
"""Characters of the column of types in `--help-config`."""
DEFAULT_WIDTH = 10
"""Characters of the column of defaults in `--help-config`, which few are longer than."""


@dataclass(frozen=True)
class Explanation:
    """One setting: a line of `--help-config`."""

    key: str
    type: str
    default: str
    unit: str
    description: str


def explain(kind: type[Config], prefix: str = "") -> Iterator[Explanation]:
    """Yield every setting of a config class, those of components included, in the order of declaration.

    The items of a list are explained once, with `N` in the place of their number.
    """
    for declaration in declarations(kind):
        key = f"{prefix}{declaration.key}"
        if declaration.group is None or declaration.is_list:
            yield _explain_setting(key, declaration)
        if declaration.is_list:
            key += f".{ITEM}"
        if declaration.group is not None:
            yield from explain(declaration.group, f"{key}.")
        if declaration.one_of is not None:
            for name, component in declaration.one_of.kinds.items():
                yield from explain(component, f"{key}.{name}.")


def print_explained(kind: type[Config]) -> None:
    """Print a line for every setting of a config class: key, type, default, description, source and unit.

    The keys of one group are as wide as the longest. Choices are at the end of the line.
    """
    for _, group in groupby(explain(kind), key=lambda setting: setting.key.partition(".")[0]):
        settings = list(group)
        width = max(len(setting.key) for setting in settings)
        for setting in settings:
            print(_explanation_line(setting, width))


def _explanation_line(setting: Explanation, key_width: int) -> str:
    """Return the line of a setting, whose key is padded to a width."""
    type_name = setting.type
    ending = f" ({setting.unit})" if setting.unit else ""
    if len(type_name) > TYPE_WIDTH:
        list_words = "list of "
        ending += f": {type_name.removeprefix(list_words)}"
        type_name = "list" if type_name.startswith(list_words) else "choice"
    return (
        f"{setting.key:<{key_width}}  {type_name:<{TYPE_WIDTH}}  {setting.default:<{DEFAULT_WIDTH}}  "
        f"{setting.description}{ending}"
    )


def _explain_setting(key: str, declaration: Declaration) -> Explanation:
    field = declaration.field
    extra: dict[str, object] = {}
    if isinstance(field.json_schema_extra, dict):
        extra = dict(field.json_schema_extra)
    description = str(field.description)
    if extra.get("source"):
        description += f" [{extra['source']}]"
    type_name = _name_type(field.annotation)
    if declaration.one_of is not None:
        type_name = _name_components(field, declaration.one_of, is_list=declaration.is_list)
    default = _format_default(field, declaration.one_of)
    return Explanation(key, type_name, default, str(extra.get("unit", "")), description)


def _name_components(field: FieldInfo, one_of: OneOf, *, is_list: bool) -> str:
    names = list(one_of.kinds)
    if type(None) in get_args(field.annotation):
        names.append("null")
    choices = " | ".join(names)
    if is_list:
        return "list of " + choices
    return choices


def _name_type(annotation: object) -> str:
    if isinstance(annotation, str):  # a value of a Literal
        return annotation
    if annotation is type(None):
        return "null"
    if isinstance(annotation, type) and not hasattr(annotation, "__args__"):
        return annotation.__name__
    if get_origin(annotation) in {dict, Mapping}:
        return f"mapping of names to {_name_type(get_args(annotation)[1])}"
    if get_origin(annotation) is Annotated:
        return _name_type(get_args(annotation)[0])
    arguments = [argument for argument in getattr(annotation, "__args__", ()) if argument is not Ellipsis]
    if get_origin(annotation) is tuple:
        return "list of " + _name_type(arguments[0])
    names = [_name_type(argument) for argument in arguments]
    return " | ".join(names) or str(annotation)


def _format_default(field: FieldInfo, one_of: OneOf | None) -> str:
    if field.is_required():
        return "required"
    if isinstance(field.default, tuple):
        return f"[{', '.join(_format_value(item, one_of) for item in field.default)}]"
    return _format_value(field.default, one_of).replace("\n", r"\n")  # a line each


def _format_value(value: object, one_of: OneOf | None) -> str:
    if value is None:
        return "null"
    if one_of is not None:
        return str(one_of.name_of(value))
    if isinstance(value, Config):
        return type(value).__name__
    if isinstance(value, bool):
        return str(value).lower()
    return str(value)
