"""The files of a token corpus: their names, their layouts, and the remedy for a damaged one.

The text of a source is cut into units, which are tokenised independently. A corpus folder, which may be in a bucket,
holds:

* `SPLIT.tokens`: the token ids, an array of units × tokens: each unit writes its own row;
* `SPLIT.documents` and `SPLIT.parts`: where each document, and each sentence or field, starts in the stream of tokens,
  and the end of the stream (parts only with `data.parts`); both with their sparse index (see `sorted_arrays`);
* `UNIT.npz`: the lengths of the documents of a unit, from which the two are written; its last file, so that a unit with
  this file is complete;
* `corpus.json`: the counts of each split; the last file of a corpus. A folder without it is never read.
"""

import io
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np

from t5x_lite.data.chunked_arrays import ArraySpec, Layout
from t5x_lite.errors import UserError
from t5x_lite.storage import join, read_bytes, write_bytes

Split = Literal["train", "validation"]
SPLITS: tuple[Split, ...] = ("train", "validation")
TokenType = Literal["uint16", "uint32"]
UNIT_SUFFIX = ".npz"
CHUNK_TOKENS = 2**14
"""Tokens of a chunk, which is the least that is read. A row of 2,048 tokens is in one chunk, or sometimes in two."""
SHARD_TOKENS = 2**23
"""Tokens of a file or object."""


def token_type(vocab: int) -> TokenType:
    """Return the smallest type that holds the ids of a vocabulary."""
    return "uint16" if vocab <= 2**16 else "uint32"


@dataclass(frozen=True)
class CorpusFiles:
    """Names of the files of a corpus.

    Attributes:
        folder: the corpus.
    """

    folder: str

    @property
    def summary(self) -> str:
        """The counts of each split."""
        return join(self.folder, "corpus.json")

    @property
    def remedy(self) -> str:
        """The remedy for a damaged corpus."""
        return f"delete {self.folder}, and the text is tokenised again"

    def unit(self, name: str) -> str:
        """Lengths of the documents and parts of a unit."""
        return join(self.folder, f"{name}{UNIT_SUFFIX}")

    def tokens(self, split: Split, kind: TokenType) -> ArraySpec:
        """Token ids."""
        layout = Layout(kind, (1, CHUNK_TOKENS), (1, SHARD_TOKENS))
        return ArraySpec(join(self.folder, f"{split}.tokens"), layout, self.remedy)

    def starts(self, split: Split, kind: Literal["documents", "parts"]) -> str:
        """The starts of documents or parts."""
        return join(self.folder, f"{split}.{kind}")

    def damaged(self, name: str, reason: str) -> UserError:
        """Return the error for a damaged file."""
        reason = " ".join(reason.split())[:200]
        return UserError(f"{name}: is damaged: {reason}; {self.remedy}")


def save_arrays(name: str, arrays: Mapping[str, np.ndarray]) -> None:
    """Write named arrays to an `.npz` file, which has a checksum for each.

    Raises:
        OSError: it cannot be written.
        UserError: the store cannot be written.
    """
    content = io.BytesIO()
    np.savez(content, allow_pickle=False, **arrays)
    write_bytes(name, content.getvalue())


def load_arrays(name: str) -> dict[str, np.ndarray]:
    """Read the arrays of an `.npz` file.

    Raises:
        UserError: the store cannot be read.
        ValueError: the file is missing or damaged.
    """
    try:
        content = read_bytes(name)
        with np.load(io.BytesIO(content), allow_pickle=False) as arrays:
            return dict(arrays)
    except UserError:
        raise
    except Exception as error:  # of NumPy, of zipfile, and of Python's parser, which reads the headers
        raise ValueError(str(error) or repr(error)) from None
