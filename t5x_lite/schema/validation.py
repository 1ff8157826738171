"""Turn settings into a typed config, or into one line that explains everything that is wrong with them."""

import math
import re
from collections.abc import Iterator, Sequence
from typing import TypeVar

import yaml
from pydantic import ValidationError
from pydantic_core import ErrorDetails

from t5x_lite.errors import UserError, suggest
from t5x_lite.schema.explanation import ITEM, explain
from t5x_lite.schema.settings import Config
from t5x_lite.schema.sources import COMMAND_LINE, Sources

ConfigT = TypeVar("ConfigT", bound=Config)

MOST_ERRORS = 20
"""Errors that are explained; a file that is no config may have any number."""
NEAREST_KEY_CUTOFF = 0.5
"""Similarity from which an unknown key is taken for a misspelling; `difflib`'s default of 0.6 misses short keys."""


def validate(kind: type[ConfigT], sources: Sources) -> ConfigT:
    """Return the typed config.

    Raises:
        UserError: one line with every problem, where it was set, and the nearest valid spelling.
    """
    try:
        return kind.model_validate(sources.values)
    except ValidationError as error:
        errors = error.errors(include_url=False)
        messages = []
        for details in errors[:MOST_ERRORS]:
            if not _follows_from_an_item(details, errors):
                messages.append(_explain_error(kind, sources, details))
        if len(errors) > MOST_ERRORS:
            messages.append(f"and {len(errors) - MOST_ERRORS} more")
        if not kind.help_command and any(_is_unknown_key(details) for details in errors):
            messages.append(f"known keys are {', '.join(dict.fromkeys(_keys_in_group(kind, '')))}")
        unique_messages = dict.fromkeys(messages)
        raise UserError("; ".join(unique_messages)) from None


def _is_unknown_key(details: ErrorDetails) -> bool:
    return details["type"] == "extra_forbidden" and len(details["loc"]) == 1


def first_problem(error: ValidationError) -> str:
    """Return the dotted key of the first problem of a file that is not a config, and pydantic's message."""
    details = error.errors(include_url=False)[0]
    key = ".".join(str(part) for part in details["loc"])
    if not key:
        return details["msg"]
    return f"{key}: {details['msg']}"


def _follows_from_an_item(details: ErrorDetails, errors: Sequence[ErrorDetails]) -> bool:
    """Return whether a list is too short only because its items are invalid, which has an error of its own."""
    path = details["loc"]
    if details["type"] != "too_short":
        return False
    return any(len(other["loc"]) > len(path) and other["loc"][: len(path)] == path for other in errors)


def _explain_error(kind: type[Config], sources: Sources, details: ErrorDetails) -> str:
    path = [str(part) for part in details["loc"]]
    message = _describe_error(kind, path, details)
    location = _find_location(sources, ".".join(path), message)
    if location:
        return f"{location}: {message}"
    return message


def _find_location(sources: Sources, key: str, message: str) -> str:
    """Return where a problem was set. Of a group of settings it is the command line if that set one that is named."""
    group = f"{key}." if key else ""
    for other, location in sources.locations.items():
        name = other.removeprefix(group)
        if (
            location == COMMAND_LINE
            and other.startswith(group)
            and re.search(rf"(?<![\w.]){re.escape(name)}\b", message)
        ):
            return COMMAND_LINE
    location = sources.location_of(key)
    if location:
        return location
    # Of a group that is not in a file, the command line has set a key.
    return next((location for other, location in sources.locations.items() if other.startswith(group)), "")


def _describe_error(kind: type[Config], path: Sequence[str], details: ErrorDetails) -> str:
    key = ".".join(path)
    value = details["input"]
    match details["type"]:
        case "extra_forbidden":
            return _describe_unknown_key(kind, path)
        case "missing":
            return f"`{key}` must be given"
        case "value_error":
            message = str(details["ctx"]["error"])
            return f"`{key}`: {message}" if key else message
        case "literal_error":
            expected = details["ctx"]["expected"].replace("'", "")
            hint = suggest(str(value), expected.replace(" or ", ", ").split(", "))
            return f"`{key}` is {value!r}, expected {expected}{hint}"
        case "string_type" if path[-1] == "[key]":
            group = ".".join(path[:-2])
            return f'`{group}`: the name {value!r} is not a text; write it in quotes, as in {{"{value}": …}}'
        case "string_type":
            text = "" if value is None else value
            quoted = f"{key}='\"{'…' if isinstance(value, dict | list) else text}\"'"
            return f"`{key}` is {value!r}, expected a text; on the command line, quote it twice, as in {quoted}"
        case "not_a_kind":
            return f"`{key}` is {value!r}: {details['msg']}{_suggest_component(value, details['msg'])}"
        case "tuple_type" if value is None:
            return f"`{key}` has no value: expected a list; [] is an empty one"
        case "tuple_type":
            return f"`{key}` is {value!r}: expected a list, such as [{_format_item(value)}]"
        case "too_short":
            return f"`{key}` is {value!r}: expected a list with at least {details['ctx']['min_length']} item"
        case _:
            message = details["msg"][0].lower() + details["msg"][1:]
            return f"`{key}` is {value!r}: {message}"


def _describe_unknown_key(kind: type[Config], path: Sequence[str]) -> str:
    *groups, name = path
    prefix = "".join(f"{group}." for group in groups)
    explained_groups = [ITEM if group.isdecimal() else group for group in groups]
    explained_prefix = "".join(f"{group}." for group in explained_groups)
    known_keys = _keys_in_group(kind, explained_prefix)
    hint = suggest(name, known_keys, prefix=f"`{prefix}", suffix="`", cutoff=NEAREST_KEY_CUTOFF)
    if not hint and kind.help_command:
        hint = f"; `{kind.help_command}` lists the keys"
        if groups:
            hint += f" of `{'.'.join(explained_groups)}`"
    return f"unknown key `{prefix}{name}`{hint}"


def _keys_in_group(kind: type[Config], prefix: str) -> Iterator[str]:
    for explanation in explain(kind):
        if explanation.key.startswith(prefix):
            yield explanation.key.removeprefix(prefix).partition(".")[0]


def _suggest_component(value: object, message: str) -> str:
    names = message.removeprefix("expected one of ").split(", ")
    name = value
    if isinstance(value, dict):
        name = next(iter(value), "")
    return suggest(str(name), names)


def _format_item(value: object) -> str:
    """Return a value that is not a list as the item of one, in YAML's notation."""
    return yaml.safe_dump(value, default_flow_style=True, width=math.inf).strip().removesuffix("...").strip()
