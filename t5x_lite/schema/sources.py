"""Read settings from YAML files and command-line overrides, and remember where each was set."""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from t5x_lite.config_files import find_config
from t5x_lite.errors import UserError, one_line
from t5x_lite.schema.settings import Config, Declaration, Settings, declarations

COMMAND_LINE = "command line"
"""Location of a setting that the command line has set; see `Sources`."""


@dataclass(frozen=True)
class Sources:
    """Settings before validation.

    Attributes:
        values: nested settings.
        locations: where each dotted key was last set: `file:line` or `command line`.
    """

    values: Settings
    locations: dict[str, str]

    @classmethod
    def of_command_line(cls, values: Settings) -> "Sources":
        """Return settings that the command line has set."""
        return cls(values, {"": COMMAND_LINE})

    def location_of(self, key: str) -> str:
        """Return where `key`, or the nearest group above it, was set; an empty string if that is unknown."""
        while key and key not in self.locations:
            key = key.rpartition(".")[0]
        return self.locations.get(key, "")


def read(kind: type[Config], path: str | Path, overrides: Sequence[str] = ()) -> Sources:
    """Read a config and the configs named in its `base`, and apply `dotted.key=value` overrides.

    A leading `--` of an override is ignored.

    Args:
        kind: the class of the config.
        path: a file, or the name of a shipped config (see `find_config`).
        overrides: settings that replace those of the files.

    Raises:
        UserError: a file cannot be read, or an override is malformed.
    """
    sources = _BaseReader(kind).read(find_config(path))
    values = sources.values
    locations = dict(sources.locations)
    named: dict[str, str] = {}
    for override in overrides:
        key, nested = _parse_override(override)
        _check_component(key, named)
        named[key] = override.partition("=")[2]
        values = merge(kind, values, nested)
        locations[key] = COMMAND_LINE
    return Sources(values, locations)


def _check_component(key: str, named: Mapping[str, str]) -> None:
    """Refuse a setting of another component than the one that an earlier override names.

    Args:
        key: of an override, such as `adapt.method.lora.rank`.
        named: earlier overrides, such as `adapt.method`, with what they set.

    Raises:
        UserError: they name another component.
    """
    parts = key.split(".")
    for length in range(1, len(parts)):
        group = ".".join(parts[:length])
        component = parts[length]
        name = named.get(group)
        if name is not None and name.isidentifier() and name != component:
            raise UserError(f"command line: `{key}` contradicts `{group}={name}`; remove one of them")


def merge_overrides(kind: type[Config], overrides: Sequence[str]) -> Settings:
    """Return the settings of `dotted.key=value` overrides as the nested settings of a file.

    Raises:
        UserError: an override is malformed.
    """
    values: Settings = {}
    for override in overrides:
        _, nested = _parse_override(override)
        values = merge(kind, values, nested)
    return values


def merge(kind: type[Config] | None, old: Any, new: Any) -> Any:
    """Return `old` updated with `new`, group by group.

    A component with another name replaces the old one; settings of two different components are never mixed.
    """
    if not (isinstance(old, Mapping) and isinstance(new, Mapping)):
        return new
    declared: dict[str, Declaration] = {}
    if kind is not None:
        declared = {declaration.key: declaration for declaration in declarations(kind)}
    merged = dict(old)
    for key, value in new.items():
        merged[key] = _merge_setting(declared.get(key), old.get(key), value)
    return merged


def _merge_setting(declaration: Declaration | None, old: object, new: object) -> object:
    if declaration is None:
        return merge(None, old, new)
    if declaration.one_of is None:
        return merge(declaration.group, old, new)
    if not (isinstance(old, Mapping) and isinstance(new, Mapping) and set(old) == set(new)):
        return new
    merged = {}
    for name, settings in new.items():
        merged[name] = merge(declaration.one_of.kinds.get(name), old[name], settings)
    return merged


