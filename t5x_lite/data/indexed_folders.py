"""Folders of shards that an index in them describes: MDS of MosaicML, and caches of Levanter.

`data.files` names the folders, or the indexes in them. A unit's path is that of the index.
"""

from pathlib import Path

from t5x_lite.data import mds
from t5x_lite.data.token_files import levanter
from t5x_lite.storage import file_exists, file_status, join

INDEX_FILES = {"mds": mds.INDEX_FILE, "levanter": levanter.LEDGER_FILE}
"""Names of indexes, by `data.format`."""


def index_pattern(pattern: str, file_format: str) -> str:
    """Return the glob of the indexes of the folders that a glob names; of other formats the glob itself."""
    name = INDEX_FILES.get(file_format)
    if name is None or pattern.endswith(name):
        return pattern
    return join(pattern, name)


def content_files(path: str, file_format: str, start: int, stop: int) -> list[str]:
    """Return files whose sizes and times say whether a part of what an index describes has changed.

    They are the index, and the shards of MDS as far as they exist. Levanter writes its index last, and may have
    thousands of files that every part would list, so the index and the descriptions of the arrays stand for them.

    Args:
        path: the index.
        file_format: `data.format`.
        start: the first shard of MDS.
        stop: the one after the last; -1 is the end.
    """
    if file_format == "mds":
        shards = mds.read_index(path)
        last = len(shards) if stop == -1 else stop
        return [path, *mds.existing_files(path, shards[start:last])]
    tokens = Path(path).parent / levanter.TOKENS
    return [path, *filter(file_exists, (str(tokens / name / levanter.ARRAY_FILE) for name in ("offsets", "data")))]


def content_bytes(path: str, file_format: str) -> int:
    """Return the size of a file, or of what an index describes."""
    if file_format == "mds":
        return sum(shard.raw_data.bytes for shard in mds.read_index(path))
    if file_format == "levanter":
        return levanter.TOKEN_BYTES * len(levanter.open_levanter(path).tokens)
    size, _ = file_status(path)
    return size
