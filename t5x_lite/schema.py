"""How a typed configuration is declared, read from YAML, overridden and explained.

`config.py` says which settings exist; this file knows none of them. A setting is a pydantic field with a description,
a unit and a source; a *component* (`OneOf`) is a setting whose value is a name, or one name with its own settings:
`positions: rotary` or `positions: {rotary: {theta: 500000}}`.
"""

import difflib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Self, TypeVar, get_args

import yaml
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from pydantic import BaseModel, BeforeValidator, Field, GetCoreSchemaHandler, Strict, ValidationError, model_validator
from pydantic.fields import FieldInfo
from pydantic_core import core_schema

from t5x_lite.errors import UserError


class Config(BaseModel, frozen=True, extra="forbid", strict=True, protected_namespaces=(), serialize_by_alias=True):
    """A group of settings: typed, frozen, complete; an unknown key is an error."""

    def faults(self) -> Iterator[str]:
        """What is wrong with settings that are each as they should be."""
        yield from ()

    @model_validator(mode="after")
    def _is_right(self) -> Self:
        if faults := "; ".join(self.faults()):
            raise ValueError(faults)
        return self


ConfigT = TypeVar("ConfigT", bound=Config)


def setting(default: Any = ..., description: str = "", *, unit: str = "", source: str = "", **constraints: Any) -> Any:
    """Declare one setting: its default (`...` when it must be given), what it does, its unit, where it is published.

    `constraints` are pydantic's (`ge`, `gt`, `le`, `lt`, `min_length`).
    """
    return Field(default, description=description, json_schema_extra={"unit": unit, "source": source}, **constraints)


def _whole(value: Any) -> Any:
    return int(value) if isinstance(value, float) and value.is_integer() else value


Int = Annotated[int, BeforeValidator(_whole)]
"""A whole number; `1e5` is one too."""
Strings = Annotated[tuple[str, ...], Strict(False), BeforeValidator(lambda v: (v,) if isinstance(v, str) else v)]
"""A list of strings; a single string stands for a list of one."""


@dataclass(frozen=True)
class OneOf:
    """Marks a setting whose value is one of several named components, each with settings of its own.

    Accepts `name`, `{name: {settings}}` or an instance, and null where None is of its type; is written back as
    `{name: {settings}}`.
    """

    kinds: Mapping[str, type[Config]]

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> core_schema.CoreSchema:
        choices: dict[Any, Any] = {
            name: core_schema.no_info_before_validator_function(partial(_body_of, name), handler.generate_schema(kind))
            for name, kind in self.kinds.items()
        }
        union = core_schema.tagged_union_schema(
            choices,
            discriminator=self._name_of,
            custom_error_type="not_a_kind",
            custom_error_message="expected one of " + ", ".join(self.kinds) + ", or {name: {its settings}}",
            serialization=core_schema.plain_serializer_function_ser_schema(self._dump),
        )
        return core_schema.nullable_schema(union) if type(None) in get_args(source) else union

    def _name_of(self, value: Any) -> str | None:
        if isinstance(value, Config):
            return next((name for name, kind in self.kinds.items() if type(value) is kind), None)
        name = next(iter(value)) if isinstance(value, Mapping) and len(value) == 1 else value
        return name if isinstance(name, str) and name in self.kinds else None

    def _dump(self, value: Config) -> dict[str, Any]:
        return {str(self._name_of(value)): value.model_dump(mode="json")}


def _body_of(name: str, value: Any) -> Any:
    if isinstance(value, Mapping):
        return {} if value[name] is None else value[name]
    return {} if value == name else value


def _one_of(field: FieldInfo) -> OneOf | None:
    return next((m for m in field.metadata if isinstance(m, OneOf)), None)


def _settings_of(kind: type[Config]) -> Iterator[tuple[str, FieldInfo, Mapping[str, type[Config]]]]:
    """Each field of `kind` with the components it may hold: named ones for `OneOf`, `{"": group}` for a group."""
    for attribute, field in kind.model_fields.items():
        name, choice = field.alias or attribute, _one_of(field)
        parts = field.annotation.__args__ if isinstance(field.annotation, UnionType) else (field.annotation,)
        groups = [part for part in parts if isinstance(part, type) and issubclass(part, Config)]
        yield name, field, choice.kinds if choice else {"": groups[0]} if groups else {}


