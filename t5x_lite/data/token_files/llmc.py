"""Shards of llm.c (`dev/data/data_common.py`): a header of 256 int32, and token ids of two or four bytes.

The header is a magic number, a version and the number of tokens, then zeros. All numbers are little-endian.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from t5x_lite.data.token_files.token_file import TokenFile, local_only, map_tokens
from t5x_lite.errors import UserError

HEADER = np.dtype("<i4")
HEADER_NUMBERS = 256


@dataclass(frozen=True)
class ShardKind:
    """The version and the type of a token that belong to a magic number."""

    version: int
    token: np.dtype


KINDS = {20240520: ShardKind(1, np.dtype("<u2")), 20240801: ShardKind(7, np.dtype("<u4"))}
"""Kinds of shards by their magic number: of GPT-2's tokens, and of Llama 3's."""


@local_only
def open_llmc(path: str) -> TokenFile:
    """Open a shard of llm.c.

    Raises:
        UserError: it has another magic number or version, or another size than its header says.
    """
    header_bytes = HEADER_NUMBERS * HEADER.itemsize
    with Path(path).open("rb") as file:
        header = np.frombuffer(file.read(header_bytes), np.uint8)
    if len(header) < header_bytes:
        raise UserError(f"{path}: is shorter than the header of a shard of llm.c ({header_bytes} bytes)")
    magic, version, count = header.view(HEADER)[:3].tolist()
    if magic not in KINDS:
        known = " or ".join(map(str, KINDS))
        raise UserError(f"{path}: begins with {magic}, but a shard of llm.c with {known}; check data.format")
    kind = KINDS[magic]
    if version != kind.version:
        raise UserError(f"{path}: has version {version} of llm.c's format {magic}; version {kind.version} is read")
    size = Path(path).stat().st_size
    expected = header_bytes + count * kind.token.itemsize
    if count < 0 or size != expected:
        raise UserError(f"{path}: is damaged: {count:,} tokens need {expected:,} bytes, and it has {size:,}")
    return TokenFile(map_tokens(path, kind.token, header_bytes, count))
