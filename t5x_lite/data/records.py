"""Records of tasks as training rows and as validation batches: the same (seed, step) → batch as for running text."""

import csv
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain, islice, repeat
from typing import Any

import numpy as np
import zstandard

from t5x_lite.config import RunConfig
from t5x_lite.data.mixture import MixtureOrder
from t5x_lite.data.sources import matches, opened, parquet_file, plain, tfds_source
from t5x_lite.data.tokenizer import Tokenizer
from t5x_lite.errors import UserError
from t5x_lite.objectives import TextToText
from t5x_lite.objectives.features import stacked
from t5x_lite.objectives.objective import ExampleContext, Features
from t5x_lite.objectives.supervised import Coder, Record, Supervised
from t5x_lite.tasks import TaskSpec, find_task, short_name

LONGEST_FIELD = 2**30
"""Characters of a field of a TSV or CSV file; Python's own limit is below a long document."""


class TaskRecords:
    """The records of one split of a task, by number; columns become roles as they are read.

    Raises:
        UserError: a column that is missing, a file that cannot be read; file and line are named.
    """

    def __init__(self, name: str, task: TaskSpec, rows: Sequence[Any], place: Callable[[int], str]) -> None:
        self.name, self.task, self.rows, self.place = name, task, rows, place

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, number: int) -> Record:
        row = self.rows[number]
        return {role: self._value(row, column, number) for role, column in self.task.columns.items()}

    def _value(self, row: Any, column: str | list[str], number: int) -> Any:
        if not isinstance(column, str):
            return [self._value(row, one, number) for one in column]
        value = row
        for part in column.split("/"):
            if not isinstance(value, Mapping) or part not in value:
                have = ", ".join(map(str, value)) if isinstance(value, Mapping) else type(value).__name__
                raise UserError(
                    f"{self.place(number)}: task {self.name} wants the column {column!r}, found {have}; name the "
                    "columns of files without a header in data.columns, or change `columns` of the task"
                )
            value = value[part]
        return _plain(value)


def _plain(value: Any) -> Any:
    value = value.tolist() if isinstance(value, np.ndarray | np.generic) else value
    if isinstance(value, list | tuple):
        return [_plain(one) for one in value]
    return value.decode("utf-8", errors="replace") if isinstance(value, bytes) else value


def read(name: str, config: RunConfig, split: str) -> TaskRecords:
    """The `train` or `validation` records of a task: of the config's files, or of its TFDS builder."""
    task, data = find_task(name), config.data
    patterns = data.files if split == "train" else data.validation_files
    patterns = tuple(pattern.replace("{task}", short_name(name)) for pattern in patterns)
    if patterns:
        found = [row for pattern in patterns for path in matches(pattern) for row in _read(path, data.columns)]
        return TaskRecords(short_name(name), task, [row for _, row in found], lambda n: found[n][0])
    if data.files:
        raise UserError(f"data.files are given, so data.validation_files must say where task {name} is evaluated")
    if not task.tfds:
        raise UserError(f"task {name}: names no TFDS builder; give data.files and data.validation_files")
    wanted = getattr(task.splits, split)
    source = tfds_source(task.tfds, wanted, f"task {name}")
    return TaskRecords(short_name(name), task, source, lambda n: f"{task.tfds} {wanted} record {n}")


def _read(path: str, columns: Sequence[str]) -> list[tuple[str, Any]]:
    """All of a file; see `_rows`."""
    try:
        return list(_rows(path, columns))
    except (OSError, EOFError, csv.Error, zstandard.ZstdError) as error:
        raise UserError(f"{path}: cannot be read: {error}") from None


def _rows(path: str, columns: Sequence[str]) -> Iterator[tuple[str, Any]]:
    """Each record of a file with its place; `columns` names those of a TSV or CSV file without a header."""
    form = plain(path).suffix
    if form == ".parquet":
        with parquet_file(path) as file:
            for number, row in enumerate(file.read().to_pylist()):
                yield f"{path} record {number}", row
        return
    with opened(path) as file:
        lines = (line.decode("utf-8", errors="replace") for line in file)
        if form in {".tsv", ".csv"}:
            dialect: Any = {"quoting": csv.QUOTE_NONE, "delimiter": "\t"} if form == ".tsv" else {}
            csv.field_size_limit(LONGEST_FIELD)
            reader = csv.reader(lines, **dialect)
            header = list(columns) or next(reader, [])
            for row in filter(None, reader):
                if len(row) != len(header):
                    raise UserError(f"{path}:{reader.line_num}: {len(row)} columns, expected {len(header)}: {header}")
                yield f"{path}:{reader.line_num}", dict(zip(header, row, strict=True))
            return
        for number, line in enumerate(lines, start=1):
            try:
                if line.strip():
                    yield f"{path}:{number}", json.loads(line)
            except ValueError as error:
                raise UserError(f"{path}:{number}: not a JSON object: {error}") from None


