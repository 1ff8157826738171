"""Open the files that text and records are read from: plain or compressed, Parquet, and TFDS without TensorFlow."""

import glob
import gzip
import hashlib
import io
import sys
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import IO, TYPE_CHECKING, Protocol, TypeAlias, runtime_checkable

from t5x_lite import storage
from t5x_lite.errors import UserError, one_line

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

if TYPE_CHECKING:
    from pyarrow.parquet import ParquetFile


READ_ERRORS = (OSError, EOFError, zlib.error, zstd.ZstdError)
"""Errors of reading a file from `open_file`: of the disk, and of damaged or incomplete compressed data."""
BYTE_ORDER_MARK = "\ufeff"
LARGEST_DOCUMENT = 2**30
"""Bytes of the longest line, and of the largest file that is one document."""


@runtime_checkable
class RecordSequence(Protocol):
    """Records with random access: a list, or a data source of TFDS."""

    def __len__(self) -> int: ...

    def __getitem__(self, number: int, /) -> object: ...


TfdsLoader: TypeAlias = Callable[..., RecordSequence]
"""Maps the name of a builder, and its split as the argument `split`, to its records."""


def match_files(pattern: str, key: str = "data.files") -> list[str]:
    """Return the files that match a glob, sorted. A local file whose name has the signs of a glob matches itself.

    Args:
        pattern: the glob.
        key: the setting that it comes from, for messages.

    Raises:
        UserError: no file matches; a match is a link to a file that does not exist; the pattern is a folder.
    """
    if storage.is_remote(pattern):
        paths = storage.match_files(pattern)
        if not paths:
            raise UserError(f"{key}: no file matches {pattern!r}")
        return paths
    expanded = str(Path(pattern).expanduser())
    if Path(expanded).is_file():
        return [expanded]
    if Path(expanded).is_dir():
        raise UserError(f"{key}: {pattern} is a folder; name its files, as in {pattern.rstrip('/')}/**/*.txt")
    paths = []
    for path in sorted(glob.glob(expanded, recursive=True)):  # noqa: PTH207
        if Path(path).is_file():
            paths.append(path)
        elif not Path(path).exists():
            raise UserError(f"{key}: {path} is a link without its file; remove the link or restore the file")
    if not paths:
        raise UserError(f"{key}: no file matches {pattern!r} (looked from {Path.cwd()})")
    return paths


def hash_files(patterns: Sequence[str], key: str) -> str:
    """Return a hash of the content of all files that match some globs.

    Args:
        patterns: the globs.
        key: the setting that they come from, for messages.

    Raises:
        UserError: no file matches, or a file cannot be read.
    """
    digest = hashlib.sha256()
    for pattern in patterns:
        for path in match_files(pattern, key):
            digest.update(f"{storage.file_status(path)[0]} ".encode())
            with storage.explained(path, "read"), storage.open_bytes(path) as file:
                while block := file.read(2**20):
                    digest.update(block)
    return digest.hexdigest()


def strip_compression(path: str) -> Path:
    """Return the name of a file without .gz or .zst."""
    name = Path(path)
    if name.suffix.lower() in {".gz", ".zst"}:
        return name.with_suffix("")
    return name


def file_ending(path: str) -> str:
    """Return the ending of a file's name, such as `.jsonl`, in lower case and without that of a compression."""
    return strip_compression(path).suffix.lower()


def is_compressed(path: str) -> bool:
    """Return whether the name of a file ends in .gz or .zst."""
    return strip_compression(path) != Path(path)


def open_file(path: str) -> IO[bytes]:
    """Open a file of bytes, and decompress it if its name ends in .gz or .zst.

    Raises:
        OSError: it cannot be opened.
        EOFError: it is to be decompressed and has no byte, which Python would take for a compressed empty file.
    """
    size, _ = storage.file_status(path)
    if is_compressed(path) and size == 0:
        raise EOFError("it has no byte, and so is not a compressed file")
    if not is_compressed(path):
        return storage.open_bytes(path)
    source: str | IO[bytes] = path
    if storage.is_remote(path):
        source = storage.open_bytes(path)
    if path.lower().endswith(".zst"):
        return zstd.open(source)  # type: ignore[return-value]
    return gzip.open(source)  # type: ignore[return-value]


def hash_file(path: str) -> bytes:
    """Return the SHA-256 of the content of a file, decompressed if its name ends in .gz or .zst."""
    with open_file(path) as file:
        return hashlib.file_digest(file, "sha256").digest()  # type: ignore[arg-type]


