"""Documents from files of token ids (`TOKEN_FORMATS`), checked against the tokenizer."""

from collections.abc import Iterator, Sequence

import numpy as np
from jaxtyping import Int32, Integer

from t5x_lite.data.sources import Unit
from t5x_lite.data.token_files import TOKEN_FILES
from t5x_lite.data.token_files.token_file import TokenFile, TokenSequence
from t5x_lite.data.tokenizer import Tokenizer
from t5x_lite.errors import UserError

CHUNK = 2**20
"""Tokens that are searched for the end of a document at a time."""


def token_documents(unit: Unit, tokenizer: Tokenizer) -> Iterator[Int32[np.ndarray, "_"]]:
    """Yield the tokens of each document of a unit, in order, without the EOS at its end; empty ones are left out.

    The indexes of Megatron and Levanter say where documents begin. In the other formats the tokenizer's EOS ends a
    document, or begins it as in llm.c; a file without any EOS is one document. A document is in the unit that it begins
    in.

    Args:
        unit: files, or a range of tokens of one file.
        tokenizer: that which made the ids.

    Raises:
        UserError: a file that cannot be read, or an id that the tokenizer does not have.
    """
    for path in unit.paths:
        content = TOKEN_FILES[unit.format](path)
        stop = len(content.tokens) if unit.stop == -1 else unit.stop
        for first, last in _document_ranges(content, unit.start, stop, tokenizer.eos):
            tokens = content.tokens[first:last]
            _check_ids(path, first, tokens, tokenizer)
            if len(tokens) and tokens[-1] == tokenizer.eos:
                tokens = tokens[:-1]
            if len(tokens):
                yield np.asarray(tokens, np.int32)


def _document_ranges(content: TokenFile, start: int, stop: int, eos: int | None) -> Iterator[Sequence[int]]:
    """Yield the first token of each document that begins in `[start, stop)`, and the token after its last."""
    if content.borders is not None:
        first, last = np.searchsorted(content.borders[:-1], (start, stop), side="left")
        yield from zip(
            content.borders[first:last].tolist(), content.borders[first + 1 : last + 1].tolist(), strict=True
        )
        return
    begin = start
    if start:
        begin = _next_document(content.tokens, start - 1, eos)
    while begin < stop:
        end = _next_document(content.tokens, begin, eos)
        yield begin, end
        begin = end


def _next_document(tokens: TokenSequence, position: int, eos: int | None) -> int:
    """Return the place after the first EOS at or after a position; the end if there is none."""
    while eos is not None and position < len(tokens):
        places = np.flatnonzero(tokens[position : position + CHUNK] == eos)
        if len(places):
            return position + int(places[0]) + 1
        position += CHUNK
    return len(tokens)


def _check_ids(path: str, first: int, tokens: Integer[np.ndarray, "_"], tokenizer: Tokenizer) -> None:
    """Refuse ids that the tokenizer does not have.

    Raises:
        UserError: with the first of them.
    """
    wrong = np.flatnonzero((tokens < 0) | (tokens >= tokenizer.vocab))
    if len(wrong):
        place = int(wrong[0])
        raise UserError(
            f"{path}: token {first + place:,} has the id {tokens[place]}, but the tokenizer has {tokenizer.vocab:,} "
            "ids; tokenizer.file must be the tokenizer that made the file"
        )