class _BaseReader:
    """Reads files over their bases, each file once: files that share bases would take exponential time otherwise."""

    def __init__(self, kind: type[Config]) -> None:
        self._kind = kind
        self._finished: dict[Path, Sources] = {}

    def read(self, path: Path, including: tuple[Path, ...] = ()) -> Sources:
        """Read a file over its bases; `including` are the files that led to it."""
        resolved_path = path.resolve()
        if resolved_path in including:
            raise UserError(f"{including[-1]}: base {path} includes itself; remove it from `base`")
        if resolved_path not in self._finished:
            self._finished[resolved_path] = self._read_over_bases(path, (*including, resolved_path))
        return self._finished[resolved_path]

    def _read_over_bases(self, path: Path, including: tuple[Path, ...]) -> Sources:
        file = _read_yaml(path)
        values = dict(file.values)
        bases = values.pop("base", None) or []
        if isinstance(bases, str):
            bases = [bases]
        merged_values: Settings = {}
        locations: dict[str, str] = {}
        for base in bases:
            if not isinstance(base, str):
                location = file.locations["base"]
                raise UserError(
                    f"{location}: `base` takes files relative to this one, or names of shipped configs; found {base!r}"
                )
            inherited = self.read(find_config(base, path.parent), including)
            merged_values = merge(self._kind, merged_values, inherited.values)
            locations |= inherited.locations
        return Sources(merge(self._kind, merged_values, values), locations | file.locations)


def _read_yaml(path: Path) -> Sources:
    try:
        if path.exists() and not path.is_file():  # reading a pipe or device may never end
            raise UserError(f"{path}: is not a file; expected a YAML config")
        text = path.read_text(encoding="utf-8")
        if not text.strip():
            text = "{}"
        document = yaml.compose(text, Loader=yaml.SafeLoader)
        if isinstance(document, yaml.ScalarNode):
            raise UserError(f"{path}: expected a mapping of settings at the top, found {document.value[:40]!r}")
        values = OmegaConf.to_container(OmegaConf.create(text), resolve=True)
    except RecursionError:
        raise UserError(f"{path}: cannot be read as a YAML config: it is nested too deeply") from None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read as a YAML config: {error}") from None
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        line = mark.line + 1 if mark else "?"
        raise UserError(f"{path}:{line}: not valid YAML: {error.problem}") from None
    except (yaml.YAMLError, OmegaConfBaseException) as error:
        raise UserError(f"{path}: not valid YAML: {one_line(error)}") from None
    if not isinstance(values, dict):
        raise UserError(f"{path}: expected a mapping of settings at the top, found {type(values).__name__}")
    locations = {key: f"{path}:{line}" for key, line in _key_lines(document)}
    return Sources({str(key): value for key, value in values.items()}, locations)


def _key_lines(node: yaml.Node | None, prefix: str = "") -> Iterator[tuple[str, int]]:
    """Yield each dotted key of a YAML document with its line, counted from 1."""
    if not isinstance(node, yaml.MappingNode):
        return
    for key, value in node.value:
        dotted_key = f"{prefix}{key.value}"
        yield dotted_key, key.start_mark.line + 1
        yield from _key_lines(value, dotted_key + ".")


def _parse_override(override: str) -> tuple[str, Settings]:
    """Return the dotted key of an override, and its value nested in the groups that the key names."""
    assignment = override.removeprefix("--")
    key, equals, text = assignment.partition("=")
    if not equals or not key:
        raise UserError(f"command line: {override!r} is not an override; write dotted.key=value")
    try:
        assignment.encode()
    except UnicodeEncodeError:
        raise UserError(f"command line: {override!r} is not valid UTF-8") from None
    quoting = f"; quote a text that has signs of YAML, as in {key}='\"{text}\"'"
    if re.search(r"\s#", text) and text.lstrip()[0] not in "\"'":
        raise UserError(f"command line: {override!r}: YAML takes the part from # on as a comment{quoting}")
    try:
        nested = OmegaConf.to_container(OmegaConf.from_dotlist([assignment]), resolve=True)
    except (OmegaConfBaseException, yaml.YAMLError, ValueError) as error:
        reason, *_ = one_line(error).split(" full_key: ")  # OmegaConf appends names of its own classes
        raise UserError(f"command line: {override!r}: {reason}{quoting}") from None
    return key, nested  # type: ignore[return-value]
