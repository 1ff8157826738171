"""Batches from corpora. A batch is a function of (seed, step) and of nothing else.

Row g of the global order is mapped to (source, n), then to (epoch, row of the epoch), then to a row of the corpus in a
shuffled order. The tokens of that row go through the objective and become an example. Each of these maps has random
access, so a run resumes at any step, on any number of hosts, by requesting the next step.
"""

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import Protocol

import grain
import numpy as np
from absl import flags
from jaxtyping import Integer

from t5x_lite.child_process import leave_signals_to_parent
from t5x_lite.data.config import DataConfig
from t5x_lite.data.row_plan import DocumentRows, PackedRows, RowPlan, StreamWindows
from t5x_lite.data.training_data import ExampleSequence, PipelineSettings
from t5x_lite.errors import UserError
from t5x_lite.objectives.features import stacked
from t5x_lite.objectives.mixed_rows import Shapes, common_shapes, pad_to_shapes
from t5x_lite.objectives.objective import ExampleContext, Features, Objective, TokenRow
from t5x_lite.storage import is_remote

REMOTE_ROWS_AT_ONCE = 64
"""Rows that are read at the same time from a bucket, where each takes several requests one after the other."""
SECOND_SENTENCE_TRIES = 10
"""Draws after which a second sentence may be from the same document (BERT's create_pretraining_data)."""


@dataclass(frozen=True)
class ExampleBuilder:
    """Builds examples from the rows of a source.

    Attributes:
        data: settings of its rows.
        objective: makes an example of a row.
        context: the context of the objective's examples.
        shapes: shapes to which its features are padded; None if the rows of a batch have one objective.
    """

    data: DataConfig
    objective: Objective
    context: ExampleContext
    shapes: Shapes | None = None

    def build(self, row_plan: RowPlan, row: int, key: tuple[int, ...], phase: int = 0) -> Features:
        """Build an example.

        Args:
            row_plan: the rows of a corpus.
            row: number of the row.
            key: seed of the objective's random choices.
            phase: tokens by which windows of the token stream are shifted.
        """
        rng = _random_generator(key)
        token_row = self._merge_segments(row_plan.read(row, phase))
        if self.objective.rows.has_second_sentence:
            second_sentence = token_row
            if isinstance(row_plan, PackedRows | DocumentRows):
                second_sentence = _draw_second_sentence(row_plan, row, rng)
            token_row = replace(token_row, second_sentence=second_sentence)
        return self._padded(self.objective.example(token_row, self.context, rng))

    def build_empty(self) -> Features:
        """Build an example without tokens, which has no weight in the loss."""
        zeros = np.zeros(self.objective.row_length(self.context), np.int32)
        token_row = TokenRow(zeros, zeros, zeros)
        if self.objective.rows.has_second_sentence:
            token_row = replace(token_row, second_sentence=token_row)
        return self._padded(self.objective.example(token_row, self.context, _random_generator((0, 0))))

    def _padded(self, example: Features) -> Features:
        if self.shapes is None:
            return example
        return pad_to_shapes(example, self.shapes)

    def _merge_segments(self, token_row: TokenRow) -> TokenRow:
        """Make the documents of a row one segment, if they attend to each other or are one text to the objective."""
        is_one_text = self.objective.one_text and self.data.packing in {"stream", "sentences"}
        if self.data.separate_documents and not is_one_text:
            return token_row
        parts = token_row.parts
        if len(parts) and not self.objective.rows.keeps_part_numbers:
            # A sentence of one document is none of the next.
            is_border = (np.diff(token_row.segments) != 0) | (np.diff(parts) != 0)
            parts = np.concatenate([[0], np.cumsum(is_border)]).astype(parts.dtype)
        return replace(token_row, segments=(token_row.segments > 0).astype(np.int32), parts=parts)


def example_builders(settings: PipelineSettings) -> list[ExampleBuilder]:
    """Return what builds the examples of each source. All of them have the same shapes."""
    builders = []
    for source in settings.of_sources():
        builders.append(ExampleBuilder(source.data, source.objective, source.context))
    if len(settings.objectives) == 1:
        return builders
    shapes = common_shapes([builder.build_empty() for builder in builders])
    return [replace(builder, shapes=shapes) for builder in builders]


