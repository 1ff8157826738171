"""Borders of words in token ids."""

import numpy as np
from jaxtyping import Bool, Int

from t5x_lite.data.huggingface_tokenizer import WHITE_SPACE
from t5x_lite.data.tokenizer import Tokenizer


class WordStarts:
    """Tells which tokens of a text start a word.

    A word starts after white space, as WordPiece says so, and on both sides of punctuation: as in BERT's tokenizer, by
    which Kauf & Ivanova (2023) divide texts, a token of punctuation is a word of its own.

    Args:
        tokenizer: the tokenizer of the tokens.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        vocabulary = tokenizer.vocabulary()
        is_punctuation = np.array([_is_punctuation(tokenizer.piece(token)) for token in range(tokenizer.vocab)])
        self._begins_word = vocabulary.begins_word | is_punctuation
        self._ends_word = is_punctuation
        if vocabulary.ends_word is not None:
            self._ends_word = is_punctuation | vocabulary.ends_word

    def __call__(self, tokens: Int[np.ndarray, "l"]) -> Bool[np.ndarray, "l"]:
        """Mark the tokens of a text that start a word."""
        starts = self._begins_word[tokens].copy()
        starts[:1] = True
        starts[1:] |= self._ends_word[tokens[:-1]]
        return starts


def _is_punctuation(piece: str) -> bool:
    """Return whether a piece of a vocabulary has no letter and no digit, and is not only white space."""
    for symbol in WHITE_SPACE:
        piece = piece.replace(symbol, "")
    text = piece.strip()
    return bool(text) and not any(character.isalnum() for character in text)
