"""Bin packing: assign items of known sizes to rows of bounded room. Pure functions of the sizes and of the room."""

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
from jaxtyping import Float64, Int64, Integer

DEALT_SHARE = 0.7
"""Share of the items, the largest, that are dealt to all rows in turn if they need room of several kinds."""
SIZES_BETWEEN_CLEANING = 64
"""Sizes after which rows that have become full are forgotten."""
LARGEST_CLASS_COUNT = 2000
"""Different sizes of several kinds above which similar sizes count as equal."""


def best_fit(sizes: Integer[np.ndarray, "items kinds"], capacity: Sequence[int]) -> Int64[np.ndarray, "items"]:
    """Pack items into rows by best-fit-decreasing bin packing: an item goes to the fullest row that has room for it.

    The items are taken from the largest to the smallest. All items of one size are placed together, so that the time
    depends on the number of different sizes and hardly on the number of items (histogram packing: Krell et al. 2021).

    Items that need room of several kinds are first dealt to as few rows as could hold them, so that no kind of room is
    used up long before the others; only the smaller items, which fill the gaps, are packed by best fit.

    Args:
        sizes: room that each item takes, of several kinds, such as inputs and targets. An item needs room of all kinds.
        capacity: room of each kind in a row. An item that needs more counts as one that needs all of it.

    Returns:
        The row of each item. Rows are numbered from 0, and none is empty.
    """
    row_capacity = np.array(capacity, np.int64)
    sizes = np.minimum(sizes, row_capacity).astype(np.int64)
    if len(row_capacity) == 1:
        return _best_fit_decreasing(sizes, row_capacity, room=np.zeros((0, 1), np.int64))
    rows, room = _deal(sizes, row_capacity)
    waiting = np.flatnonzero(rows < 0)
    waiting_sizes = sizes[waiting]
    while len(np.unique(_size_keys(waiting_sizes, row_capacity))) > LARGEST_CLASS_COUNT:
        # Count the kind that has most steps in steps twice as large. Sizes are rounded up and room is rounded down, but
        # an item that needs all of a row still fits in an empty one, and in no other.
        step = np.where(np.arange(len(row_capacity)) == row_capacity.argmax(), 2, 1)
        is_empty = room == row_capacity
        row_capacity = row_capacity // step
        waiting_sizes = np.minimum((waiting_sizes + step - 1) // step, row_capacity)
        room = np.where(is_empty, row_capacity, np.minimum(room // step, row_capacity - 1))
    rows[waiting] = _best_fit_decreasing(waiting_sizes, row_capacity, room)
    _, rows = np.unique(rows, return_inverse=True)
    return rows


def next_fit(
    sizes: Integer[np.ndarray, "items"], capacity: int, borders: Integer[np.ndarray, "borders"] | None = None
) -> Int64[np.ndarray, "rows_and_end"]:
    """Pack items into rows in their order by next-fit bin packing: a row is full when the next item does not fit.

    Args:
        sizes: room that each item takes.
        capacity: room of a row. An item that needs more gets a row of its own.
        borders: item numbers in ascending order, the number of items last; no row goes on past one of them.

    Returns:
        The first item of each row, and the number of items.
    """
    item_count = len(sizes)
    ends = np.concatenate([[0], np.cumsum(sizes)])
    # The row that would begin at each item ends before this one.
    stops = np.searchsorted(ends, ends[:-1] + capacity, side="right") - 1
    stops = np.maximum(stops, np.arange(1, item_count + 1))
    if borders is not None:
        next_border = borders[np.searchsorted(borders, np.arange(item_count), side="right")]
        stops = np.minimum(stops, next_border)
    next_start = stops.tolist()
    row_starts = [0]
    while row_starts[-1] < item_count:
        row_starts.append(next_start[row_starts[-1]])
    return np.array(row_starts, np.int64)


def _deal(
    sizes: Int64[np.ndarray, "items kinds"], capacity: Int64[np.ndarray, "kinds"]
) -> tuple[Int64[np.ndarray, "items"], Int64[np.ndarray, "rows kinds"]]:
    """Deal the larger items to as few rows as could hold all items, one to each row in each round.

    The items and rows of a round are matched so that an item with a surplus of a kind goes to a row with a surplus of
    that room. An item that does not fit waits.

    Returns:
        The row of each item, -1 for items that wait; and the room that is left in each row.
    """
    shares = sizes / capacity
    row_count = int(np.ceil(shares.sum(0).max(initial=0.0)))
    rows = np.full(len(sizes), -1, np.int64)
    room = np.tile(capacity, (row_count, 1))
    largest_first = np.argsort(-shares.sum(1), kind="stable")
    dealt = largest_first[: int(len(sizes) * DEALT_SHARE)]
    for start in range(0, len(dealt), max(row_count, 1)):
        items = dealt[start : start + row_count]
        items = items[np.argsort(_surplus(shares[items]), kind="stable")]
        receivers = np.argsort(_surplus(room / capacity), kind="stable")
        receivers = receivers[np.arange(len(items)) * row_count // len(items)]
        fits = (room[receivers] >= sizes[items]).all(1)
        rows[items[fits]] = receivers[fits]
        room[receivers[fits]] -= sizes[items[fits]]
    return rows, room


def _surplus(shares: Float64[np.ndarray, "n kinds"]) -> Float64[np.ndarray, "n"]:
    """Return by how much the first kind exceeds the last."""
    return shares[:, 0] - shares[:, -1]


def _best_fit_decreasing(
    sizes: Int64[np.ndarray, "items kinds"], capacity: Int64[np.ndarray, "kinds"], room: Int64[np.ndarray, "rows kinds"]
) -> Int64[np.ndarray, "items"]:
    """Place every item, the largest first, in the fullest row that has room for it.

    Args:
        sizes: room that each item takes; no item takes more than an empty row has.
        capacity: room of an empty row.
        room: room left in each row that exists.

    Returns:
        The row of each item; rows after those that exist are new.
    """
    by_room = np.lexsort(room.T)
    open_rows = _OpenRows(capacity, room[by_room])
    smallest = sizes.min(0, initial=np.iinfo(np.int64).max)
    item_order, class_starts = _group_equal(sizes, capacity)
    placements = [np.zeros((0, 3), np.int64)]
    for number, (start, stop) in enumerate(pairwise(class_starts.tolist())):
        placements.append(open_rows.place(sizes[item_order[start]], stop - start))
        if number % SIZES_BETWEEN_CLEANING == 0:
            open_rows.drop_full(smallest)
    first_row, row_count, items_per_row = np.concatenate(placements).T
    # Item n of a placement goes to row n // items_per_row of its run of rows.
    item_counts = row_count * items_per_row
    ends = np.cumsum(item_counts)
    number_in_run = np.arange(len(sizes)) - np.repeat(ends - item_counts, item_counts)
    placed_rows = np.repeat(first_row, item_counts) + number_in_run // np.repeat(items_per_row, item_counts)
    rows = np.empty(len(sizes), np.int64)
    rows[item_order] = placed_rows
    row_numbers = np.concatenate([by_room, np.arange(len(room), rows.max(initial=0) + 1)])
    return row_numbers[rows]


def _group_equal(
    sizes: Int64[np.ndarray, "items kinds"], capacity: Int64[np.ndarray, "kinds"]
) -> tuple[Int64[np.ndarray, "items"], Int64[np.ndarray, "sizes_and_end"]]:
    """Return the items from the largest to the smallest, and where each different size begins in that order."""
    keys = _size_keys(sizes, capacity)
    distinct_keys, first_items, class_of_item, counts = np.unique(
        keys, return_index=True, return_inverse=True, return_counts=True
    )
    largest_first = np.argsort(-(sizes[first_items] / capacity).sum(1), kind="stable")
    rank_of_class = np.empty(len(distinct_keys), np.int32)
    rank_of_class[largest_first] = np.arange(len(distinct_keys))
    item_order = np.argsort(rank_of_class[class_of_item], kind="stable")
    return item_order, np.concatenate([[0], np.cumsum(counts[largest_first])])


def _size_keys(
    sizes: Int64[np.ndarray, "items kinds"], capacity: Int64[np.ndarray, "kinds"]
) -> Int64[np.ndarray, "items"]:
    """Return a number for each item, the same for items of the same size."""
    keys = np.zeros(len(sizes), np.int64)
    for kind, room in enumerate(capacity.tolist()):
        keys = keys * (room + 1) + sizes[:, kind]
    return keys


class _OpenRows:
    """Groups of consecutive rows that have equal room. Group 0 is the rows that no item is in yet, without end.

    Args:
        capacity: room of an empty row.
        room: room left in each row that exists, `[rows, kinds]`, sorted so that rows with equal room are consecutive.
    """

    def __init__(self, capacity: Int64[np.ndarray, "kinds"], room: Int64[np.ndarray, "rows kinds"]) -> None:
        is_first = np.ones(len(room), bool)
        is_first[1:] = (room[1:] != room[:-1]).any(1)
        first_rows = np.flatnonzero(is_first)
        self.capacity = capacity
        self.room = np.concatenate([capacity[None], room[first_rows]])
        self.first_row = np.concatenate([[len(room)], first_rows])
        self.row_count = np.concatenate([[np.iinfo(np.int32).max], np.diff(first_rows, append=len(room))])
        self.group_count = len(self.room)

    def place(self, size: Int64[np.ndarray, "kinds"], item_count: int) -> Int64[np.ndarray, "placements 3"]:
        """Place items of one size, in the fullest rows that have room for them.

        Returns:
            For each run of rows that receive equally many items: its first row, its length, and the items of each row.
        """
        groups, copies = self._fullest_first(size)
        items_placed = np.cumsum(self.row_count[groups] * copies)
        # All groups before this one receive as many items as they have room for.
        last = int(np.searchsorted(items_placed, item_count))
        filled = groups[:last]
        placements = np.stack([self.first_row[filled], self.row_count[filled], copies[:last]], axis=1)
        self.room[filled] -= copies[:last, None] * size
        items_left = item_count - int(items_placed[last - 1]) if last else item_count
        row_count, items_of_last_row = divmod(items_left, int(copies[last]))
        runs = [placements, self._split(int(groups[last]), row_count, int(copies[last]), size)]
        if items_of_last_row:
            runs.append(self._split(int(groups[last]), 1, items_of_last_row, size))
        return np.concatenate(runs)

    def _split(
        self, group: int, row_count: int, items: int, size: Int64[np.ndarray, "kinds"]
    ) -> Int64[np.ndarray, "1 3"]:
        """Make a new group of the first rows of a group, each of which receives some items. See `place`."""
        first_row = int(self.first_row[group])
        self._append(self.room[group] - items * size, first_row, row_count)
        self.first_row[group] += row_count
        self.row_count[group] -= row_count * int(group > 0)
        return np.array([[first_row, row_count, items]])

    def _append(self, room: Int64[np.ndarray, "kinds"], first_row: int, row_count: int) -> None:
        if self.group_count == len(self.room):
            self.room = np.concatenate([self.room, np.zeros_like(self.room)])
            self.first_row = np.concatenate([self.first_row, np.zeros_like(self.first_row)])
            self.row_count = np.concatenate([self.row_count, np.zeros_like(self.row_count)])
        self.room[self.group_count] = room
        self.first_row[self.group_count] = first_row
        self.row_count[self.group_count] = row_count
        self.group_count += 1

    def drop_full(self, smallest: Int64[np.ndarray, "kinds"]) -> None:
        """Forget the groups that have no row, or no room for an item of this size."""
        is_open = (self.room[: self.group_count] >= smallest).all(1) & (self.row_count[: self.group_count] > 0)
        open_groups = np.flatnonzero(is_open)
        self.group_count = len(open_groups)
        self.room[: len(open_groups)] = self.room[open_groups]
        self.first_row[: len(open_groups)] = self.first_row[open_groups]
        self.row_count[: len(open_groups)] = self.row_count[open_groups]

    def _fullest_first(
        self, size: Int64[np.ndarray, "kinds"]
    ) -> tuple[Int64[np.ndarray, "groups"], Int64[np.ndarray, "groups"]]:
        """Return the groups with room for an item of this size, and how many items each of their rows has room for."""
        room = self.room[: self.group_count]
        groups = np.flatnonzero((room >= size).all(1))
        room = room[groups]
        copies = (room // np.maximum(size, 1)).min(1)
        left = (room - size) / self.capacity
        # Room of one kind alone is useless, so the difference between the kinds counts as if it were room.
        looseness = left.sum(1) + left.max(1) - left.min(1)
        looseness[0] = np.inf  # a row is begun only if no other has room
        order = np.argsort(looseness, kind="stable")
        return groups[order], copies[order]
