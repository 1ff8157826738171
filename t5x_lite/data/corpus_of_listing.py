"""Find the corpus of files in a bucket again by a listing of them.

The name of a corpus depends on the units of its source, and to cut a Parquet file into units is to open it. A listing
says of a thousand files at once whether they have changed. So a complete corpus leaves a small file in the cache, whose
name depends on the listing, and which says where the corpus is.
"""

import hashlib
from collections.abc import Sequence

from t5x_lite.data.config import STANDARD_LIBRARY, SourceConfig
from t5x_lite.data.files import match_files
from t5x_lite.data.hub_datasets import SCHEME
from t5x_lite.storage import file_exists, file_status, is_remote, join, read_bytes, write_bytes

LISTED_FORMATS = {"auto", "jsonl", "parquet", "text", "webdataset"}
"""Values of `data.format` whose files are exactly those that the patterns match."""


def listing_file(sources: Sequence[SourceConfig], cache_dir: str, settings: str) -> str | None:
    """Return the name of the file that says where a corpus is; None where a listing does not tell of every change.

    Args:
        sources: the text, and that for validation.
        cache_dir: folder of corpora.
        settings: what else decides about the tokens of the corpus.
    """
    lines = [settings]
    has_remote_files = False
    for source in sources:
        if source.format not in LISTED_FORMATS:
            return None
        lines.append(source.model_dump_json())
        for pattern in source.files:
            if pattern == STANDARD_LIBRARY or pattern.startswith(SCHEME):
                return None
            has_remote_files |= is_remote(pattern)
            lines += [f"{path} {file_status(path)}" for path in match_files(pattern)]
    if not has_remote_files:
        return None  # files on a disk are opened in no time
    digest = hashlib.sha256("\n".join(lines).encode()).hexdigest()[:16]
    return join(cache_dir, f"listing-{digest}.txt")


def read_listing_file(path: str, cache_dir: str) -> str | None:
    """Return the folder of the corpus that a file of `listing_file` names; None if there is no such file."""
    if not file_exists(path):
        return None
    return join(cache_dir, read_bytes(path).decode())


def write_listing_file(path: str, folder: str) -> None:
    """Write the name of a corpus, the last part of its folder."""
    write_bytes(path, folder.rpartition("/")[2])
