"""Describe every setting of a config class, for `--help-config` and for messages about unknown keys."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import get_origin

from pydantic.fields import FieldInfo

from t5x_lite.schema.settings import Config, Declaration, OneOf, declarations


@dataclass(frozen=True)
class Explanation:
    """One setting: a line of `--help-config`."""

    key: str
    type: str
    default: str
    unit: str
    description: str


def explain(kind: type[Config], prefix: str = "") -> Iterator[Explanation]:
    """Yield every setting of a config class, those of components included, in the order of declaration."""
    for declaration in declarations(kind):
        key = f"{prefix}{declaration.key}"
        if declaration.group is not None:
            yield from explain(declaration.group, f"{key}.")
            continue
        yield _explain_setting(key, declaration)
        if declaration.one_of is not None:
            for name, component in declaration.one_of.kinds.items():
                yield from explain(component, f"{key}.{name}.")


def _explain_setting(key: str, declaration: Declaration) -> Explanation:
    field = declaration.field
    extra: dict[str, object] = {}
    if isinstance(field.json_schema_extra, dict):
        extra = dict(field.json_schema_extra)
    description = str(field.description)
    if extra.get("source"):
        description += f" [{extra['source']}]"
    if declaration.one_of is None:
        type_name = _name_type(field.annotation)
        default = _format_default(field)
    else:
        type_name = " | ".join(declaration.one_of.kinds)
        default = _format_default_component(field, declaration.one_of)
    return Explanation(key, type_name, default, str(extra.get("unit", "")), description)


def _name_type(annotation: object) -> str:
    if isinstance(annotation, str):  # a value of a Literal
        return annotation
    if annotation is type(None):
        return "null"
    if isinstance(annotation, type) and not hasattr(annotation, "__args__"):
        return annotation.__name__
    arguments = [argument for argument in getattr(annotation, "__args__", ()) if argument is not Ellipsis]
    if get_origin(annotation) is tuple:
        return "list of " + _name_type(arguments[0])
    names = [_name_type(argument) for argument in arguments]
    return " | ".join(names) or str(annotation)


def _format_default(field: FieldInfo) -> str:
    if field.is_required():
        return "required"
    if field.default is None:
        return "null"
    if isinstance(field.default, tuple):
        return f"[{', '.join(_format_item(item) for item in field.default)}]"
    return str(field.default)


def _format_item(item: object) -> str:
    if isinstance(item, str):
        return item
    return type(item).__name__


def _format_default_component(field: FieldInfo, one_of: OneOf) -> str:
    if field.is_required():
        return "required"
    return str(one_of.name_of(field.default))