def _random_generator(key: tuple[int, ...]) -> np.random.Generator:
    return np.random.Generator(np.random.SFC64(np.random.SeedSequence(key)))


def _draw_second_sentence(row_plan: PackedRows | DocumentRows, row: int, rng: np.random.Generator) -> TokenRow:
    """Draw a row that begins in another document."""
    for _ in range(SECOND_SENTENCE_TRIES):
        other_row = int(rng.integers(row_plan.rows))
        if row_plan.document_number(other_row) != row_plan.document_number(row):
            break
    return row_plan.read(other_row)


class RowOrder(Protocol):
    """The source, the epoch and the row of the source that have a place g ≥ 0 in the order of training."""

    def __getitem__(self, g: int) -> tuple[int, int, int]: ...


@dataclass
class TrainingRows:
    """Example g of the training order of a stage, for any g ≥ 0. Epochs follow each other without end.

    Attributes:
        row_plans: the rows of each source's training text; None for a source that is not drawn.
        order: the source, the epoch and the row of each example.
        builders: builds the examples of each source.
        seed: seed of the objectives' random choices.
        phases: tokens by which an epoch of each source may be shifted; None is the stride of its objective.

    Raises:
        UserError: a source is shorter than one row, or is one document where the objective needs several.
    """

    row_plans: Sequence[RowPlan | None]
    order: RowOrder
    builders: Sequence[ExampleBuilder]
    seed: int
    phases: Sequence[int] | None = None

    def __post_init__(self) -> None:
        for row_plan, builder in zip(self.row_plans, self.builders, strict=True):
            if row_plan is not None:
                check_rows(row_plan, builder.objective, builder.context)

    def __getitem__(self, g: int) -> Features:
        source, epoch, row = self.order[g]
        builder = self.builders[source]
        if builder.objective.static_epochs:
            epoch %= builder.objective.static_epochs
        row_plan = self.row_plans[source]
        assert row_plan is not None
        return builder.build(row_plan, row, (self.seed, source, epoch, row), self.phase(source, epoch))

    def phase(self, source: int, epoch: int) -> int:
        """Return the tokens by which the windows of an epoch are shifted."""
        # The first word of this state shuffles the epoch.
        words = np.random.SeedSequence((self.seed, source, epoch)).generate_state(2)
        if self.phases is not None:
            return int(words[1]) % self.phases[source]
        builder = self.builders[source]
        return int(words[1]) % builder.objective.stride(builder.context)


def check_rows(row_plan: RowPlan, objective: Objective, context: ExampleContext) -> None:
    """Check that the training text of a source is enough for examples.

    Raises:
        UserError: it is shorter than one row, or one document where the objective needs several.
    """
    corpus = row_plan.corpus
    if not row_plan.rows:
        needed = objective.row_length(context)
        if isinstance(row_plan, StreamWindows):
            needed += objective.stride(context) - 1  # the first window begins anywhere in the first stride
        raise UserError(
            f"train.seq_len {context.seq_len}: needs {needed:,} tokens, but the training text has {corpus.tokens:,}; "
            "give more text (data.files) or a shorter train.seq_len"
        )
    if objective.rows.has_second_sentence and corpus.documents < 2:
        raise UserError(
            f"objective {objective.name}: the second sentence of a pair may be from another document, but the "
            "training text is one document; set data.document or give more files"
        )


def training_batch(
    rows: ExampleSequence, batch_size: int, local_rows: Integer[np.ndarray, "local_rows"], step: int
) -> dict[str, np.ndarray]:
    """Build the batch of a step.

    Args:
        rows: the order of training examples; in a schedule, that of the stage of the step.
        batch_size: rows of a batch, over all hosts.
        local_rows: the rows of the batch that this host needs.
        step: number of the step, from 0.
    """
    return stacked([rows[step * batch_size + int(row)] for row in local_rows])


