"""The characters of every token of a vocabulary, from which a model computes token vectors."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import UInt16

TEXT_BEGIN = 256
TEXT_END = 257
WORD_BEGIN = 258
WORD_END = 259
PADDING = 260
CHARACTERS = 261
"""Characters are the bytes of UTF-8 and five marks, numbered as in ELMo's released weights."""


@dataclass(frozen=True, eq=False)
class CharacterIds:
    """The characters of every token: a constant of a model, as its vocabulary is.

    Attributes:
        table: ids of characters, each word between two marks, then padding.
    """

    table: UInt16[np.ndarray, "vocab characters"]

    @classmethod
    def of(
        cls,
        pieces: Sequence[str],
        shape: tuple[int, int],
        begin: Collection[int] = (),
        end: Collection[int] = (),
    ) -> "CharacterIds":
        """Return the characters of the tokens of a vocabulary. Of long words the first ones count.

        Args:
            pieces: text of each token.
            shape: rows of the model's vocabulary, and characters of a word with its two marks.
            begin: ids of the tokens before texts, which have one character of their own.
            end: ids of the tokens after texts, which have another one.
        """
        table = np.full(shape, PADDING, np.uint16)
        for token, piece in enumerate(pieces):
            characters = list(piece.encode("utf-8", errors="replace")[: shape[1] - 2])
            if token in begin:
                characters = [TEXT_BEGIN]
            elif token in end:
                characters = [TEXT_END]
            table[token, : len(characters) + 2] = [WORD_BEGIN, *characters, WORD_END]
        return cls(table)

    @classmethod
    def blank(cls, shape: tuple[int, int]) -> "CharacterIds":
        """Return words without characters, for models whose costs alone matter."""
        return cls(np.full(shape, PADDING, np.uint16))