def merge(kind: type[Config] | None, old: Any, new: Any) -> Any:
    """`new` over `old`; a component of another name replaces the old one instead of joining it."""
    if not (isinstance(old, Mapping) and isinstance(new, Mapping)):
        return new
    fields = {name: kinds for name, _, kinds in _settings_of(kind)} if kind else {}
    merged = dict(old)
    for key, value in new.items():
        kinds = fields.get(key, {})
        if not kinds or "" in kinds:
            merged[key] = merge(kinds.get(""), old.get(key), value)
        elif isinstance(value, Mapping) and isinstance(old.get(key), Mapping) and set(value) == set(old[key]):
            merged[key] = {name: merge(kinds.get(name), old[key][name], body) for name, body in value.items()}
        else:
            merged[key] = value
    return merged


@dataclass(frozen=True)
class Sources:
    """Settings as read, with the place (`file:line`, or `command line`) where each dotted key was last set."""

    values: dict[str, Any]
    places: dict[str, str]

    def place(self, key: str) -> str:
        """Where `key`, or the nearest group above it, was set."""
        while key and key not in self.places:
            key = key.rpartition(".")[0]
        return self.places.get(key, "")


def _lines(node: yaml.Node | None, prefix: str = "") -> Iterator[tuple[str, int]]:
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            dotted = f"{prefix}{key.value}"
            yield dotted, key.start_mark.line + 1
            yield from _lines(value, dotted + ".")


def _read_yaml(path: Path) -> tuple[dict[str, Any], dict[str, str]]:
    try:
        text = path.read_text(encoding="utf-8")
        values = OmegaConf.to_container(OmegaConf.create(text if text.strip() else "{}"), resolve=True)
        places = {key: f"{path}:{line}" for key, line in _lines(yaml.compose(text, Loader=yaml.SafeLoader))}
    except FileNotFoundError:
        hint = _meant(path.name, (p.name for p in path.parent.glob("*.yaml")), f"{path.parent}/")
        raise UserError(f"{path}: no such config file{hint}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read as a YAML config: {error}") from None
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else "?"
        raise UserError(f"{path}:{line}: not valid YAML: {error.problem}") from None
    except (yaml.YAMLError, OmegaConfBaseException) as error:
        raise UserError(f"{path}: not valid YAML: {str(error).splitlines()[0]}") from None
    if not isinstance(values, dict):
        raise UserError(f"{path}: expected a mapping of settings at the top, found {type(values).__name__}")
    return {str(key): value for key, value in values.items()}, places


def _meant(given: Any, names: Iterable[str], before: str = "", after: str = "", cutoff: float = 0.6) -> str:
    """The nearest of some names as a question; empty where none is near."""
    near = difflib.get_close_matches(str(given), list(names), n=1, cutoff=cutoff)
    return f"; did you mean {before}{near[0]}{after}?" if near else ""


def _load_file(kind: type[Config], path: Path, above: tuple[Path, ...] = ()) -> Sources:
    if path.resolve() in above:
        raise UserError(f"{above[-1]}: base {path} includes itself; remove it from `base`")
    values, places = _read_yaml(path)
    bases = values.pop("base", None) or []
    merged = Sources({}, {})
    for base in [bases] if isinstance(bases, str) else bases:
        if not isinstance(base, str):
            raise UserError(f"{places['base']}: `base` takes file names relative to this file, found {base!r}")
        found = _load_file(kind, path.parent / base, (*above, path.resolve()))
        merged = Sources(merge(kind, merged.values, found.values), {**merged.places, **found.places})
    return Sources(merge(kind, merged.values, values), {**merged.places, **places})


def _nested(override: str) -> tuple[str, dict[str, Any]]:
    key, equals, _ = override.removeprefix("--").partition("=")
    if not equals or not key:
        raise UserError(f"command line: {override!r} is not an override; write dotted.key=value")
    try:
        parsed = OmegaConf.from_dotlist([override.removeprefix("--")])
        return key, OmegaConf.to_container(parsed, resolve=True)  # type: ignore[return-value]
    except (OmegaConfBaseException, yaml.YAMLError, ValueError) as error:
        raise UserError(f"command line: {override!r}: {str(error).splitlines()[0]}") from None


