"""Records of tasks as training rows and as validation batches. A batch is a function of (seed, step) alone."""

import logging
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path

import numpy as np
from jaxtyping import Float64, Integer

from t5x_lite.data.config import DataConfig
from t5x_lite.data.conversations import AnswerEncoder
from t5x_lite.data.mixture import MixtureOrder, mix_endless
from t5x_lite.data.task_records import TaskRecords, read_task_records
from t5x_lite.data.tokenizer import Tokenizer
from t5x_lite.data.training_data import PipelineSettings, ValidationBatches
from t5x_lite.errors import UserError
from t5x_lite.objectives import TextToText
from t5x_lite.objectives.features import stacked
from t5x_lite.objectives.objective import ExampleContext, Features, Objective
from t5x_lite.objectives.supervised import Supervised, TaskTokenizer

logger = logging.getLogger(__name__)

MAX_EXAMINED_RECORDS = 1000
"""Training records of a task, evenly spread, whose lengths are compared with that of a row when a run begins."""
MAX_TEXT_ROWS = 16
"""Rows up to which the length of a record is measured."""


@dataclass(frozen=True)
class TaskRows:
    """Example g of the global training order of tasks, for any g ≥ 0, as `pipeline.TrainingRows` is for text.

    A record of several examples (windows of a long text) gives one of them, and a task of several forms of its inputs
    gives one form. Both are drawn again in each epoch.
    """

    data: "TaskData"
    order: MixtureOrder

    def __getitem__(self, g: int) -> Features:
        task, epoch, number = self.order[g]
        records = self.data.training[task]
        rng = np.random.default_rng((self.data.settings.seed, task, epoch, number))
        form = 0
        if records.task.instructions:
            form = int(rng.integers(len(records.task.input_forms)))
        examples = self.data.examples(records, number, form)
        return examples[rng.integers(len(examples))]


@dataclass(frozen=True)
class TaskValidation:
    """Every example of every validation record in order, in batches of one shape.

    The last batch of a task is filled with empty examples. `max_batches` limits the records of each task to as many as
    these batches have rows; 0 reads all records.
    """

    data: "TaskData"
    batch_size: int
    max_batches: int = 0

    def examples(self, records: TaskRecords) -> Iterator[tuple[int, Features]]:
        """Yield each example of a task with the number of its record."""
        count = len(records)
        if self.max_batches:
            count = min(count, self.max_batches * self.batch_size)
        for number in range(count):
            for example in self.data.examples(records, number):
                yield number, example

    def batches_of(
        self, records: TaskRecords, local_rows: Integer[np.ndarray, "local_rows"]
    ) -> Iterator[dict[str, np.ndarray]]:
        """Yield each batch of a task, with only the rows that this host needs."""
        examples = (example for _, example in self.examples(records))
        while batch := list(islice(examples, self.batch_size)):
            if len(batch) < self.batch_size:
                batch += [_empty_like(batch[0])] * (self.batch_size - len(batch))
            yield stacked([batch[row] for row in local_rows])

    def batches(self, local_rows: Integer[np.ndarray, "local_rows"]) -> Iterator[dict[str, np.ndarray]]:
        """Yield the batches of all tasks."""
        for records in self.data.held_out:
            yield from self.batches_of(records, local_rows)


def _empty_like(example: Features) -> Features:
    return {name: np.zeros_like(value) for name, value in example.items()}


