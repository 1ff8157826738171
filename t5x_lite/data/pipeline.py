"""Batches from corpora. A batch is a function of (seed, step) and of nothing else.

Row g of the global order is global row index → (source, n) → (epoch, row of the epoch) → a shuffled row of the corpus
→ tokens → the objective's example. Every arrow is random access, so a run resumes anywhere, on any number of hosts,
by asking for the next step.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Protocol

import grain
import numpy as np
from absl import flags

from t5x_lite.data.config import DataConfig
from t5x_lite.data.corpus import Corpus, interval_numbers
from t5x_lite.data.mixture import MixtureOrder
from t5x_lite.errors import UserError
from t5x_lite.objectives.features import stacked
from t5x_lite.objectives.objective import ExampleContext, Features, Objective, TokenRow


class StreamWindows:
    """Consecutive windows of the token stream, document borders wherever they fall.

    A phase shifts all windows of an epoch, so that epochs do not cut documents at the same places. With `whole`, the
    last window may be short (validation sees every token); otherwise every row is full.
    """

    def __init__(self, corpus: Corpus, length: int, stride: int, *, whole: bool = False) -> None:
        self.corpus, self.length, self.stride = corpus, length, stride
        left = corpus.tokens - (length - stride)
        self.rows = max(-(-left // stride) if whole else (corpus.tokens - length + 1) // stride, 0)

    def read(self, row: int, phase: int = 0) -> TokenRow:
        start = row * self.stride + phase
        return _row(self.corpus, [(start, min(start + self.length, self.corpus.tokens))], self.length)


class PackedRows:
    """Pieces of the token stream, `[pieces, 2]` start and stop, one a row or, by the `firsts` of each row, several."""

    def __init__(self, corpus: Corpus, pieces: np.ndarray, length: int, firsts: np.ndarray | None = None) -> None:
        self.corpus, self.pieces, self.length = corpus, pieces, length
        self.firsts = np.arange(len(pieces) + 1) if firsts is None else firsts
        self.rows = len(self.firsts) - 1

    def read(self, row: int, phase: int = 0) -> TokenRow:
        own = self.pieces[self.firsts[row] : self.firsts[row + 1]].tolist()
        return _row(self.corpus, own, max(self.length, sum(stop - start for start, stop in own)))

    def document(self, row: int) -> int:
        """Which document a row begins in."""
        return int(np.searchsorted(self.corpus.offsets, self.pieces[self.firsts[row], 0], side="right"))


def packed_documents(
    corpus: Corpus, objective: Objective, context: ExampleContext, order_seed: int | None
) -> PackedRows:
    """Whole documents side by side, in a fixed shuffled order; one longer than a row is cut into rows first.

    The objective says how much room a document takes. Pairs of texts are never cut here.
    """
    length, pairs = objective.row_length(context), objective.rows == "pairs"
    pieces = _documents(corpus) if pairs else _cut_documents(corpus.offsets, length)
    sizes = np.diff(corpus.parts).reshape(corpus.documents, -1) if pairs else np.diff(pieces, axis=1)
    if order_seed is not None:
        order = np.random.default_rng(order_seed).permutation(len(pieces))
        pieces, sizes = pieces[order], sizes[order]
    room = objective.sizes(sizes, context) if len(sizes) else np.zeros((0, 1), np.int64)
    return PackedRows(corpus, pieces, length, _first_of_each_row(room, objective.capacity(context)))


def whole_sentences(corpus: Corpus, length: int, *, apart: bool) -> PackedRows:
    """Whole sentences in the order of the text, as many as fit; a longer one is cut.

    With `apart` no row goes on into the next document.
    """
    borders = np.searchsorted(corpus.parts, corpus.offsets) if apart else None
    starts = corpus.parts[_first_of_each_row(np.diff(corpus.parts)[:, None], [length], borders)]
    return PackedRows(corpus, np.stack([starts[:-1], np.minimum(starts[1:], starts[:-1] + length)], axis=1), length)


def _row(corpus: Corpus, pieces: Sequence[Sequence[int]], length: int) -> TokenRow:
    """Pieces of the stream side by side, padded to `length`; segments and parts are numbered."""
    row, at, segment = np.zeros((3, length), np.int32), 0, 1
    for start, stop in pieces:
        if stop > start:
            tokens, documents = corpus.read(start, stop)
            end = at + stop - start
            row[0, at:end], row[1, at:end] = tokens, documents + (segment - documents[0])
            if corpus.parts is not corpus.offsets:
                first = np.searchsorted(corpus.parts, corpus.offsets[documents])
                row[2, at:end] = interval_numbers(corpus.parts, start, stop) - first
            at, segment = end, segment + 1 + int(documents[-1] - documents[0])
    return TokenRow(*row)


def _documents(corpus: Corpus) -> np.ndarray:
    """`[documents, 2]` start and stop in the stream."""
    return np.stack([corpus.offsets[:-1], corpus.offsets[1:]], axis=1)


def _cut_documents(offsets: np.ndarray, length: int) -> np.ndarray:
    """`[pieces, 2]` start and stop in the stream of every document, long ones cut."""
    sizes = np.diff(offsets)
    parts = -(-sizes // length)
    document = np.repeat(np.arange(len(sizes)), parts)
    number = np.arange(len(document)) - np.repeat(np.cumsum(parts) - parts, parts)
    starts = offsets[document] + number * length
    return np.stack([starts, np.minimum(starts + length, offsets[document + 1])], axis=1)


def _first_of_each_row(sizes: np.ndarray, capacity: Sequence[int], borders: np.ndarray | None = None) -> np.ndarray:
    """The first piece of each row, and the end, by next-fit: a row takes pieces until the next does not fit.

    `sizes` `[pieces, n]` and `capacity` `[n]` count room of n kinds, all of which must suffice. No row goes on past one
    of the `borders`, numbers of pieces in ascending order.
    """
    ends = np.concatenate([np.zeros((1, sizes.shape[1]), np.int64), np.cumsum(sizes, axis=0)])
    borders = np.array([len(sizes)]) if borders is None else borders
    firsts = [0]
    while firsts[-1] < len(sizes):
        first = firsts[-1]
        most = [np.searchsorted(ends[:, n], ends[first, n] + room, side="right") - 1 for n, room in enumerate(capacity)]
        most.append(borders[np.searchsorted(borders, first, side="right")])
        firsts.append(max(int(min(most)), first + 1))
    return np.array(firsts, np.int64)


def _plan(
    corpus: Corpus, data: DataConfig, objective: Objective, context: ExampleContext, seed: int | None
) -> StreamWindows | PackedRows:
    length = objective.row_length(context)
    match data.packing:
        case "stream":
            return StreamWindows(corpus, length, objective.stride(context), whole=seed is None)
        case "documents":
            return packed_documents(corpus, objective, context, seed)
        case "sentences":
            return whole_sentences(corpus, length, apart=objective.rows == "sentences")
        case "none":
            # One document a row; what a row of a pair has no room for is the objective's to cut.
            pieces = _documents(corpus)
            most = pieces[:, 1] if objective.rows == "pairs" else pieces[:, 0] + length
            return PackedRows(corpus, np.stack([pieces[:, 0], np.minimum(pieces[:, 1], most)], axis=1), length)


SECOND_SENTENCE_TRIES = 10
"""Draws of another document before any will do (BERT's create_pretraining_data)."""


def _example(
    plan: StreamWindows | PackedRows | None,
    row: int,
    phase: int,
    data: DataConfig,
    objective: Objective,
    context: ExampleContext,
    key: Any,
) -> Features:
    """One example; without a plan, an empty one."""
    rng = np.random.Generator(np.random.SFC64(np.random.SeedSequence(key)))
    empty = np.zeros(objective.row_length(context), np.int32)
    found = TokenRow(empty, empty, empty) if plan is None else plan.read(row, phase)
    if not data.separate_documents or (objective.one_text and data.packing in {"stream", "sentences"}):
        found = replace(found, segments=(found.segments > 0).astype(np.int32))
    if objective.rows == "sentences":
        found = replace(
            found, second_sentence=_second_sentence(plan, row, rng) if isinstance(plan, PackedRows) else found
        )
    return objective.example(found, context, rng)


def _second_sentence(plan: PackedRows, row: int, rng: np.random.Generator) -> TokenRow:
    """A row that begins in another document."""
    for _ in range(SECOND_SENTENCE_TRIES):
        other = int(rng.integers(plan.rows))
        if plan.document(other) != plan.document(row):
            break
    return plan.read(other)


@dataclass
class TrainingRows:
    """Row g of the global training order, for any g ≥ 0: epochs follow each other without end.

    Raises:
        UserError: a corpus shorter than one row.
    """

    corpora: Sequence[Corpus]
    shares: np.ndarray
    data: DataConfig
    objective: Objective
    context: ExampleContext
    seed: int

    def __post_init__(self) -> None:
        objective, context = self.objective, self.context
        self.plans = [_plan(corpus, self.data, objective, context, self.seed) for corpus in self.corpora]
        for corpus, plan in zip(self.corpora, self.plans, strict=True):
            if not plan.rows:
                raise UserError(
                    f"train.seq_len {context.seq_len}: one example takes {objective.row_length(context)} tokens, but "
                    f"the training text has {corpus.tokens:,}; give more text (data.files) or a shorter train.seq_len"
                )
            if objective.rows == "sentences" and corpus.documents < 2:
                raise UserError(
                    f"objective {objective.name}: the second sentence of a pair may be from another document, but the "
                    "training text is one document; set data.document or give more files"
                )
        self.order = MixtureOrder([plan.rows for plan in self.plans], self.shares, self.seed)

    def __getitem__(self, g: int) -> Features:
        source, epoch, row = self.order[g]
        static = self.objective.static_epochs
        seen = epoch % static if static else epoch
        # The first word of these shuffles the epoch, the second shifts its windows.
        drawn = np.random.SeedSequence((self.seed, source, seen)).generate_state(2)
        phase = int(drawn[1]) % self.objective.stride(self.context)
        key = (self.seed, source, seen, row)
        return _example(self.plans[source], row, phase, self.data, self.objective, self.context, key)


class ExampleSequence(Protocol):
    """An endless order of examples."""

    def __getitem__(self, g: int) -> Features: ...


def training_batch(rows: ExampleSequence, batch_size: int, local_rows: np.ndarray, step: int) -> dict[str, np.ndarray]:
    """The batch of `step`: those of its `batch_size` rows that this host makes."""
    return stacked([rows[step * batch_size + int(row)] for row in local_rows])


def training_batches(
    rows: ExampleSequence, batch_size: int, local_rows: np.ndarray, start: int, stop: int, data: DataConfig
) -> Iterator[dict[str, np.ndarray]]:
    """Batches of steps `[start, stop)`, made ahead by a thread, or by `data.workers` processes."""
    steps = grain.MapDataset.range(start, stop).map(partial(training_batch, rows, batch_size, local_rows))
    if not data.workers:
        options = grain.ReadOptions(num_threads=1, prefetch_buffer_size=data.prefetch)
        return iter(steps.to_iter_dataset(options))
    if not flags.FLAGS.is_parsed():
        flags.FLAGS.mark_as_parsed()  # Grain's worker processes read absl flags, which only absl's own main parses
    in_worker = steps.to_iter_dataset(grain.ReadOptions(num_threads=0, prefetch_buffer_size=0))
    options = grain.MultiprocessingOptions(num_workers=data.workers, per_worker_buffer_size=data.prefetch)
    return iter(in_worker.mp_prefetch(options))


@dataclass(frozen=True)
class ValidationSet:
    """The validation split in order: every row of every source once, in batches of one shape.

    The last batch is filled up with empty rows (segment 0, weight 0), so that every host makes the same number.
    """

    corpora: Sequence[Corpus]
    data: DataConfig
    objective: Objective
    context: ExampleContext
    batch_size: int
    limit: int = 0

    def __len__(self) -> int:
        batches = -(-sum(plan.rows for plan in self._plans()) // self.batch_size)
        return min(batches, self.limit) if self.limit else batches

    def batches(self, local_rows: np.ndarray) -> Iterator[dict[str, np.ndarray]]:
        """Each batch: those of its rows that this host makes."""
        places = [(source, plan, row) for source, plan in enumerate(self._plans()) for row in range(plan.rows)]
        for number in range(len(self)):
            own = [number * self.batch_size + int(row) for row in local_rows]
            yield stacked([self._row(places[g] if g < len(places) else None) for g in own])

    def _plans(self) -> list[StreamWindows | PackedRows]:
        full = (corpus for corpus in self.corpora if corpus.tokens)
        return [_plan(corpus, self.data, self.objective, self.context, None) for corpus in full]

    def _row(self, place: tuple[int, StreamWindows | PackedRows, int] | None) -> Features:
        source, plan, row = place or (0, None, 0)
        return _example(plan, row, 0, self.data, self.objective, self.context, (source, row))
