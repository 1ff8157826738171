"""Batches from corpora. A batch is a function of (seed, step) and of nothing else.

Row g of the global order is global row index → (source, n) → (epoch, row of the epoch) → a shuffled row of the corpus
→ tokens → the objective's example. Every arrow is random access, so a run resumes anywhere, on any number of hosts,
by asking for the next step.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any, Protocol

import grain
import numpy as np
from absl import flags

from t5x_lite.config import DataConfig
from t5x_lite.data.mixture import Interleaving
from t5x_lite.errors import UserError
from t5x_lite.objectives.objective import Features, Objective

Row = tuple[np.ndarray, np.ndarray]
"""Tokens and segments (1, 2, … per document, 0 padding), int32 `[row_length]`."""


class TokenStream(Protocol):
    """What the pipeline asks of a corpus; see `corpus.Corpus`."""

    tokens: int
    documents: int
    offsets: np.ndarray

    def read(self, start: int, stop: int) -> Row: ...


class RowPlan(Protocol):
    """How rows are cut from one corpus: how many there are, and each by its number."""

    rows: int

    def read(self, row: int, phase: int) -> Row: ...


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
        tokens, documents = self.corpus.read(start, min(start + self.length, self.corpus.tokens))
        return _padded(tokens, documents - documents[0] + 1, self.length)


class PackedDocuments:
    """Whole documents side by side, in a fixed shuffled order; one longer than a row is cut into rows first."""

    def __init__(self, corpus: TokenStream, length: int, order_seed: int | None) -> None:
        self.corpus, self.length = corpus, length
        self.pieces = _cut_documents(corpus.offsets, length)
        if order_seed is not None:
            self.pieces = np.random.default_rng(order_seed).permutation(self.pieces)
        self.starts = np.array(_first_of_each_row(np.diff(self.pieces, axis=1)[:, 0], length), np.int64)
        self.rows = len(self.starts) - 1

    def read(self, row: int, phase: int = 0) -> Row:
        own = self.pieces[self.starts[row] : self.starts[row + 1]]
        parts = [self.corpus.read(int(start), int(stop))[0] for start, stop in own]
        segments = np.repeat(np.arange(1, len(parts) + 1), [len(part) for part in parts])
        return _padded(np.concatenate(parts), segments, self.length)


class SingleDocuments:
    """One document a row, its tokens beyond the row left out."""

    def __init__(self, corpus: TokenStream, length: int) -> None:
        self.corpus, self.length, self.rows = corpus, length, corpus.documents

    def read(self, row: int, phase: int = 0) -> Row:
        start, stop = (int(at) for at in self.corpus.offsets[row : row + 2])
        tokens = self.corpus.read(start, min(stop, start + self.length))[0]
        return _padded(tokens, np.ones(len(tokens)), self.length)


def _cut_documents(offsets: np.ndarray, length: int) -> np.ndarray:
    """`[pieces, 2]` start and stop in the stream of every document, long ones cut."""
    sizes = np.diff(offsets)
    parts = -(-sizes // length)
    document = np.repeat(np.arange(len(sizes)), parts)
    number = np.arange(len(document)) - np.repeat(np.cumsum(parts) - parts, parts)
    starts = offsets[document] + number * length
    return np.stack([starts, np.minimum(starts + length, offsets[document + 1])], axis=1)


def _first_of_each_row(sizes: np.ndarray, length: int) -> list[int]:
    """The first piece of each row, and the end, by next-fit: a row takes pieces until the next does not fit."""
    ends = np.cumsum(sizes)
    firsts = [0]
    while firsts[-1] < len(sizes):
        before = int(ends[firsts[-1] - 1]) if firsts[-1] else 0
        firsts.append(int(np.searchsorted(ends, before + length, side="right")))
    return firsts


def _padded(tokens: np.ndarray, segments: np.ndarray, length: int) -> Row:
    row = np.zeros((2, length), np.int32)
    row[0, : len(tokens)], row[1, : len(tokens)] = tokens, segments
    return row[0], row[1]


def _plan(corpus: TokenStream, data: DataConfig, objective: Objective, seq_len: int, seed: int | None) -> RowPlan:
    length = objective.row_length(seq_len)
    match data.packing:
        case "stream":
            return Windows(corpus, length, objective.stride(seq_len), whole=seed is None)
        case "documents":
            return PackedDocuments(corpus, length, seed)
        case "none":
            return SingleDocuments(corpus, length)


def _example(data: DataConfig, objective: Objective, row: Row, key: Sequence[int]) -> Features:
    tokens, segments = row
    if not data.separate_documents:
        segments = (segments > 0).astype(np.int32)
    return objective.example(tokens, segments, np.random.Generator(np.random.SFC64(np.random.SeedSequence(key))))


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
        seq_len: int,
        seed: int,
    ) -> None:
        self.data, self.objective, self.seed = data, objective, seed
        self.plans = [_plan(corpus, data, objective, seq_len, seed) for corpus in corpora]
        self.stride = objective.stride(seq_len)
        self.shares = shares
        for corpus, plan in zip(corpora, self.plans, strict=True):
            if not plan.rows:
                raise UserError(
                    f"train.seq_len {seq_len}: one example takes {objective.row_length(seq_len)} tokens, but the "
                    f"training text has {corpus.tokens:,}; give more text (data.files) or a shorter train.seq_len"
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
        order, phase = self._epoch(source, epoch)
        row = int(order[place])
        return _example(self.data, self.objective, plan.read(row, phase), (self.seed, source, epoch, row))

    def _make_epoch(self, source: int, epoch: int) -> tuple[grain.MapDataset, int]:
        """The epoch's permutation (random access, a cipher: no table in memory) and the shift of its windows."""
        shuffle_seed, phase = np.random.SeedSequence((self.seed, source, epoch)).generate_state(2)
        return grain.MapDataset.range(self.plans[source].rows).shuffle(seed=int(shuffle_seed)), int(phase % self.stride)


def training_batch(rows: TrainingRows, batch_size: int, local_rows: np.ndarray, step: int) -> dict[str, np.ndarray]:
    """The batch of `step`: those of its `batch_size` rows that this host makes."""
    return _stack([rows[step * batch_size + int(row)] for row in local_rows])


def _stack(examples: Sequence[Features]) -> dict[str, np.ndarray]:
    return {name: np.stack([example[name] for example in examples]) for name in examples[0]}


def training_batches(
    rows: TrainingRows, batch_size: int, local_rows: np.ndarray, start: int, stop: int, data: DataConfig
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
    seq_len: int
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
        plans = [_plan(corpus, self.data, self.objective, self.seq_len, None) for corpus in self.corpora]
        return [plan for plan, corpus in zip(plans, self.corpora, strict=True) if corpus.tokens]

    def _row(self, place: tuple[int, RowPlan, int] | None) -> Features:
        if place is None:
            empty = np.zeros(self.objective.row_length(self.seq_len), np.int32)
            return _example(self.data, self.objective, (empty, empty), (0,))
        source, plan, row = place
        return _example(self.data, self.objective, plan.read(row, 0), (source, row))
