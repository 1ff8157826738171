"""Find the corpus of files in a bucket again by a listing of them, and that of a data set of the Hub by its commit.

The name of a corpus depends on the units of its source, and to cut a Parquet file into units is to open it. A listing
says of a thousand files at once whether they have changed; a commit says it of a data set. So a complete corpus leaves
a small file in the cache, whose name depends on the listing, and which says where the corpus is.
"""

import hashlib
from collections.abc import Sequence

from t5x_lite.data.config import STANDARD_LIBRARY, SourceConfig
from t5x_lite.data.files import match_files
from t5x_lite.data.hub_datasets import SCHEME, parse, pin
from t5x_lite.storage import file_exists, file_status, is_remote, join, read_bytes, write_bytes

LISTED_FORMATS = {"auto", "jsonl", "parquet", "text", "webdataset"}
"""Values of `data.format` whose files are exactly those that the patterns match."""


def is_listed(sources: Sequence[SourceConfig]) -> bool:
    """Return whether some text is in a bucket or the Hub, and a listing or commits tell of every change of it.

    Files on a disk open fast.
    """
    is_far = False
    for source in sources:
        for pattern in source.files:
            if pattern.startswith(SCHEME):
                tells_changes = source.format == "auto" and not parse(pattern, source.split).is_local
            else:
                tells_changes = source.format in LISTED_FORMATS and pattern != STANDARD_LIBRARY
            if not tells_changes:
                return False
            is_far = is_far or is_remote(pattern)
    return is_far


def listing_file(sources: Sequence[SourceConfig], cache_dir: str, settings: str) -> str:
    """Return the name of the file that says where a corpus is.

    Args:
        sources: the text, and that for validation; see `is_listed`.
        cache_dir: folder of corpora.
        settings: what else decides about the tokens of the corpus.
    """
    lines = [settings]
    for source in sources:
        lines.append(source.model_dump_json())
        for pattern in source.files:
            if pattern.startswith(SCHEME):
                lines.append(pin(parse(pattern, source.split)).url)
                continue
            lines += [f"{path} {file_status(path)}" for path in match_files(pattern)]
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
