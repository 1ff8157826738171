"""Interfaces between the data of a run and its training loop, and the settings that all data of a run have."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Integer

from t5x_lite.data.config import DataConfig, MixedSource
from t5x_lite.data.stages import Stage
from t5x_lite.objectives.objective import ExampleContext, Features, Objective


@dataclass(frozen=True)
class PipelineSettings:
    """Settings of a run that decide its examples and batches.

    Attributes:
        data: settings of sources, rows and mixtures.
        objective: builds an example from a row of tokens or from a record.
        context: the context of the objective's examples.
        seed: seed of the order of rows, and of the objective's random choices.
        validation_batch_size: rows of a validation batch.
        max_validation_batches: largest number of validation batches (for each task); 0 takes all.
        stages: stages of the run; none is one stage with the sequences of `context`.
    """

    data: DataConfig
    objective: Objective
    context: ExampleContext
    seed: int
    validation_batch_size: int
    max_validation_batches: int = 0
    stages: tuple[Stage, ...] = ()

    def all_stages(self) -> tuple[Stage, ...]:
        """Return the stages, of which there is at least one."""
        return self.stages or (Stage("", 0, self.context.seq_len, 1),)

    def of_stage(self, stage: Stage) -> "PipelineSettings":
        """Return the settings with the length of the sequences of a stage."""
        return replace(self, context=replace(self.context, seq_len=stage.seq_len))

    def of_source(self, source: MixedSource) -> "PipelineSettings":
        """Return the settings with the rows and the objective of a source."""
        return replace(self, data=self.data.of_source(source), objective=source.objective or self.objective)

    def of_sources(self) -> "list[PipelineSettings]":
        """Return the settings of each source."""
        return [self.of_source(source) for source in self.data.sources]

    @property
    def objectives(self) -> tuple[Objective, ...]:
        """The distinct objectives of the sources."""
        return self.data.objectives(self.objective)


@runtime_checkable
class ExampleSequence(Protocol):
    """An endless order of training examples, with random access."""

    def __getitem__(self, g: int) -> Features: ...


@runtime_checkable
class ValidationBatches(Protocol):
    """The validation split as batches of one shape, the same number of them on every host."""

    @property
    def batch_size(self) -> int:
        """Rows of a batch, over all hosts."""

    def batches(self, local_rows: Integer[np.ndarray, "local_rows"]) -> Iterator[dict[str, np.ndarray]]:
        """Yield each batch, with only the rows that this host needs."""


@runtime_checkable
class TrainingData(Protocol):
    """The data of a run: training examples and validation batches."""

    @property
    def context(self) -> ExampleContext:
        """The context of the objective's examples."""

    @property
    def tokens_per_byte(self) -> float | None:
        """Tokens per UTF-8 byte of the validation text; None if the loss is not that of every token of a text."""

    @property
    def hashes(self) -> Mapping[str, str]:
        """Hashes of the content of each source or task, by its name and split, as far as they are known.

        They do not depend on where the files are and when they were written.
        """

    def rows(self, stage: int = 0) -> ExampleSequence:
        """Return the order of training examples: example step · batch size + row, for the steps of a stage."""

    def describe(self, run_dir: Path) -> list[str]:
        """Return what training leaves out, in a line each. Write to a run directory what it says of its data."""

    def validation(self) -> ValidationBatches:
        """Return the validation split."""

    def validation_of_sources(self) -> "Mapping[str, ValidationBatches]":
        """Return the validation split of each source, by its name, if their objectives differ; else nothing."""
