"""Megatron's indexed datasets (`megatron/core/datasets/indexed_dataset.py`), read and written.

`PREFIX.bin` has the token ids. `PREFIX.idx` has, little-endian:

* `MMIDIDX` and two zeros, the version 1 (uint64), and the code of the type of a token (uint8);
* the number of sequences, and that of document borders (uint64);
* the number of tokens of each sequence (int32), and the byte of `PREFIX.bin` that it begins at (int64);
* the number of the sequence that each document begins with, and at the end the number of sequences (int64).
"""

import struct
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from jaxtyping import Int32, Int64

from t5x_lite.data.token_files.token_file import TokenFile, local_only, map_tokens
from t5x_lite.errors import UserError

MAGIC = b"MMIDIDX\x00\x00"
VERSION = 1
HEADER = struct.Struct("<9sQBQQ")
TYPES: dict[int, np.dtype] = {
    1: np.dtype("u1"),
    2: np.dtype("i1"),
    3: np.dtype("<i2"),
    4: np.dtype("<i4"),
    5: np.dtype("<i8"),
    8: np.dtype("<u2"),
}
"""Types of a token by their code. 6 and 7 are floating-point types, which tokens never have."""
SMALL_VOCAB = 65500
"""Ids below which Megatron writes two bytes a token (`DType.optimal_dtype`)."""


def index_path(path: str) -> str:
    """Return the index of a file of tokens."""
    return str(Path(path).with_suffix(".idx"))


@local_only
def open_megatron(path: str) -> TokenFile:
    """Open a `.bin` of Megatron with the `.idx` in the same folder.

    Raises:
        UserError: one of them is missing or damaged, or has another version.
    """
    if Path(path).suffix != ".bin":
        raise UserError(f"{path}: is not a .bin; data.files names Megatron's .bin, and the .idx is read with it")
    index = index_path(path)
    content = Path(index).read_bytes()
    if len(content) < HEADER.size or not content.startswith(MAGIC):
        raise UserError(f"{index}: is not an index of Megatron (it does not begin with MMIDIDX)")
    _, version, code, sequence_count, border_count = HEADER.unpack_from(content)
    if version != VERSION or code not in TYPES:
        raise UserError(f"{index}: has version {version} and type {code}; version {VERSION} with integers is read")
    # A multimodal index goes on after this with a mode of each sequence.
    expected = HEADER.size + 12 * sequence_count + 8 * border_count
    if len(content) < expected:
        raise UserError(f"{index}: is damaged: it has {len(content):,} of at least {expected:,} bytes")
    lengths = np.frombuffer(content, "<i4", sequence_count, HEADER.size)
    starts = np.frombuffer(content, "<i8", sequence_count, HEADER.size + 4 * sequence_count)
    first_sequences = np.frombuffer(content, "<i8", border_count, HEADER.size + 12 * sequence_count)
    token = TYPES[code]
    offsets = _offsets(index, lengths, starts, token.itemsize)
    size = Path(path).stat().st_size
    if size != offsets[-1] * token.itemsize:
        raise UserError(f"{path}: has {size:,} bytes, but {index} lists {offsets[-1] * token.itemsize:,}")
    if not _are_borders(first_sequences, sequence_count):
        raise UserError(f"{index}: is damaged: its documents do not cover its sequences")
    return TokenFile(map_tokens(path, token, 0, int(offsets[-1])), offsets[first_sequences])


def _offsets(
    index: str, lengths: Int32[np.ndarray, "sequences"], starts: Int64[np.ndarray, "sequences"], token_bytes: int
) -> Int64[np.ndarray, "sequences_and_end"]:
    """Return the token that each sequence begins with, and the number of tokens."""
    offsets = np.concatenate([np.zeros(1, np.int64), np.cumsum(lengths, dtype=np.int64)])
    if (lengths < 0).any() or not np.array_equal(starts, offsets[:-1] * token_bytes):
        raise UserError(f"{index}: is damaged, or its sequences are not stored one after the other")
    return offsets


def _are_borders(first_sequences: Int64[np.ndarray, "borders"], sequence_count: int) -> bool:
    """Return whether documents begin with the first sequence, end with the last, and follow each other."""
    if len(first_sequences) == 0 or first_sequences[0] != 0 or first_sequences[-1] != sequence_count:
        return False
    return bool((np.diff(first_sequences) >= 0).all())


def write_megatron(prefix: Path, documents: Iterable[Int32[np.ndarray, "_"]], largest_id: int) -> int:
    """Write documents as `PREFIX.bin` and `PREFIX.idx`, one sequence each, and return their number.

    Args:
        prefix: the path without its ending.
        documents: the token ids of each document.
        largest_id: the largest of all ids, which decides between two and four bytes.

    Raises:
        OSError: a file cannot be written.
    """
    code = 4
    if largest_id < SMALL_VOCAB:
        code = 8
    token = TYPES[code]
    lengths: list[int] = []
    with prefix.with_name(f"{prefix.name}.bin").open("wb") as file:
        for tokens in documents:
            file.write(tokens.astype(token).tobytes())
            lengths.append(len(tokens))
    offsets = np.concatenate([np.zeros(1, np.int64), np.cumsum(lengths, dtype=np.int64)])
    with prefix.with_name(f"{prefix.name}.idx").open("wb") as file:
        file.write(HEADER.pack(MAGIC, VERSION, code, len(lengths), len(lengths) + 1))
        file.write(np.array(lengths, "<i4").tobytes())
        file.write((offsets[:-1] * token.itemsize).astype("<i8").tobytes())
        file.write(np.arange(len(lengths) + 1, dtype="<i8").tobytes())
    return len(lengths)
