"""A vocabulary, contexts and rows for tests, without a tokenizer."""

from dataclasses import replace

import numpy as np

from t5x_lite.models.config import Family
from t5x_lite.objectives import ExampleContext, TokenRow, Vocabulary

BOS = 9


def vocabulary(size: int = 200, sentinels: int = 0) -> Vocabulary:
    """Ids 0 pad, 1 EOS, 2 unk, 3 [CLS], 4 [SEP], 5 [MASK], 6-8 UL2's modes; every third id begins a word.

    EOS ends the texts of an encoder_decoder, as in T5.
    """
    names = ("<pad>", "</s>", "<unk>", "[CLS]", "[SEP]", "[MASK]", "[R]", "[S]", "[X]")
    named = {name: token_id for token_id, name in enumerate(names)}
    sentinel_ids = tuple(range(size - 1, size - 1 - sentinels, -1))
    special = np.zeros(size, bool)
    special[[*named.values(), *sentinel_ids]] = True
    return Vocabulary(size, 1, named, sentinel_ids, special, np.arange(size) % 3 == 0, suffix_tokens=(1,))


def context(seq_len: int, family: Family = "decoder", size: int = 200, sentinels: int = 0) -> ExampleContext:
    """The context of a run with that vocabulary."""
    return ExampleContext(seq_len, vocabulary(size, sentinels), family)


def context_with_bos(seq_len: int, family: Family) -> ExampleContext:
    """The context of a run whose tokenizer puts `BOS` before every text, as Llama's and BART's do."""
    return ExampleContext(seq_len, replace(vocabulary(), prefix_tokens=(BOS,)), family)


def row(tokens: list[int] | np.ndarray, segments: list[int] | None = None, parts: list[int] | None = None) -> TokenRow:
    """A row of the corpus; by default one document of one part."""
    token_ids = np.asarray(tokens, np.int32)
    if segments is None:
        segments = [1] * len(token_ids)
    if parts is None:
        parts = [0] * len(token_ids)
    return TokenRow(token_ids, np.asarray(segments, np.int32), np.asarray(parts, np.int32))
