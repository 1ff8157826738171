"""The formats of text files by the ending of their names."""

from collections.abc import Collection, Sequence

from t5x_lite.data.files import file_ending
from t5x_lite.errors import UserError

FORMATS_BY_ENDING = {
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".json": "jsonl",
    ".parquet": "parquet",
    ".tar": "webdataset",
}
"""Formats for `data.format=auto`; all other files are text."""
TOKEN_ENDINGS = (".bin", ".idx")
"""Endings of files of token ids, which several programs share."""
TABLES = (".csv", ".tsv")
OTHER_FORMATS = {
    *TABLES,
    *(".7z", ".br", ".bz2", ".gzip", ".lz4", ".rar", ".tgz", ".xz", ".zip"),
    *(".arrow", ".feather", ".orc", ".xls", ".xlsx"),
    *(".bin", ".h5", ".idx", ".mds", ".npy", ".npz", ".pickle", ".pkl", ".safetensors", ".tfrecord", ".array_record"),
    *(".doc", ".docx", ".epub", ".pdf", ".jpg", ".jpeg", ".png", ".mp3", ".mp4", ".wav"),
}
"""Endings of archives, tables and binary files, which are refused rather than read as text for `data.format=auto`."""


def format_by_ending(path: str) -> str:
    """Return the format of a file for `data.format=auto`."""
    return FORMATS_BY_ENDING.get(file_ending(path), "text")


def check_endings(paths: Sequence[str], accepted: Collection[str]) -> None:
    """Refuse files whose ending is that of a format that is not text and is not read.

    Raises:
        UserError: with the first such file.
    """
    for path in paths:
        ending = file_ending(path)
        if ending not in OTHER_FORMATS or ending in accepted:
            continue
        if ending in TOKEN_ENDINGS:
            raise UserError(
                f"data.files: {path} is not text; if it holds token ids, set data.format=megatron, nanogpt or llmc"
            )
        if ending == ".mds":
            raise UserError(f"data.files: {path} is a shard of a folder: name the folder, and set data.format=mds")
        raise UserError(
            f"data.files: {path} is not read, because {ending} is not a format of text; convert it to JSONL, Parquet "
            "or text, or set data.format=text to read it as plain text all the same"
        )
