"""Declare settings as typed fields.

A setting is a pydantic field with a description, a unit and a source. A *component* is a setting whose value is a
name, or a name with its own settings (see `OneOf`): `positions: rotary` or `positions: {rotary: {theta: 500000}}`.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from types import UnionType
from typing import Annotated, Any, ClassVar, Self, TypeAlias, get_args, get_origin

from pydantic import BaseModel, BeforeValidator, Field, GetCoreSchemaHandler, Strict, model_validator
from pydantic.fields import FieldInfo
from pydantic_core import core_schema

Settings: TypeAlias = dict[str, Any]
"""Nested settings before validation, as YAML holds them."""


class Config(
    BaseModel,
    frozen=True,
    extra="forbid",
    strict=True,
    allow_inf_nan=False,
    protected_namespaces=(),
    serialize_by_alias=True,
):
    """A group of settings: typed, frozen and complete. An unknown key is an error, and so are infinity and NaN.

    Class attributes:
        help_command: the command that lists the settings; empty for a group with few, which messages list.
    """

    help_command: ClassVar[str] = ""

    def problems(self) -> Iterator[str]:
        """Yield a message for each combination of valid settings that does not work."""
        yield from ()

    def _nul_problems(self) -> Iterator[str]:
        """Yield a message for each text with a NUL character, which no path, argument or file of text can have."""
        for name in type(self).model_fields:
            value = getattr(self, name)
            texts = value if isinstance(value, tuple) else (value,)
            if any(isinstance(text, str) and "\0" in text for text in texts):
                yield f"{name} has a NUL character"

    @model_validator(mode="after")
    def _reject_problems(self) -> Self:
        message = "; ".join((*self._nul_problems(), *self.problems()))
        if message:
            raise ValueError(message)
        return self


def setting(default: Any = ..., description: str = "", *, unit: str = "", source: str = "", **constraints: Any) -> Any:
    """Declare one setting.

    Args:
        default: its default; `...` makes it required.
        description: what it does.
        unit: unit of its value, such as `tokens`.
        source: publication that the setting or its default comes from.
        **constraints: limits that pydantic checks (`ge`, `gt`, `le`, `lt`, `min_length`).
    """
    return Field(default, description=description, json_schema_extra={"unit": unit, "source": source}, **constraints)


def _convert_integral_float(value: object) -> object:
    if isinstance(value, float) and value.is_integer():
        return int(value)
    return value


def _wrap_string(value: object) -> object:
    if isinstance(value, str):
        return (value,)
    return value


LARGEST_INT = 2**31 - 1
Int = Annotated[int, BeforeValidator(_convert_integral_float), Field(le=LARGEST_INT)]
"""An integer that an int32 can hold. Floats with an integral value, such as `1e5`, are accepted."""

Strings = Annotated[tuple[str, ...], Strict(False), BeforeValidator(_wrap_string)]
"""A list of strings. A single string is accepted as a list of one."""


def component_name(kinds: Mapping[str, type[Any]], component: object) -> str:
    """Return the name of a component in the registry of its kinds.

    Raises:
        KeyError: its class is not registered.
    """
    names = {kind: name for name, kind in kinds.items()}
    return names[type(component)]


@dataclass(frozen=True)
class OneOf:
    """Annotation of a setting whose value is one of several named components, each with its own settings.

    The setting accepts `name`, `{name: {settings}}` or an instance; null only if its type includes None. It is
    serialised as `{name: {settings}}`.

    `kinds` is a registry, such as `OBJECTIVES`. It is read when the class that has the setting is defined, so a new
    kind is one entry in the file of the registry. Entries that are added later count from `rebuild` on, which
    `plugins.load_plugins` calls for the components of other packages.
    """

    kinds: Mapping[str, type[Config]]

    def __get_pydantic_core_schema__(self, source: object, handler: GetCoreSchemaHandler) -> core_schema.CoreSchema:
        """Build the schema that pydantic calls for: a union whose tag is the component's name."""
        choices: dict[Any, core_schema.CoreSchema] = {}
        for name, kind in self.kinds.items():
            unwrap = partial(_unwrap_component, name)
            choices[name] = core_schema.no_info_before_validator_function(unwrap, handler.generate_schema(kind))
        union = core_schema.tagged_union_schema(
            choices,
            discriminator=self.name_of,
            custom_error_type="not_a_kind",
            custom_error_message="expected one of " + ", ".join(self.kinds) + ", or {name: {its settings}}",
            serialization=core_schema.plain_serializer_function_ser_schema(self._serialise),
        )
        if type(None) in get_args(source):
            return core_schema.nullable_schema(union)
        return union

    def name_of(self, value: object) -> str | None:
        """Return the name of the component that a value selects; None if it selects none."""
        if isinstance(value, Config):
            return component_name(self.kinds, value) if type(value) in self.kinds.values() else None
        selected = value
        if isinstance(value, Mapping) and len(value) == 1:
            selected = next(iter(value))
        if isinstance(selected, str) and selected in self.kinds:
            return selected
        return None

    def _serialise(self, value: Config) -> Settings:
        return {str(self.name_of(value)): value.model_dump(mode="json")}


