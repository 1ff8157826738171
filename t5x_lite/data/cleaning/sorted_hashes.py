"""A set of 64-bit hashes in sorted arrays: eight bytes a hash, while a `set` of Python takes nearly ten times that."""

import numpy as np
from jaxtyping import Bool, UInt64

MERGED_HASHES = 2**26
"""Most hashes of a merged array, half a gigabyte: a merge needs the memory of its result, for a moment, once more."""


class SortedHashes:
    """A set of hashes. Arrays of similar length are merged, so that there are few of them.

    Args:
        merged_hashes: most hashes of an array that is merged from others.
    """

    def __init__(self, merged_hashes: int = MERGED_HASHES) -> None:
        self._merged_hashes = merged_hashes
        self._arrays: list[np.ndarray] = []

    def contains(self, hashes: UInt64[np.ndarray, "hashes"]) -> Bool[np.ndarray, "hashes"]:
        """Return which of the hashes, in any order, are in the set."""
        is_contained = np.zeros(len(hashes), np.bool_)
        for array in self._arrays:
            places = np.searchsorted(array, hashes)
            places[places == len(array)] = 0  # larger than all, so not equal to the first
            is_contained |= array[places] == hashes
        return is_contained

    def add(self, hashes: UInt64[np.ndarray, "hashes"]) -> None:
        """Add hashes that are not in the set, in rising order."""
        if not len(hashes):
            return
        self._arrays.append(hashes)
        while self._has_similar_lengths():
            merged = np.concatenate([self._arrays.pop(), self._arrays.pop()])
            merged.sort(kind="stable")  # merges in linear time
            self._arrays.append(merged)

    def _has_similar_lengths(self) -> bool:
        """Return whether the last two arrays are to be merged."""
        if len(self._arrays) < 2:
            return False
        before, last = map(len, self._arrays[-2:])
        return before <= 2 * last and before + last <= self._merged_hashes