@dataclass(frozen=True)
class TaskRows:
    """Row g of the global training order, for any g ≥ 0, as `pipeline.TrainingRows`.

    A record of several examples (windows) gives one of them, drawn anew in each epoch.
    """

    data: "TaskData"
    order: MixtureOrder

    def __getitem__(self, g: int) -> Features:
        source, epoch, number = self.order[g]
        made = self.data.examples(self.data.training[source], number)
        key = (self.order.seed, source, epoch, number)
        return made[np.random.default_rng(key).integers(len(made)) if len(made) > 1 else 0]


@dataclass(frozen=True)
class TaskValidation:
    """Every example of every validation record in order, in batches of one shape; the last has empty ones too.

    `limit` is the most batches of each task; 0 takes all.
    """

    data: "TaskData"
    batch_size: int
    limit: int = 0

    def examples(self, own: TaskRecords) -> Iterator[tuple[int, Features]]:
        """Each example of a task with the number of its record."""
        most = self.limit * self.batch_size or len(own)
        return ((n, made) for n in range(min(len(own), most)) for made in self.data.examples(own, n))

    def batches_of(self, own: TaskRecords, local_rows: np.ndarray) -> Iterator[dict[str, np.ndarray]]:
        """Each batch of a task: those of its rows that this host makes."""
        filler = {name: np.zeros_like(value) for name, value in self.data.examples(own, 0)[0].items()}
        made = chain((example for _, example in self.examples(own)), repeat(filler, self.batch_size - 1))
        while len(held := list(islice(made, self.batch_size))) == self.batch_size:
            yield stacked([held[row] for row in local_rows])

    def batches(self, local_rows: np.ndarray) -> Iterator[dict[str, np.ndarray]]:
        """Those of all tasks."""
        for own in self.data.held_out:
            yield from self.batches_of(own, local_rows)


@dataclass(frozen=True)
class TaskData:
    """Training rows and validation batches of a config's tasks."""

    config: RunConfig
    context: ExampleContext
    coder: Coder
    training: list[TaskRecords]
    held_out: list[TaskRecords]
    tokens_per_byte: None = None

    def examples(self, records: TaskRecords, number: int) -> list[Features]:
        """The examples of a record.

        Raises:
            UserError: a label that is not declared; the record is named.
        """
        record, objective = records[number], self.config.require_objective()
        try:
            if isinstance(objective, TextToText):
                return [objective.records_example(*records.task.text(record), self.coder, self.context)]
            assert isinstance(objective, Supervised)
            return objective.examples(record, self.coder, self.context)
        except (ValueError, TypeError) as error:
            raise UserError(f"{records.place(number)}: task {records.name}: {error}") from None

    def rows(self) -> TaskRows:
        """The endless global order; shares are min(n, limit)^alpha of n records (Raffel et al. 2020, §3.5.2)."""
        data = self.config.data
        sizes = [len(own) for own in self.training]
        raw = np.minimum(np.array(sizes, np.float64), data.mixture_limit or np.inf) ** data.mixture_alpha
        return TaskRows(replace(self, held_out=[]), MixtureOrder(sizes, raw / raw.sum(), self.config.train.seed))

    def skipped(self) -> Iterator[str]:
        """What is to be said of training records that cannot be learnt from, if there are any."""
        objective = self.config.require_objective()
        if not isinstance(objective, Supervised) or not objective.flaw:
            return
        for own in self.training:
            if count := sum(not objective.learnable(own[n]) for n in range(len(own))):
                yield f"task {own.name}: {count:,} of {len(own):,} training records skipped: {objective.flaw}"

    def validation(self) -> TaskValidation:
        """The whole validation split of every task, or its first `eval.batches`."""
        run = self.config
        size = run.eval.batch_size or run.train.batch_size
        return TaskValidation(self, size, run.eval.batches)


def open_task_data(config: RunConfig, tokenizer: Tokenizer, context: ExampleContext) -> TaskData:
    """The records of a config's tasks.

    Raises:
        UserError: a task, a file or a column that is missing; no training records.
    """
    coder = Coder(tokenizer.encode, tokenizer.encode_placed, tokenizer.decode)
    both = {split: [read(name, config, split) for name in config.tasks] for split in ("train", "validation")}
    for split, found in both.items():
        if short := [own.name for own in found if not len(own)]:
            raise UserError(f"task {short[0]}: has no {split} records")
    return TaskData(config, context, coder, both["train"], both["validation"])