def read(kind: type[Config], path: str | Path, overrides: Sequence[str] = ()) -> Sources:
    """Read a YAML file with its `base:` files and apply `dotted.key=value` overrides (a leading `--` is accepted)."""
    sources = _load_file(kind, Path(path))
    values, places = sources.values, dict(sources.places)
    for override in overrides:
        key, nested = _nested(override)
        values = merge(kind, values, nested)
        places[key] = "command line"
    return Sources(values, places)


def validate(kind: type[ConfigT], sources: Sources) -> ConfigT:
    """The typed config, or a UserError whose one line names every fault, its place and the nearest valid spelling."""
    try:
        return kind.model_validate(sources.values)
    except ValidationError as error:
        faults = [_explain(kind, sources, fault) for fault in error.errors(include_url=False)]
        raise UserError("; ".join(dict.fromkeys(faults))) from None


def _explain(kind: type[Config], sources: Sources, fault: Any) -> str:
    loc = [str(part) for part in fault["loc"]]
    key = ".".join(loc)
    place = sources.place(key)
    where = f"{place}: " if place else ""
    given = fault["input"]
    match fault["type"]:
        case "extra_forbidden":
            above = key.removesuffix(loc[-1])
            names = (s.key.removeprefix(above).partition(".")[0] for s in explain(kind) if s.key.startswith(above))
            hint = _meant(loc[-1], names, f"`{above}", "`", cutoff=0.5)
            listed = f"; `--help-config` lists the keys{f' of `{above[:-1]}`' if above else ''}"
            return f"{where}unknown key `{key}`{hint or listed}"
        case "missing":
            return f"{where}`{key}` must be given"
        case "value_error":
            return f"{where}{f'`{key}`: ' if key else ''}{fault['ctx']['error']}"
        case "literal_error":
            expected = fault["ctx"]["expected"].replace("'", "")
            hint = _meant(given, expected.replace(" or ", ", ").split(", "))
            return f"{where}`{key}` is {given!r}, expected {expected}{hint}"
        case "not_a_kind":
            names = fault["msg"].removeprefix("expected one of ").split(", ")
            name = next(iter(given), "") if isinstance(given, dict) else given
            return f"{where}`{key}` is {given!r}: {fault['msg']}{_meant(name, names)}"
        case _:
            message = fault["msg"][0].lower() + fault["msg"][1:]
            return f"{where}`{key}` is {given!r}: {message}"


def flatten(config: Config) -> dict[str, Any]:
    """Every setting as `dotted.key → plain value`: the form in which two configs are compared."""
    return dict(dotted(config.model_dump(mode="json")))


def dotted(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Nested settings as dotted keys and values."""
    for key, value in values.items():
        if isinstance(value, Mapping) and value:
            yield from dotted(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


@dataclass(frozen=True)
class Explained:
    """One line of `--help-config`."""

    key: str
    type: str
    default: str
    unit: str
    description: str


def explain(kind: type[Config], prefix: str = "") -> Iterator[Explained]:
    """Every setting below `kind`, components included, in the order of declaration."""
    for name, field, kinds in _settings_of(kind):
        key = f"{prefix}{name}"
        if "" in kinds:
            yield from explain(kinds[""], key + ".")
            continue
        extra = field.json_schema_extra if isinstance(field.json_schema_extra, dict) else {}
        type_name = " | ".join(kinds) if kinds else _type_name(field.annotation)
        source = f" [{extra['source']}]" if extra.get("source") else ""
        yield Explained(key, type_name, _default(field), str(extra.get("unit", "")), f"{field.description}{source}")
        for component, group in kinds.items():
            yield from explain(group, f"{key}.{component}.")


def _type_name(annotation: Any) -> str:
    if isinstance(annotation, type) and not hasattr(annotation, "__args__"):
        return "null" if annotation is type(None) else annotation.__name__
    args = [arg for arg in getattr(annotation, "__args__", ()) if arg is not Ellipsis]
    if getattr(annotation, "__origin__", None) is tuple:
        return "list of " + _type_name(args[0])
    return " | ".join(arg if isinstance(arg, str) else _type_name(arg) for arg in args) or str(annotation)


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return "required"
    value = field.default
    if choice := _one_of(field):
        return str(choice._name_of(value))
    if isinstance(value, tuple):
        return str([item if isinstance(item, str) else type(item).__name__ for item in value]).replace("'", "")
    return "null" if value is None else str(value)
