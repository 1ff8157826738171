"""Files of a shard: the documents of one unit of text that are in one split of a token corpus."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from jaxtyping import Int32

from t5x_lite.errors import UserError

Split = Literal["train", "validation"]
SPLITS: tuple[Split, ...] = ("train", "validation")


@dataclass(frozen=True)
class ShardFiles:
    """The files of one shard."""

    folder: Path
    unit: str
    split: Split

    @property
    def records(self) -> Path:
        """Token ids, in an ArrayRecord file."""
        return self.folder / f"{self.unit}.{self.split}.array_record"

    @property
    def index(self) -> Path:
        """Tokens of each record, and where documents begin."""
        return self.folder / f"{self.unit}.{self.split}.npy"

    @property
    def parts(self) -> Path:
        """Tokens of each part of the documents. The file exists only in a corpus with `data.parts`."""
        return self.folder / f"{self.unit}.{self.split}.parts.npy"


def encode_record(tokens: Int32[np.ndarray, "tokens"], token_bytes: int) -> bytes:
    """Return a record: a header of four bytes, of which the first is the size of a token, and the token ids.

    Args:
        tokens: token ids.
        token_bytes: bytes of a token, 2 or 4.
    """
    return bytes([token_bytes, 0, 0, 0]) + tokens.astype(f"u{token_bytes}").tobytes()


def decode_record(record: bytes) -> Int32[np.ndarray, "tokens"]:
    """Return the token ids of a record."""
    token_bytes = record[0]
    return np.frombuffer(record, f"u{token_bytes}", offset=4).astype(np.int32)


def damaged(folder: Path, path: Path, reason: str) -> UserError:
    """Return the error for a damaged file of the corpus in `folder`."""
    reason = " ".join(reason.split())[:200]
    return UserError(f"{path}: is damaged: {reason}; delete {folder}, and the text is tokenised again")