@dataclass(frozen=True)
class TaskData:
    """The data of a run that learns tasks.

    Attributes:
        settings: settings of the run.
        tokenizer: the run's tokenizer, for objectives.
        training: the training records of each task.
        held_out: the validation records of each task.
    """

    settings: PipelineSettings
    tokenizer: TaskTokenizer
    training: list[TaskRecords]
    held_out: list[TaskRecords]

    @property
    def objective(self) -> Objective:
        """The run's objective."""
        return self.settings.objective

    @property
    def context(self) -> ExampleContext:
        """The context of the objective's examples."""
        return self.settings.context

    @property
    def tokens_per_byte(self) -> None:
        """None: the loss is not that of every token of a text."""
        return None

    def examples(self, records: TaskRecords, number: int, form: int = 0) -> list[Features]:
        """Return the examples of a record, in text form with the inputs of this number.

        Raises:
            UserError: a record that the objective refuses, such as one with an unknown label; names the record.
        """
        record = records[number]
        try:
            if isinstance(self.objective, TextToText):
                inputs, targets = records.task.text(record, form)
                return [self.objective.records_example(inputs, targets, self.tokenizer, self.context)]
            assert isinstance(self.objective, Supervised)
            return self.objective.examples(record, self.tokenizer, self.context)
        except (ValueError, TypeError, LookupError, OverflowError) as error:
            raise UserError(f"{records.describe_location(number)}: task {records.name}: {error}") from None

    @property
    def hashes(self) -> dict[str, str]:
        """Hashes of the files of each task, by its name and split."""
        hashes = {}
        for split, tasks in (("train", self.training), ("validation", self.held_out)):
            for records in tasks:
                if records.hash:
                    hashes[f"{records.name}.{split}"] = records.hash
        return hashes

    def validation_of_sources(self) -> dict[str, ValidationBatches]:
        """Return nothing: tasks that are learnt together have one objective."""
        return {}

    def rows(self, stage: int = 0) -> TaskRows:
        """Return the endless order of training examples. A run on tasks has one stage.

        A task of n records has a share proportional to min(n, `data.mixture_limit`)^`data.mixture_alpha` (Raffel et al.
        2020, §3.5.2).
        """
        sizes = [len(records) for records in self.training]
        order = mix_endless(sizes, _task_shares(sizes, self.settings.data), self.settings.seed)
        return TaskRows(replace(self, held_out=[]), order)

    def describe(self, run_dir: Path) -> list[str]:
        """Return a line for each task whose training records are skipped or cut. Nothing is written."""
        return [*self.skipped(), *self.truncated()]

    def skipped(self) -> Iterator[str]:
        """Yield a message for each task with training records that cannot be learnt from."""
        objective = self.objective
        if not isinstance(objective, Supervised) or not objective.flaw:
            return
        for records in self.training:
            count = 0
            for number in range(len(records)):
                if not objective.learnable(records[number]):
                    count += 1
            if count:
                yield f"task {records.name}: {count:,} of {len(records):,} training records skipped: {objective.flaw}"

    def truncated(self) -> Iterator[str]:
        """Yield a message for each task with training records that are longer than a row.

        A record of several examples, such as the windows of a long text, loses nothing.
        """
        wide = replace(self.context, seq_len=MAX_TEXT_ROWS * self.context.seq_len)
        full_data = replace(self, settings=replace(self.settings, context=wide))
        for records in self.training:
            step = math.ceil(len(records) / MAX_EXAMINED_RECORDS)
            numbers = range(0, len(records), step)
            count = 0
            for number in numbers:
                examples = self.examples(records, number)
                if len(examples) == 1 and _count_tokens(full_data.examples(records, number)) > _count_tokens(examples):
                    count += 1
            if count:
                examined = "" if step == 1 else "examined "
                yield (
                    f"task {records.name}: {count:,} of {len(numbers):,} {examined}training records do not fit into "
                    f"train.seq_len {self.context.seq_len} and lose tokens"
                )

    def validation(self) -> TaskValidation:
        """Return the validation split of every task."""
        return TaskValidation(self, self.settings.validation_batch_size, self.settings.max_validation_batches)


def _count_tokens(examples: Sequence[Features]) -> int:
    """Return the tokens of examples that are no padding: those in a segment, of inputs and of targets."""
    segments = [values for example in examples for name, values in example.items() if "segment" in name]
    return sum(int(np.count_nonzero(values)) for values in segments)


def _task_shares(sizes: Sequence[int], data: DataConfig) -> Float64[np.ndarray, "tasks"]:
    limit = data.mixture_limit or np.inf
    weights = np.minimum(np.array(sizes, np.float64), limit) ** data.mixture_alpha
    return weights / weights.sum()


def open_task_data(settings: PipelineSettings, tokenizer: Tokenizer, task_names: Sequence[str]) -> TaskData:
    """Open the records of tasks.

    Raises:
        UserError: a task, a file or a column is missing, or a task has no records.
    """
    task_tokenizer = TaskTokenizer(
        tokenizer.encode, tokenizer.encode_placed, tokenizer.decode, AnswerEncoder(tokenizer)
    )
    training = [read_task_records(name, settings.data, "train") for name in task_names]
    held_out = [read_task_records(name, settings.data, "validation") for name in task_names]
    _check_records(training, "train", settings.data.files)
    _check_records(held_out, "validation", settings.data.validation_files)
    for records in (*training, *held_out):
        records.label_names = _label_names(records, settings.objective)
        _check_each_record(records, settings.objective)
    return TaskData(settings, task_tokenizer, training, held_out)


def _label_names(records: TaskRecords, objective: Objective) -> Sequence[str]:
    """Return the labels of a task, if the run has the same ones in another order; else nothing."""
    task_objective = records.task.objective
    if not isinstance(objective, Supervised) or not isinstance(task_objective, Supervised):
        return ()
    names = task_objective.label_names
    if not names or not objective.label_names or objective.label_names == names:
        return ()
    if sorted(map(str.casefold, names)) == sorted(map(str.casefold, objective.label_names)):
        return names
    logger.warning(
        "task %s: the run has the labels %s, the task %s; numbers in the data are indices of the run's labels",
        records.name,
        ", ".join(objective.label_names),
        ", ".join(names),
    )
    return ()


def _check_records(tasks: Sequence[TaskRecords], split: str, files: Sequence[str]) -> None:
    for records in tasks:
        if not len(records):
            place = f" in {', '.join(files)}" if files else ""
            raise UserError(f"task {records.name}: has no {split} records{place}")


def _check_each_record(records: TaskRecords, objective: Objective) -> None:
    """Check every record of a task that comes from files, and of a TFDS builder if its objective asks for it.

    Raises:
        UserError: a record that cannot be learnt from, or lacks a column; names the file and the line.
    """
    if not records.hash and not (isinstance(objective, Supervised) and objective.checks_records):
        return
    for number in range(len(records)):
        raw_record = records.raw_records[number]
        record = records.assign_roles(raw_record, number)
        try:
            if not isinstance(objective, Supervised):
                records.task.text(record)
                records.task.reference(record)
                continue
            if isinstance(raw_record, Mapping):
                objective.check_columns(raw_record.keys(), records.task.columns.values())
            objective.check_record(record)
        except (ValueError, TypeError, LookupError, OverflowError) as error:
            raise UserError(f"{records.describe_location(number)}: task {records.name}: {error}") from None
