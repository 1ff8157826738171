"""Batches from corpora. A batch is a function of (seed, step) and of nothing else.

Row g of the global order is global row index → (source, n) → (epoch, row of the epoch) → a shuffled row of the corpus
→ tokens → the objective's example. Every arrow is random access, so a run resumes anywhere, on any number of hosts,
by asking for the next step.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from typing import Any, Protocol

import grain
import numpy as np
from absl import flags

from t5x_lite.config import DataConfig
from t5x_lite.data.mixture import Interleaving
from t5x_lite.errors import UserError
from t5x_lite.objectives.objective import Features, Objective, Row, Task


class TokenStream(Protocol):
    """What the pipeline asks of a corpus; see `corpus.Corpus`."""

    tokens: int
    documents: int
    offsets: np.ndarray
    parts: np.ndarray

    def read(self, start: int, stop: int) -> tuple[np.ndarray, np.ndarray]: ...


class RowPlan(Protocol):
    """How rows are cut from one corpus: how many there are, each by its number, and the document that one begins in."""

    rows: int

    def read(self, row: int, phase: int = 0) -> Row: ...
    def document(self, row: int) -> int: ...


class Windows:
    """Consecutive windows of the token stream, document borders wherever they fall.

    A phase shifts all windows of an epoch, so that epochs do not cut documents at the same places. With `whole`, the
    last window may be short (validation sees every token); otherwise every row is full.
    """

    def __init__(self, corpus: TokenStream, length: int, stride: int, *, whole: bool = False) -> None:
        self.corpus, self.length, self.stride = corpus, length, stride
        left = corpus.tokens - (length - stride)
        self.rows = max(-(-left // stride) if whole else (corpus.tokens - length + 1) // stride, 0)

    def read(self, row: int, phase: int = 0) -> Row:
        start = row * self.stride + phase
        return _stretch(self.corpus, start, min(start + self.length, self.corpus.tokens), self.length)

    def document(self, row: int) -> int:
        return _document_at(self.corpus, row * self.stride)


class PackedDocuments:
    """Whole documents side by side, in a fixed shuffled order; one longer than a row is cut into rows first.

    The objective says how much room a document takes. Pairs of texts are never cut here.
    """

    def __init__(self, corpus: TokenStream, objective: Objective, task: Task, order_seed: int | None) -> None:
        self.corpus, self.length = corpus, objective.row_length(task)
        pairs = objective.rows == "pairs"
        self.pieces = _documents(corpus) if pairs else _cut_documents(corpus.offsets, self.length)
        sizes = _field_sizes(corpus) if pairs else np.diff(self.pieces, axis=1)
        if order_seed is not None:
            order = np.random.default_rng(order_seed).permutation(len(self.pieces))
            self.pieces, sizes = self.pieces[order], sizes[order]
        room = objective.sizes(sizes, task) if len(sizes) else np.zeros((0, 1), np.int64)
        self.starts = _first_of_each_row(room, objective.capacity(task))
        self.rows = len(self.starts) - 1

    def read(self, row: int, phase: int = 0) -> Row:
        own = self.pieces[self.starts[row] : self.starts[row + 1]]
        rows = [_stretch(self.corpus, int(start), int(stop), int(stop - start)) for start, stop in own]
        segments = np.repeat(np.arange(1, len(rows) + 1), [len(one.tokens) for one in rows])
        tokens, parts = (np.concatenate([getattr(one, name) for one in rows]) for name in ("tokens", "parts"))
        return _padded(tokens, segments, parts, max(self.length, len(tokens)))

    def document(self, row: int) -> int:
        return _document_at(self.corpus, int(self.pieces[self.starts[row], 0]))


class SingleDocuments:
    """One document a row, its tokens beyond the row left out; with `whole`, left to the objective to cut."""

    def __init__(self, corpus: TokenStream, length: int, *, whole: bool = False) -> None:
        self.corpus, self.length, self.whole, self.rows = corpus, length, whole, corpus.documents

    def read(self, row: int, phase: int = 0) -> Row:
        start, stop = (int(at) for at in self.corpus.offsets[row : row + 2])
        stop = stop if self.whole else min(stop, start + self.length)
        return _stretch(self.corpus, start, stop, max(self.length, stop - start))

    def document(self, row: int) -> int:
        return row


class Sentences:
    """Whole sentences in the order of the text, as many as fit; a longer one is cut.

    With `apart` no row goes on into the next document.
    """

    def __init__(self, corpus: TokenStream, length: int, *, apart: bool) -> None:
        self.corpus, self.length, self.apart = corpus, length, apart
        ends = np.searchsorted(corpus.parts, corpus.offsets) if apart else np.array([0, len(corpus.parts) - 1])
        firsts, at = [0], 0
        while at < len(corpus.parts) - 1:
            fits = int(np.searchsorted(corpus.parts, corpus.parts[at] + length, side="right")) - 1
            border = int(ends[np.searchsorted(ends, at, side="right")])
            at = max(min(fits, border), at + 1)
            firsts.append(at)
        self.starts = corpus.parts[firsts]
        self.rows = len(self.starts) - 1

    def read(self, row: int, phase: int = 0) -> Row:
        start, stop = (int(at) for at in self.starts[row : row + 2])
        return _stretch(self.corpus, start, min(stop, start + self.length), self.length)

    def document(self, row: int) -> int:
        return _document_at(self.corpus, int(self.starts[row]))


def _document_at(corpus: TokenStream, place: int) -> int:
    return int(np.searchsorted(corpus.offsets, place, side="right")) - 1


def _stretch(corpus: TokenStream, start: int, stop: int, length: int) -> Row:
    """Tokens `[start, stop)` of the stream, padded to `length`; segments and parts are numbered."""
    if stop == start:
        return _padded(*(np.zeros(0, np.int32),) * 3, length)
    tokens, documents = corpus.read(start, stop)
    first = np.searchsorted(corpus.parts, corpus.offsets[documents])
    parts = np.searchsorted(corpus.parts, np.arange(start, stop), side="right") - 1 - first
    return _padded(tokens, documents - documents[0] + 1, parts, length)


def _documents(corpus: TokenStream) -> np.ndarray:
    """`[documents, 2]` start and stop in the stream."""
    return np.stack([corpus.offsets[:-1], corpus.offsets[1:]], axis=1)


def _field_sizes(corpus: TokenStream) -> np.ndarray:
    """`[documents, fields]` tokens."""
    return np.diff(corpus.parts).reshape(corpus.documents, -1)


def _cut_documents(offsets: np.ndarray, length: int) -> np.ndarray:
    """`[pieces, 2]` start and stop in the stream of every document, long ones cut."""
    sizes = np.diff(offsets)
    parts = -(-sizes // length)
    document = np.repeat(np.arange(len(sizes)), parts)
    number = np.arange(len(document)) - np.repeat(np.cumsum(parts) - parts, parts)
    starts = offsets[document] + number * length
    return np.stack([starts, np.minimum(starts + length, offsets[document + 1])], axis=1)


def _first_of_each_row(sizes: np.ndarray, capacity: Sequence[int]) -> np.ndarray:
    """The first piece of each row, and the end, by next-fit: a row takes pieces until the next does not fit.

    `sizes` `[pieces, n]` and `capacity` `[n]` count room of n kinds, all of which must suffice.
    """
    ends = np.concatenate([np.zeros((1, sizes.shape[1]), np.int64), np.cumsum(sizes, axis=0)])
    firsts = [0]
    while firsts[-1] < len(sizes):
        begin = ends[firsts[-1]]
        fits = (np.searchsorted(ends[:, n], begin[n] + room, side="right") - 1 for n, room in enumerate(capacity))
        firsts.append(max(int(min(fits)), firsts[-1] + 1))
    return np.array(firsts, np.int64)


def _padded(tokens: np.ndarray, segments: np.ndarray, parts: np.ndarray, length: int) -> Row:
    row = np.zeros((3, length), np.int32)
    for number, values in enumerate((tokens, segments, parts)):
        row[number, : len(values)] = values
    return Row(*row)


def _plan(corpus: TokenStream, data: DataConfig, objective: Objective, task: Task, seed: int | None) -> RowPlan:
    length = objective.row_length(task)
    match data.packing:
        case "stream":
            return Windows(corpus, length, objective.stride(task), whole=seed is None)
        case "documents":
            return PackedDocuments(corpus, objective, task, seed)
        case "sentences":
            return Sentences(corpus, length, apart=objective.rows == "sentences")
        case "none":
            return SingleDocuments(corpus, length, whole=objective.rows == "pairs")


PARTNER_TRIES = 10
"""Draws of another document before any will do (BERT's create_pretraining_data)."""


def _example(
    plan: RowPlan | None, row: int, phase: int, data: DataConfig, objective: Objective, task: Task, key: Any
) -> Features:
    """One example; without a plan, an empty one."""
    rng = np.random.Generator(np.random.SFC64(np.random.SeedSequence(key)))
    empty = np.zeros(objective.row_length(task), np.int32)
    found = Row(empty, empty, empty) if plan is None else plan.read(row, phase)
    if not data.separate_documents or (objective.one_text and data.packing in {"stream", "sentences"}):
        found = replace(found, segments=(found.segments > 0).astype(np.int32))
    if objective.wants_partner:
        found = replace(found, partner=found if plan is None else plan.read(_other_document(plan, row, rng)))
    return objective.example(found, task, rng)


def _other_document(plan: RowPlan, row: int, rng: np.random.Generator) -> int:
    """A row that begins in another document."""
    other = row
    for _ in range(PARTNER_TRIES):
        other = int(rng.integers(plan.rows))
        if plan.document(other) != plan.document(row):
            break
    return other


class TrainingRows:
    """Row g of the global training order, for any g ≥ 0: epochs follow each other without end.

    Raises:
        UserError: a corpus shorter than one row.
    """

    def __init__(
        self,
        corpora: Sequence[TokenStream],
        shares: np.ndarray,
        data: DataConfig,
        objective: Objective,
        task: Task,
        seed: int,
    ) -> None:
        self.data, self.objective, self.task, self.seed = data, objective, task, seed
        self.plans = [_plan(corpus, data, objective, task, seed) for corpus in corpora]
        self.stride = objective.stride(task)
        self.shares = shares
        for corpus, plan in zip(corpora, self.plans, strict=True):
            if not plan.rows:
                raise UserError(
                    f"train.seq_len {task.seq_len}: one example takes {objective.row_length(task)} tokens, but the "
                    f"training text has {corpus.tokens:,}; give more text (data.files) or a shorter train.seq_len"
                )
            if objective.wants_partner and corpus.documents < 2:
                raise UserError(
                    f"objective {objective.name}: the second sentence of a pair may be from another document, but the "
                    "training text is one document; set data.document or give more files"
                )
        self._build()

    def _build(self) -> None:
        self._mixture = Interleaving(self.shares) if len(self.plans) > 1 else None
        self._epoch = lru_cache(maxsize=4 * len(self.plans))(self._make_epoch)

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if not name.startswith("_")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._build()

    def __getitem__(self, g: int) -> Features:
        source, n = self._mixture[g] if self._mixture else (0, g)
        plan = self.plans[source]
        epoch, place = divmod(n, plan.rows)
        static = self.objective.static_epochs
        seen = epoch % static if static else epoch
        phase = self._epoch(source, seen)[1]
        row = int(self._epoch(source, epoch)[0][place])
        key = (self.seed, source, seen, row)
        return _example(plan, row, phase, self.data, self.objective, self.task, key)

    def _make_epoch(self, source: int, epoch: int) -> tuple[grain.MapDataset, int]:
        """The epoch's permutation (random access, a cipher: no table in memory) and the shift of its windows."""
        shuffle_seed, phase = np.random.SeedSequence((self.seed, source, epoch)).generate_state(2)
        return grain.MapDataset.range(self.plans[source].rows).shuffle(seed=int(shuffle_seed)), int(phase % self.stride)


class RowsByNumber(Protocol):
    """An endless order of examples."""

    def __getitem__(self, g: int) -> Features: ...


def training_batch(rows: RowsByNumber, batch_size: int, local_rows: np.ndarray, step: int) -> dict[str, np.ndarray]:
    """The batch of `step`: those of its `batch_size` rows that this host makes."""
    return _stack([rows[step * batch_size + int(row)] for row in local_rows])


def _stack(examples: Sequence[Features]) -> dict[str, np.ndarray]:
    return {name: np.stack([example[name] for example in examples]) for name in examples[0]}


def training_batches(
    rows: RowsByNumber, batch_size: int, local_rows: np.ndarray, start: int, stop: int, data: DataConfig
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
class Validation:
    """The validation split in order: every row of every source once, in batches of one shape.

    The last batch is filled up with empty rows (segment 0, weight 0), so that every host makes the same number.
    """

    corpora: Sequence[TokenStream]
    data: DataConfig
    objective: Objective
    task: Task
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
            yield _stack([self._row(places[g] if g < len(places) else None) for g in own])

    def _plans(self) -> list[RowPlan]:
        plans = [_plan(corpus, self.data, self.objective, self.task, None) for corpus in self.corpora]
        return [plan for plan, corpus in zip(plans, self.corpora, strict=True) if corpus.tokens]

    def _row(self, place: tuple[int, RowPlan, int] | None) -> Features:
        source, plan, row = place or (0, None, 0)
        return _example(plan, row, 0, self.data, self.objective, self.task, (source, row))
