"""Files of token ids that other programs have written: one file each, one entry here."""

from collections.abc import Callable

from t5x_lite.data.token_files.levanter import open_levanter
from t5x_lite.data.token_files.llmc import open_llmc
from t5x_lite.data.token_files.megatron import open_megatron
from t5x_lite.data.token_files.nanogpt import open_nanogpt
from t5x_lite.data.token_files.token_file import TokenFile

TOKEN_FILES: dict[str, Callable[[str], TokenFile]] = {
    "megatron": open_megatron,
    "nanogpt": open_nanogpt,
    "llmc": open_llmc,
    "levanter": open_levanter,
}
"""Functions that open a file, by `data.format`."""
