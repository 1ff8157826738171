"""nanoGPT's `train.bin` and `val.bin`: token ids as little-endian uint16, and nothing else."""

from pathlib import Path

import numpy as np

from t5x_lite.data.token_files import llmc
from t5x_lite.data.token_files.token_file import TokenFile, local_only, map_tokens
from t5x_lite.errors import UserError

TOKEN = np.dtype("<u2")


@local_only
def open_nanogpt(path: str) -> TokenFile:
    """Open a file of nanoGPT.

    Raises:
        UserError: its size is odd, or it begins as a shard of llm.c.
    """
    size = Path(path).stat().st_size
    if size % TOKEN.itemsize:
        raise UserError(f"{path}: has {size:,} bytes, which is no whole number of uint16 tokens")
    with Path(path).open("rb") as file:
        magic = int.from_bytes(file.read(4), "little")
    if magic in llmc.KINDS:
        raise UserError(f"{path}: begins with the magic number of llm.c ({magic}); set data.format=llmc")
    return TokenFile(map_tokens(path, TOKEN, 0, size // TOKEN.itemsize))
