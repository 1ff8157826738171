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


def content_files(path: str, file_format: str) -> list[str]:
    """Return an index, and the files that it describes as far as they exist."""
    if file_format == "mds":
        return [path, *filter(file_exists, (shard.path(path) for shard in mds.read_index(path)))]
    tokens = Path(path).parent / levanter.TOKENS
    return [path, *sorted(str(file) for file in tokens.rglob("*") if file.is_file())]


def content_bytes(path: str, file_format: str) -> int:
    """Return the size of a file, or of what an index describes."""
    if file_format == "mds":
        return sum(shard.raw_data.bytes for shard in mds.read_index(path))
    if file_format == "levanter":
        return levanter.TOKEN_BYTES * len(levanter.open_levanter(path).tokens)
    size, _ = file_status(path)
    return size
