"""The characters of a text that each of its tokens stands for."""

import numpy as np
from jaxtyping import Int, Int32

from t5x_lite.data.tokenizer import Tokenizer

MOST_TOKENS_AFTER = 2
"""Special tokens that a model may have after a text."""


def token_offsets(
    tokenizer: Tokenizer, text: str, token_ids: Int[np.ndarray, "tokens"]
) -> Int32[np.ndarray, "tokens 2"]:
    """Return the start and the stop of each token in a text, in characters; -1 for special tokens around the text.

    Args:
        tokenizer: encodes the text.
        text: the text.
        token_ids: its tokens with special ones around them, perhaps cut at the end.
    """
    text_ids, places = tokenizer.encode_placed(text)
    start = 0
    count = 0
    for before in range(len(token_ids)):
        equal = _count_equal(token_ids[before:], text_ids)
        if equal > count:
            start = before
            count = equal
        if count and count >= min(len(text_ids), len(token_ids) - before - MOST_TOKENS_AFTER):
            break
    offsets = np.full((len(token_ids), 2), -1, np.int32)
    offsets[start : start + count] = places[:count]
    return offsets


def _count_equal(first: Int[np.ndarray, "_"], second: Int[np.ndarray, "_"]) -> int:
    """Return the number of equal elements before the first difference."""
    length = min(len(first), len(second))
    differences = np.flatnonzero(first[:length] != second[:length])
    return int(differences[0]) if len(differences) else length