def _unwrap_component(name: str, value: object) -> object:
    """Return the settings in `name` or `{name: settings}`. Any other value is returned unchanged."""
    if value == name:
        return {}
    if not isinstance(value, Mapping):
        return value
    settings = value[name]
    if settings is None:
        return {}
    return settings


@dataclass(frozen=True)
class Declaration:
    """A field of a `Config`, as YAML sees it.

    Attributes:
        key: its key in YAML.
        field: pydantic's description of it.
        group: the nested group of settings that it holds, if it holds one, or that each item of its list is.
        one_of: the components to choose from, if it is a component or a list of components.
        is_list: its value is a list of groups or components, of any length.
    """

    key: str
    field: FieldInfo
    group: type[Config] | None
    one_of: OneOf | None
    is_list: bool = False


def declarations(kind: type[Config]) -> Iterator[Declaration]:
    """Yield the fields of a config class in the order of their declaration."""
    for attribute, field in kind.model_fields.items():
        is_list = get_origin(field.annotation) is tuple
        annotation: object = field.annotation
        metadata = tuple(field.metadata)
        if is_list:
            annotation = get_args(field.annotation)[0]
            metadata = getattr(annotation, "__metadata__", ())
        one_of = _find_one_of(metadata)
        group = None
        if one_of is None:
            group = _find_group(annotation)
        holds_settings = one_of is not None or group is not None
        yield Declaration(field.alias or attribute, field, group, one_of, is_list and holds_settings)


def _find_one_of(metadata: tuple[object, ...]) -> OneOf | None:
    for annotation in metadata:
        if isinstance(annotation, OneOf):
            return annotation
    return None


def _find_group(annotation: object) -> type[Config] | None:
    alternatives: tuple[object, ...] = (annotation,)
    if isinstance(annotation, UnionType):
        alternatives = get_args(annotation)
    for alternative in alternatives:
        if isinstance(alternative, type) and issubclass(alternative, Config):
            return alternative
    return None


def flatten(config: Config) -> Settings:
    """Return every setting as `{dotted key: plain value}`, the form in which configs are compared."""
    return dict(dotted(config.model_dump(mode="json")))


def differences(old: Config, new: Config) -> dict[str, tuple[Any, Any]]:
    """Return the settings that differ, as `{dotted key: (old, new)}`; of components of two kinds, these alone."""
    return dict(_differences(old.model_dump(mode="json"), new.model_dump(mode="json"), ""))


def _differences(old: Mapping[str, Any], new: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, tuple[Any, Any]]]:
    for key in sorted(old.keys() | new.keys()):
        old_value = old.get(key)
        new_value = new.get(key)
        if old_value == new_value:
            continue
        old_kind = _kind(old_value)
        new_kind = _kind(new_value)
        if isinstance(old_value, Mapping) and isinstance(new_value, Mapping) and old_kind == new_kind:
            yield from _differences(old_value, new_value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", (old_kind or old_value, new_kind or new_value)


def _kind(value: Any) -> str | None:
    """Return the name of a component, which is written as `{name: its settings}`; None for what is none."""
    if isinstance(value, Mapping) and len(value) == 1:
        ((name, settings),) = value.items()
        return name if isinstance(settings, Mapping) else None
    return None


def dotted(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield the leaves of nested settings with their dotted keys. An empty mapping is a leaf."""
    for key, value in values.items():
        if isinstance(value, Mapping) and value:
            yield from dotted(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value
