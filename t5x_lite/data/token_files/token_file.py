"""A file of token ids."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import wraps
from typing import ParamSpec, Protocol

import numpy as np
from jaxtyping import Int64, Integer

from t5x_lite.errors import UserError
from t5x_lite.storage import is_remote

Arguments = ParamSpec("Arguments")


class TokenSequence(Protocol):
    """Token ids that are read when they are sliced."""

    def __len__(self) -> int: ...

    def __getitem__(self, part: slice, /) -> Integer[np.ndarray, "_"]: ...


@dataclass(frozen=True)
class TokenFile:
    """The content of a file.

    Attributes:
        tokens: all token ids, one after the other.
        borders: where each document begins, and the end; None if the format does not say it.
    """

    tokens: TokenSequence
    borders: Int64[np.ndarray, "documents_and_end"] | None = None


def local_only(open_file: Callable[Arguments, TokenFile]) -> Callable[Arguments, TokenFile]:
    """Decorate a function that opens a file by its path: what is wrong with the file itself is one line.

    Raises:
        UserError: the file is in an object store, does not exist, or cannot be read.
    """

    @wraps(open_file)
    def open_local(*arguments: Arguments.args, **options: Arguments.kwargs) -> TokenFile:
        path = str(arguments[0])
        if is_remote(path):
            raise UserError(f"{path}: files of tokens must be local; copy them first")
        try:
            return open_file(*arguments, **options)
        except OSError as error:
            raise UserError(f"{error.filename or path}: cannot be read: {error.strerror or error}") from None

    return open_local


def map_tokens(path: str, dtype: np.dtype, offset: int, count: int) -> Integer[np.ndarray, "tokens"]:
    """Map token ids of a file into memory.

    Args:
        path: the file.
        dtype: type of a token.
        offset: bytes before the first token.
        count: number of tokens.
    """
    if count == 0:
        return np.zeros(0, dtype)  # nothing cannot be mapped
    return np.memmap(path, dtype, "r", offset, (count,))
