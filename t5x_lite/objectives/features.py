"""Arrays that the examples of several objectives consist of: tokens with positions and segments, padded."""

from collections.abc import Sequence
from typing import TypeAlias

import numpy as np
from jaxtyping import Int, Shaped

from t5x_lite.objectives.objective import Features

Pair: TypeAlias = tuple[np.ndarray, np.ndarray]
"""Token ids of inputs and of targets, int32."""


def positions_in(segments: Int[np.ndarray, "l"]) -> Int[np.ndarray, "l"]:
    """Return int32 positions that restart from 0 in every segment."""
    index = np.arange(len(segments), dtype=np.int32)
    is_start = np.concatenate([[True], segments[1:] != segments[:-1]])
    start_of_token = np.maximum.accumulate(np.where(is_start, index, 0))
    return index - start_of_token.astype(np.int32)


def pad(values: Shaped[np.ndarray, "_"], length: int) -> Int[np.ndarray, "{length}"]:
    """Return int32 `[length]`: the values, then zeros."""
    padded = np.zeros(length, np.int32)
    padded[: len(values)] = values
    return padded


def token_features(tokens: Int[np.ndarray, "l"], segments: Int[np.ndarray, "l"], length: int) -> dict[str, np.ndarray]:
    """Return `tokens`, `positions` and `segment_ids`, int32 `[length]`."""
    segment_ids = pad(segments, length)
    return {"tokens": pad(tokens, length), "positions": positions_in(segment_ids), "segment_ids": segment_ids}


CONTINUES = "continues"
"""The feature, one number for a row, that is 1 where the row continues that of the batch before it."""


def stacked(examples: Sequence[Features]) -> dict[str, np.ndarray]:
    """Stack each feature of the examples along a new first axis."""
    batch = {}
    for name in examples[0]:
        batch[name] = np.stack([example[name] for example in examples])
    return batch


def segments_of(row_segments: Int[np.ndarray, "l"]) -> list[slice]:
    """Return the slice of each segment of a row, without the padding."""
    starts = np.flatnonzero(np.diff(row_segments, prepend=-1))
    stops = [*starts[1:], len(row_segments)]
    slices = []
    for start, stop in zip(starts, stops, strict=True):
        if row_segments[start] > 0:
            slices.append(slice(int(start), int(stop)))
    return slices