def _local_example(
    rows: ExampleSequence, batch_size: int, local_rows: Integer[np.ndarray, "local_rows"], number: int
) -> Features:
    """Build the example `number` of those that this host needs, counted over all steps."""
    step, row = divmod(number, len(local_rows))
    return rows[step * batch_size + int(local_rows[row])]


def training_batches(
    rows: ExampleSequence,
    batch_size: int,
    local_rows: Integer[np.ndarray, "local_rows"],
    start: int,
    stop: int,
    data: DataConfig,
) -> Iterator[dict[str, np.ndarray]]:
    """Return the batches of steps `[start, stop)`, built ahead by a thread or by `data.workers` processes.

    All steps are of one stage. See `training_batch`.
    """
    at_once = REMOTE_ROWS_AT_ONCE if is_remote(data.cache_dir) else 1
    if at_once > 1 and not data.workers:
        count = len(local_rows)
        numbers = grain.MapDataset.range(start * count, stop * count)
        options = grain.ReadOptions(num_threads=at_once, prefetch_buffer_size=max(data.prefetch * count, at_once))
        examples = numbers.map(partial(_local_example, rows, batch_size, local_rows)).to_iter_dataset(options)
        return iter(examples.batch(count, batch_fn=stacked))
    steps = grain.MapDataset.range(start, stop).map(partial(training_batch, rows, batch_size, local_rows))
    if not data.workers:
        options = grain.ReadOptions(num_threads=1, prefetch_buffer_size=data.prefetch)
        return iter(steps.to_iter_dataset(options))
    if not flags.FLAGS.is_parsed():
        flags.FLAGS.mark_as_parsed()  # Grain's worker processes read absl flags, which only absl's own main parses
    threads = 0 if at_once == 1 else at_once // data.workers + 1
    batches = steps.to_iter_dataset(grain.ReadOptions(num_threads=threads, prefetch_buffer_size=threads))
    worker_options = grain.MultiprocessingOptions(num_workers=data.workers, per_worker_buffer_size=data.prefetch)
    return iter(batches.mp_prefetch(worker_options, worker_init_fn=leave_signals_to_parent))


@dataclass(frozen=True)
class ValidationSet:
    """The validation split in order: every row of every source once, in batches of one shape.

    The last batch is filled with empty rows (segment 0, weight 0), so that every host has the same number of batches.

    Attributes:
        row_plans: the rows of each source's validation text.
        builders: builds the examples of each source.
        batch_size: rows of a batch, over all hosts.
        max_batches: largest number of batches; 0 takes all. If they do not hold all rows, each source has its share of
            them, and its first rows are taken.
    """

    row_plans: Sequence[RowPlan]
    builders: Sequence[ExampleBuilder]
    batch_size: int
    max_batches: int = 0

    def __len__(self) -> int:
        rows = sum(row_plan.rows for row_plan in self.row_plans)
        batches = (rows + self.batch_size - 1) // self.batch_size
        if self.max_batches:
            return min(batches, self.max_batches)
        return batches

    def batches(self, local_rows: Integer[np.ndarray, "local_rows"]) -> Iterator[dict[str, np.ndarray]]:
        """Yield each batch, with only the rows that this host needs."""
        at_once = REMOTE_ROWS_AT_ONCE if is_remote(self.builders[0].data.cache_dir) else 1
        with ThreadPoolExecutor(at_once) as pool:
            for number in range(len(self)):
                first = number * self.batch_size
                yield stacked(list(pool.map(self._build_example, (first + local_rows).tolist())))

    @cached_property
    def _rows_of_sources(self) -> list[int]:
        """Return how many rows of each source are evaluated."""
        ends = np.cumsum([row_plan.rows for row_plan in self.row_plans])
        selected = min(len(self) * self.batch_size, int(ends[-1]))
        return np.diff(ends * selected // ends[-1], prepend=0).tolist()

    def _build_example(self, g: int) -> Features:
        """Build example g of the split, or an empty one after the last."""
        row = g
        for source, rows in enumerate(self._rows_of_sources):
            if row < rows:
                return self.builders[source].build(self.row_plans[source], row, key=(source, row))
            row -= rows
        return self.builders[0].build_empty()
