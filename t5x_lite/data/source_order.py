"""The order in which a source gives its rows: row n, for any n ≥ 0, is some row of some epoch.

The epochs of a source follow each other without end, each in a different random order. A source may give rows of one
length first and of another length later. An epoch in which the length changes is divided into blocks of the text in a
random order: rows of the first length come from as many blocks as they need, rows of the next length from the other
blocks. So no text comes twice in an epoch, and no table grows with the corpus.
"""

from bisect import bisect_right
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache

import grain
import numpy as np
from jaxtyping import Int64

from t5x_lite.data.row_plan import SEARCHES_AT_ONCE, DocumentRows, RowPlan

BLOCKS = 1024
"""Blocks of an epoch in which the length of rows changes. At most a row at each border of a block is passed over."""
BLOCK_ORDER = 1
"""Last word of the seed of the order of the blocks. That of the rows of section k is k + 2."""


@dataclass(frozen=True)
class Section:
    """Rows of one length that a source gives one after the other.

    Attributes:
        rows: rows of an epoch.
        drawn: rows that are given; None is without end.
        blocks: first row and end of each block of the text; None if the source has rows of one length alone.
    """

    rows: int
    drawn: int | None = None
    blocks: Int64[np.ndarray, "blocks 2"] | None = None


@dataclass(frozen=True)
class _Segment:
    """Rows of one section, either of whole epochs or of some blocks of an epoch.

    Attributes:
        first: the source's rows before it.
        epoch: its epoch, or the first of them.
        section: number of its section.
        blocks: first row and end of its blocks, in their order; None for whole epochs.
    """

    first: int
    epoch: int
    section: int
    blocks: Int64[np.ndarray, "blocks 2"] | None = None


class SourceOrder:
    """Maps n to the epoch and the row of the n-th row that a source gives.

    Args:
        sections: rows of one length each; the last is without end.
        key: seed of the run, and number of the source.
    """

    def __init__(self, sections: Sequence[Section], key: tuple[int, int]) -> None:
        self.sections = sections
        self.key = key
        self._segments = self._plan_segments()
        self._firsts = [segment.first for segment in self._segments]

    def __getitem__(self, n: int) -> tuple[int, int]:
        segment = self._segments[bisect_right(self._firsts, n) - 1]
        position = n - segment.first
        if segment.blocks is not None:
            ends = np.cumsum(segment.blocks[:, 1] - segment.blocks[:, 0])
            seed = (*self.key, segment.epoch, BLOCK_ORDER + 1 + segment.section)
            shuffled = int(_permutation(int(ends[-1]), seed)[position])
            block = int(np.searchsorted(ends, shuffled, side="right"))
            return segment.epoch, int(segment.blocks[block, 1] - (ends[block] - shuffled))
        row_count = self.sections[segment.section].rows
        epochs, position = divmod(position, row_count)
        epoch = segment.epoch + epochs
        return epoch, int(_permutation(row_count, (*self.key, epoch))[position])

    def _plan_segments(self) -> list[_Segment]:
        segments: list[_Segment] = []
        first = 0
        epoch = 0
        blocks_used = 0
        for number, section in enumerate(self.sections):
            left = section.drawn
            while left is None or left > 0:
                if blocks_used == 0 and (left is None or left >= section.rows):
                    segments.append(_Segment(first, epoch, number))
                    if left is None:
                        return segments
                    epochs, left = divmod(left, section.rows)
                    epoch += epochs
                    first += epochs * section.rows
                    continue
                blocks = self._shuffled_blocks(section, epoch)[blocks_used:]
                ends = np.cumsum(blocks[:, 1] - blocks[:, 0])
                drawn_rows = int(ends[-1])
                if left is not None:
                    drawn_rows = min(drawn_rows, left)
                    left -= drawn_rows
                block_count = int(np.searchsorted(ends, drawn_rows)) + 1
                if drawn_rows:
                    segments.append(_Segment(first, epoch, number, blocks[:block_count]))
                first += drawn_rows
                blocks_used += block_count
                # Where the rows end inside the last block, no block is left for rows of the next length.
                if drawn_rows == ends[-1] or block_count == len(blocks):
                    epoch += 1
                    blocks_used = 0
        return segments

    def _shuffled_blocks(self, section: Section, epoch: int) -> Int64[np.ndarray, "blocks 2"]:
        assert section.blocks is not None
        rng = np.random.default_rng((*self.key, epoch, BLOCK_ORDER))
        return section.blocks[rng.permutation(len(section.blocks))]


@lru_cache(maxsize=64)
def _permutation(size: int, key: tuple[int, ...]) -> grain.MapDataset:
    """Return a random permutation with random access: Grain uses a cipher, so there is no table in memory."""
    seed = int(np.random.SeedSequence(key).generate_state(1)[0])
    return grain.MapDataset.range(size).shuffle(seed=seed)


def endless_order(row_count: int, key: tuple[int, int]) -> SourceOrder:
    """Return the order of a source whose rows have one length."""
    return SourceOrder([Section(row_count)], key)


def sections_of(row_plans: Sequence[RowPlan], drawn: Sequence[int]) -> list[Section]:
    """Return the sections of a source.

    Args:
        row_plans: its rows in each stage that draws from it.
        drawn: how many rows each of these stages draws; the last has no end, and its number is not used.
    """
    merged_plans: list[RowPlan] = []
    merged_drawn: list[int] = []
    for row_plan, count in zip(row_plans, drawn, strict=True):
        if merged_plans and _have_equal_rows(merged_plans[-1], row_plan):
            merged_drawn[-1] += count
        else:
            merged_plans.append(row_plan)
            merged_drawn.append(count)
    blocks: list[Int64[np.ndarray, "blocks 2"] | None] = [None] * len(merged_plans)
    if len(merged_plans) > 1:
        blocks = list(_divide_text(merged_plans))
    counts = [*merged_drawn[:-1], None]
    return [
        Section(plan.rows, count, plan_blocks)
        for plan, count, plan_blocks in zip(merged_plans, counts, blocks, strict=True)
    ]


def _have_equal_rows(row_plan: RowPlan, other: RowPlan) -> bool:
    """Return whether row n of both begins with the same token, for every n."""
    return isinstance(row_plan, DocumentRows) or row_plan.length == other.length


def _divide_text(row_plans: Sequence[RowPlan]) -> list[Int64[np.ndarray, "blocks 2"]]:
    """Divide the text into blocks of equally many of the longest rows, and return the rows of each block."""
    longest = min(row_plans, key=_count_rows)
    block_count = min(BLOCKS, longest.rows)
    first_rows = np.arange(block_count) * longest.rows // block_count
    with ThreadPoolExecutor(SEARCHES_AT_ONCE) as pool:
        borders = list(pool.map(longest.first_token, first_rows.tolist()))
    borders.append(longest.corpus.tokens)
    return [row_plan.divide(np.array(borders)) for row_plan in row_plans]


def _count_rows(row_plan: RowPlan) -> int:
    return row_plan.rows
