"""The passages of a file: JSONL, TSV, CSV, JSON or Parquet with `text`, `title` and `id`, or a text file of lines."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from t5x_lite.data.files import file_ending
from t5x_lite.data.lines import located_lines
from t5x_lite.data.record_files import stream_record_file
from t5x_lite.errors import UserError
from t5x_lite.files import check_is_file
from t5x_lite.objectives.passages import Passage, read_passage


@dataclass(frozen=True)
class StoredPassage:
    """A passage of a collection.

    Attributes:
        id: its `id` in the file, or its number there, from 0.
        passage: its text and title.
    """

    id: str
    passage: Passage

    def to_json(self) -> str:
        """Return the line that stands for it in an index."""
        record = {"id": self.id, "title": self.passage.title, "text": self.passage.text}
        return json.dumps(record, ensure_ascii=False) + "\n"

    @classmethod
    def from_json(cls, line: str) -> "StoredPassage":
        """Return the passage of a line of an index."""
        record = json.loads(line)
        return cls(record["id"], Passage(record["text"], record["title"]))


def check_collection(file: Path) -> None:
    """Refuse a path that is not a file.

    Raises:
        UserError: it is a folder, a device or a pipe, or does not exist.
    """
    check_is_file(file)
    if not file.exists():
        raise UserError(f"{file}: does not exist")


def read_collection(file: Path) -> Iterator[StoredPassage]:
    """Yield the passages of a file in its order.

    Raises:
        UserError: a file that cannot be read, or a record without a text; names the line.
    """
    check_collection(file)
    if file_ending(str(file)) == ".txt":
        records = _read_text(file)
    else:
        records = stream_record_file(str(file))
    for number, (location, record) in enumerate(records):
        try:
            passage = read_passage(record)
        except ValueError as error:
            raise UserError(f"{location}: {error}") from None
        identifier = record.get("id") if isinstance(record, Mapping) else None
        yield StoredPassage(str(number if identifier is None else identifier), passage)


def _read_text(file: Path) -> Iterator[tuple[str, Any]]:
    """Yield the lines that are not empty."""
    for location, line in located_lines(str(file), replaces_invalid=True):
        if line.strip():
            yield location, line.strip()
