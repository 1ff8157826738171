"""A vocabulary for tests, without a tokenizer."""

import numpy as np

from t5x_lite.models.config import Family
from t5x_lite.objectives import ExampleContext, TokenRow, Vocabulary


def vocabulary(size: int = 200, sentinels: int = 0) -> Vocabulary:
    """Ids 0 pad, 1 EOS, 2 unk, 3 [CLS], 4 [SEP], 5 [MASK], 6-8 UL2's modes; every third id begins a word."""
    names = ("<pad>", "</s>", "<unk>", "[CLS]", "[SEP]", "[MASK]", "[R]", "[S]", "[X]")
    named = {name: i for i, name in enumerate(names)}
    last = tuple(range(size - 1, size - 1 - sentinels, -1))
    special = np.zeros(size, bool)
    special[[*named.values(), *last]] = True
    return Vocabulary(size, 1, named, last, special, np.arange(size) % 3 == 0)


def task(seq_len: int, family: Family = "decoder", size: int = 200, sentinels: int = 0) -> ExampleContext:
    """A task over that vocabulary."""
    return ExampleContext(seq_len, vocabulary(size, sentinels), family)


def row(tokens: list[int] | np.ndarray, segments: list[int] | None = None, parts: list[int] | None = None) -> TokenRow:
    """A row of the corpus; one document of one part unless told."""
    made = np.asarray(tokens, np.int32)
    one = np.ones(len(made), np.int32) if segments is None else np.asarray(segments, np.int32)
    return TokenRow(made, one, np.zeros(len(made), np.int32) if parts is None else np.asarray(parts, np.int32))
