"""The text of a record: one or several of its columns."""

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

from t5x_lite.errors import UserError

FIELD_BORDER = "\x1e"
"""Separates the fields of a document: ASCII's record separator, which is removed from the text itself."""


def record_text(record: object, fields: Sequence[str], describe_location: Callable[[], str]) -> str:
    """Return the text of a record: its fields, joined by `FIELD_BORDER`.

    Args:
        record: maps the names of columns to texts, or to bytes in UTF-8.
        fields: names of columns.
        describe_location: returns the place of the record, for messages.

    Raises:
        UserError: it lacks a field, or a field is no text.
    """
    return join_fields([_field_text(record, name, describe_location) for name in fields])


def join_fields(texts: Sequence[str]) -> str:
    """Return the texts of the fields of a document as one."""
    return FIELD_BORDER.join(text.replace(FIELD_BORDER, " ") for text in texts)


def read_column(record: object, name: str, location: str, remedy: str) -> Any:
    """Return the value of a column of a record.

    Args:
        record: maps the names of columns to values.
        name: of the column.
        location: the place of the record, for the error.
        remedy: what to do about a missing column.

    Raises:
        UserError: the record lacks the column.
    """
    if not isinstance(record, Mapping):
        raise UserError(f"{location}: {describe_no_record(record)}")
    if name not in record:
        raise UserError(f"{location}: {missing_column(name, record)}; {remedy}")
    return record[name]


def describe_no_record(value: object) -> str:
    """Return the part of an error that says that a line has a value of JSON without columns."""
    return f"expected a JSON object, found {type(value).__name__} {value!r:.40}"


def missing_column(name: str, record: object, kind: Literal["column", "field"] = "column") -> str:
    """Return the part of an error that says which column a record lacks, and which it has.

    Args:
        name: of the column.
        record: maps the names of columns to values, or has none.
        kind: what the setting to change calls it.
    """
    names = type(record).__name__
    if isinstance(record, Mapping):
        names = ", ".join(map(str, record))
    return f"no {kind} {name!r} (found {names})"


def _field_text(record: object, name: str, describe_location: Callable[[], str]) -> str:
    if not isinstance(record, dict):
        raise UserError(f"{describe_location()}: {describe_no_record(record)}")
    if name not in record:
        raise UserError(f"{describe_location()}: {missing_column(name, record, 'field')}; set data.field")
    value = record[name]
    if isinstance(value, bytes):
        return value.decode("utf-8", errors="replace")
    if value is None:
        raise UserError(f"{describe_location()}: field {name!r} is null; remove the record")
    if not isinstance(value, str):
        raise UserError(
            f"{describe_location()}: field {name!r} is {type(value).__name__}, expected text; set data.field"
        )
    return _replace_surrogates(value)


def parse_json(text: str) -> Any:
    """Return the value of a text in JSON, whose strings have no surrogates without a partner.

    Raises:
        ValueError: it is not JSON.
        RecursionError: it is nested too deeply.
    """
    value = json.loads(text)
    if "\\ud" in text.lower():
        return _without_surrogates(value)
    return value


def _without_surrogates(value: Any) -> Any:
    if isinstance(value, str):
        return _replace_surrogates(value)
    if isinstance(value, list):
        return [_without_surrogates(item) for item in value]
    if isinstance(value, dict):
        return {_replace_surrogates(name): _without_surrogates(item) for name, item in value.items()}
    return value


def _replace_surrogates(text: str) -> str:
    """Replace surrogates without a partner, which JSON can hold and UTF-8 cannot, by U+FFFD."""
    if text.isascii():
        return text
    return text.encode("utf-16", "surrogatepass").decode("utf-16", errors="replace")