def count_lines(path: str, size: int) -> int:
    """Count the line ends in the first `size` bytes of a file."""
    count = 0
    with storage.open_bytes(path) as file:
        while size and (block := file.read(min(size, 2**20))):
            count += block.count(b"\n")
            size -= len(block)
    return count


@contextmanager
def open_parquet(path: str) -> Iterator["ParquetFile"]:
    """Open a Parquet file, and decompress it if its name ends in .gz or .zst.

    Checksums of its pages are verified if the file has them. A writer may leave them out, as pyarrow does by default.

    Raises:
        UserError: it is not a Parquet file, or is damaged; also where it is read inside the context.
    """
    from pyarrow import parquet
    from pyarrow.lib import ArrowException

    try:
        with open_file(path) as file:
            source = file
            if is_compressed(path):
                source = io.BytesIO(file.read())
            with parquet.ParquetFile(source, page_checksum_verification=True) as parquet_file:
                yield parquet_file
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: is damaged: it has text that is not valid UTF-8: {error}") from None
    except (ArrowException, *READ_ERRORS) as error:
        raise UserError(f"{path}: cannot be read: {one_line(error)}") from None


def parquet_rows(
    path: str, file: "ParquetFile", columns: Sequence[str] | None = None, groups: range | None = None
) -> Iterator[dict[str, object]]:
    """Yield the rows of an open Parquet file.

    Args:
        path: its path, for messages.
        file: the file.
        columns: names of the columns; by default all.
        groups: numbers of the row groups; by default all.

    Raises:
        UserError: a group has another number of rows than it should have, because the header of a page is damaged; a
            value that Python cannot hold, such as a date after the year 9999.
    """
    if groups is None:
        groups = range(file.num_row_groups)
    for number in groups:
        row_count = 0
        for batch in file.iter_batches(batch_size=1024, row_groups=[number], columns=columns):
            row_count += len(batch)
            try:
                rows = batch.to_pylist()
            except UnicodeDecodeError:
                raise  # the text is damaged, which `open_parquet` says
            except (OverflowError, ValueError) as error:
                raise UserError(
                    f"{path}: row group {number} has a value that cannot be read: {one_line(error)}"
                ) from None
            yield from rows
        expected_count = file.metadata.row_group(number).num_rows
        if row_count != expected_count:
            raise UserError(f"{path}: is damaged: {row_count} of {expected_count} rows of row group {number} are there")


class TfdsRecords:
    """The records of one split of a TFDS builder. A record that cannot be read is named.

    Args:
        name: the split, for messages.
        source: the data source of TFDS.
    """

    def __init__(self, name: str, source: RecordSequence) -> None:
        self._name = name
        self._source = source

    def __len__(self) -> int:
        return len(self._source)

    def __getitem__(self, number: int) -> object:
        """Return a record.

        Raises:
            UserError: it cannot be read.
        """
        if not 0 <= number < len(self):
            raise IndexError(number)
        try:
            return self._source[number]
        except Exception as error:  # of ArrayRecord, of protocol buffers, and of the decoders of TFDS
            reason = one_line(error)
            raise UserError(f"{self._name} record {number}: cannot be read: {type(error).__name__}: {reason}") from None


def open_tfds(
    name: str, split: str, requested_by: str = "data.files", load: TfdsLoader | None = None
) -> RecordSequence:
    """Open the records of a split of a TFDS builder.

    Args:
        name: directory of the builder, or its name `name/config:version`.
        split: a TFDS split, such as `train`.
        requested_by: setting or task that names the builder, for the error message.
        load: loads a split of a builder by its name; by default `tfds.data_source`, which may download it.

    Raises:
        UserError: the builder does not exist, or cannot be downloaded.
    """
    import tensorflow_datasets as tfds

    if load is None:
        load = tfds.data_source
    try:
        if Path(name).is_dir():
            return TfdsRecords(f"{name} ({split})", tfds.builder_from_directory(name).as_data_source(split))
        try:
            source = load(name, split=split)
        except tfds.core.registered.DatasetNotFoundError:
            # The builder is not prepared yet, and without TensorFlow TFDS does not import these groups of builders by
            # itself. They have GLUE, CoNLL-2003 and WMT.
            for group in ("text", "summarization", "translate"):
                import_module(f"tensorflow_datasets.{group}")
            source = load(name, split=split)
        return TfdsRecords(f"{name} ({split})", source)
    except Exception as error:  # TFDS, its builders and the network raise errors of every kind
        reason = one_line(error)
        raise UserError(
            f"{requested_by}: TFDS cannot give {name} ({split}): {reason}; or give files (data.files)"
        ) from None
