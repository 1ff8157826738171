"""The records of tasks: read from files or TFDS, with their columns as roles."""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from functools import partial

import numpy as np

from t5x_lite.data.config import DataConfig
from t5x_lite.data.files import RecordSequence, file_ending, hash_file, match_files, open_tfds
from t5x_lite.data.record_files import DIALECTS, read_record_file, stream_record_file
from t5x_lite.data.record_text import missing_column
from t5x_lite.errors import UserError
from t5x_lite.objectives.supervised import Record, label_index
from t5x_lite.tasks import TaskSpec, find_task, short_name

LABEL_ROLES = frozenset({"label", "tags"})
"""Roles whose values are labels."""


class TaskRecords:
    """The records of one split of a task, by number. Columns become roles when a record is read.

    Args:
        name: the task's name in metrics and messages.
        task: says which columns have which roles.
        raw_records: the records as they are in their files.
        describe_location: returns where a record comes from, for messages.
        hash: of the content of the files; empty for a TFDS builder, whose name tells its version.

    Attributes:
        label_names: what the numbers of labels in the records stand for, where the run has the labels of the task in
            another order; else empty.

    Raises:
        UserError: a record without a column that the task needs; names the file and the line.
    """

    def __init__(
        self,
        name: str,
        task: TaskSpec,
        raw_records: RecordSequence,
        describe_location: Callable[[int], str],
        hash: str = "",
    ) -> None:
        self.name = name
        self.task = task
        self.raw_records = raw_records
        self.describe_location = describe_location
        self.hash = hash
        self.label_names: Sequence[str] = ()

    def __len__(self) -> int:
        return len(self.raw_records)

    def __getitem__(self, number: int) -> Record:
        return self.assign_roles(self.raw_records[number], number)

    def assign_roles(self, raw_record: object, number: int) -> Record:
        """Return the values of record `number`, as it is in its file, by their roles."""
        record: dict[str, object] = {}
        for role, column in self.task.columns.items():
            if isinstance(column, str):
                record[role] = self._read_column(raw_record, column, number)
            else:
                record[role] = [self._read_column(raw_record, name, number) for name in column]
            if role not in self.task.optional_roles and _has_null(record[role]):
                raise UserError(
                    f"{self.describe_location(number)}: task {self.name}: {column} is null; remove the record or "
                    "complete it"
                )
        if self.label_names:
            for role in LABEL_ROLES & record.keys():
                record[role] = self._name_labels(record[role])
        return record

    def _name_labels(self, value: object) -> object:
        """Return the names of labels."""
        if isinstance(value, list):
            return [self._name_labels(item) for item in value]
        try:
            return self.label_names[label_index(value, self.label_names)]
        except ValueError:
            return value  # the objective refuses it

    def _read_column(self, raw_record: object, column: str, number: int) -> object:
        """Return the value of a column; the column `a/b` is `b` inside `a`."""
        value = raw_record
        for key in column.split("/"):
            if not isinstance(value, Mapping) or key not in value:
                location = self.describe_location(number)
                remedy = "change `columns` of the task"
                if file_ending(location.rpartition(":")[0]) in DIALECTS:
                    remedy = f"name the columns of files without a header in data.columns, or {remedy}"
                raise UserError(f"{location}: task {self.name}: {missing_column(column, value)}; {remedy}")
            value = value[key]
        return _to_python(value)


def _has_null(value: object) -> bool:
    return value is None or (isinstance(value, list) and None in value)


def _to_python(value: object) -> object:
    """Turn NumPy's values (TFDS gives them) into Python's, and bytes into text."""
    if isinstance(value, np.ndarray | np.generic):
        value = value.tolist()
    if isinstance(value, list | tuple):
        return [_to_python(item) for item in value]
    if isinstance(value, bytes):
        return value.decode("utf-8", errors="replace")
    return value


def read_task_records(name: str, data: DataConfig, split: str) -> TaskRecords:
    """Read the `train` or `validation` records of a task, from `data`'s files or from the task's TFDS builder.

    Raises:
        UserError: no such task, no files for it, or a file that cannot be read.
    """
    task = find_task(name)
    paths = _files_of_task(name, data, split)
    if paths:
        return _read_files(paths, short_name(name), task, data.columns)
    if not task.tfds:
        raise UserError(f"task {name}: names no TFDS builder; give data.files and data.validation_files")
    tfds_split = getattr(task.splits, split)
    source = open_tfds(task.tfds, tfds_split, f"task {name}")
    describe_location = partial("{} {} record {}".format, task.tfds, tfds_split)
    return TaskRecords(short_name(name), task, source, describe_location)


def first_records(name: str, data: DataConfig, split: str) -> list[Record]:
    """Return the first record of each file of a task.

    Args:
        name: of the task.
        data: names the files.
        split: `train` or `validation`.

    Raises:
        UserError: no files; a file cannot be read, has no record, or its record lacks a column.
    """
    task = find_task(name)
    records: list[Record] = []
    for path in _files_of_task(name, data, split):
        first = next(stream_record_file(path, data.columns), None)
        if first is None:
            raise UserError(f"{path}: has no records")
        location, raw_record = first
        records.append(TaskRecords(short_name(name), task, [raw_record], [location].__getitem__)[0])
    return records


def _files_of_task(name: str, data: DataConfig, split: str) -> list[str]:
    """Return the files of a task, in whose patterns `{task}` stands for its name; none if the run has no files."""
    key = "files" if split == "train" else "validation_files"
    patterns: Sequence[str] = getattr(data, key)
    if data.files and not patterns:
        raise UserError(f"data.files are given, so data.validation_files must say where task {name} is evaluated")
    paths: list[str] = []
    for pattern in patterns:
        paths += match_files(pattern.replace("{task}", short_name(name)), f"data.{key}")
    return paths


def _read_files(paths: Sequence[str], name: str, task: TaskSpec, columns: Sequence[str]) -> TaskRecords:
    """Read all records of some files."""
    locations: list[str] = []
    raw_records: list[object] = []
    content = hashlib.sha256()
    for path in paths:
        for location, raw_record in read_record_file(path, columns):
            locations.append(location)
            raw_records.append(raw_record)
        content.update(hash_file(path))
    return TaskRecords(name, task, raw_records, locations.__getitem__, content.hexdigest())
