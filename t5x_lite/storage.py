"""Files in object stores, `gs://` (Google Cloud Storage) and `s3://`, and on disk."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import fsspec
from fsspec.config import conf as fsspec_settings

from t5x_lite.errors import UserError, one_line
from t5x_lite.extras import require_library
from t5x_lite.files import replace_file

if TYPE_CHECKING:
    from fsspec import AbstractFileSystem

EXTRAS = {"gs": ("gcs", "gcsfs"), "s3": ("s3", "s3fs")}
"""Extra of this package, and the module that it installs, for each scheme."""

# Other processes write to a store too. If a listing were kept, what they have written since would not exist, neither
# for this module nor for Orbax, which opens the stores by itself.
for _protocol in ("gs", "gcs", "s3"):
    fsspec_settings.setdefault(_protocol, {}).setdefault("use_listings_cache", False)


def is_remote(name: str | Path) -> bool:
    """Return whether a name is that of an object store."""
    return "://" in str(name)


def expand(name: str | Path) -> str:
    """Return a name with `~` replaced by the home folder."""
    if is_remote(name):
        return str(name)
    return str(Path(name).expanduser())


def absolute(name: str) -> str:
    """Return a local name as an absolute path, and the name of an object store as it is."""
    if is_remote(name):
        return name
    return str(Path(name).expanduser().absolute())


def normalised(name: str) -> str:
    """Return a name as an absolute one that is the same for every way to write it, without `..` and a last slash."""
    return name.rstrip("/") if is_remote(name) else os.path.normpath(absolute(name))


def join(folder: str | Path, name: str) -> str:
    """Return the name of a file in a folder, which may be in an object store."""
    if is_remote(folder):
        return f"{str(folder).rstrip('/')}/{name}"
    return str(Path(folder) / name)


@lru_cache
def open_store(url: str) -> tuple["AbstractFileSystem", str]:
    """Return the file system of an object store, and the path of `url` in it.

    Raises:
        UserError: the scheme is unknown, its library is not installed, or there are no credentials.
    """
    scheme, _, path = url.partition("://")
    if scheme not in EXTRAS:
        known = ", ".join(f"{name}://" for name in EXTRAS)
        raise UserError(f"{url}: {scheme}:// is not a known kind of storage; there are {known} and local paths")
    if not path.strip("/"):
        raise UserError(f"{url}: names no bucket")
    extra, module = EXTRAS[scheme]
    require_library(f"{url}:", module, extra)
    with explained(url, "opened"):
        store, root = fsspec.url_to_fs(url)
    return store, root.rstrip("/")


def match_files(pattern: str) -> list[str]:
    """Return the files in a store that match a glob, sorted.

    Raises:
        UserError: the store cannot be read.
    """
    store, root = open_store(pattern)
    scheme = pattern.partition("://")[0]
    with explained(pattern, "read"):
        matches = store.glob(root, detail=True)
    names = []
    for path, description in matches.items():
        if description["type"] == "file":
            name = f"{scheme}://{path}"
            _listed[name] = description
            names.append(name)
    return sorted(names)


_listed: dict[str, dict[str, Any]] = {}
"""Descriptions of files by their names, from listings: a thousand files are one request."""


def file_status(name: str) -> tuple[int, int | str]:
    """Return the size of a file in bytes, and what changes when the file changes: a time, or a tag of the store.

    Raises:
        OSError: a local file that does not exist.
        UserError: the store cannot be read.
    """
    if not is_remote(name):
        status = Path(name).stat()
        return status.st_size, status.st_mtime_ns
    if name not in _listed:
        store, root = open_store(name)
        with explained(name, "read"):
            _listed[name] = store.info(root)
    description = _listed[name]
    tag = description.get("etag") or description.get("ETag")
    return int(description["size"]), str(tag)


def open_bytes(name: str) -> IO[bytes]:
    """Open a file for reading.

    Raises:
        OSError: a local file that cannot be opened.
        UserError: the store cannot be read.
    """
    if not is_remote(name):
        return Path(name).open("rb")
    store, root = open_store(name)
    with explained(name, "read"):
        return store.open(root, "rb")


def read_bytes(name: str) -> bytes:
    """Return the content of a file.

    Raises:
        OSError: a local file that cannot be read.
        UserError: the store cannot be read, or has no such file.
    """
    if not is_remote(name):
        return Path(name).read_bytes()
    store, root = open_store(name)
    with explained(name, "read"):
        content: bytes = store.cat_file(root)
    return content


def write_bytes(name: str, content: str | bytes) -> None:
    """Write a file of which other processes see either all or nothing. Its folder must exist on a disk.

    Raises:
        OSError: a local file that cannot be written.
        UserError: the store cannot be written.
    """
    if isinstance(content, str):
        content = content.encode()
    if not is_remote(name):
        replace_file(Path(name), content)
        return
    store, root = open_store(name)
    with explained(name, "written"):
        store.pipe_file(root, content)


def make_folder(name: str) -> None:
    """Create a local folder. Object stores have none.

    Raises:
        OSError: it cannot be created.
    """
    if not is_remote(name):
        Path(name).mkdir(parents=True, exist_ok=True)


def delete_file(name: str) -> None:
    """Delete a file, if there is one.

    Raises:
        UserError: the store cannot be written.
    """
    if not is_remote(name):
        Path(name).unlink(missing_ok=True)
        return
    store, root = open_store(name)
    with explained(name, "deleted"):
        if store.exists(root):
            store.rm_file(root)


def delete_folder(name: str) -> None:
    """Delete a folder with all that is in it.

    Raises:
        UserError: the store cannot be written.
    """
    if not is_remote(name):
        shutil.rmtree(name, ignore_errors=True)
        return
    store, root = open_store(name)
    with explained(name, "deleted"):
        if store.exists(root):
            store.rm(root, recursive=True)


def tensorstore_location(folder: str) -> dict[str, str]:
    """Return the folder as the `kvstore` of TensorStore's specs, with the endpoint that AWS_ENDPOINT_URL names.

    Raises:
        UserError: the scheme is unknown, or its library is not installed.
    """
    if not is_remote(folder):
        return {"driver": "file", "path": f"{Path(folder).resolve()}/"}  # TensorStore refuses `..`
    open_store(folder)  # raises if the name is wrong
    scheme, _, path = folder.partition("://")
    bucket, _, key = path.partition("/")
    location = {"driver": {"gs": "gcs"}.get(scheme, scheme), "bucket": bucket, "path": f"{key.rstrip('/')}/"}
    endpoint = os.environ.get("AWS_ENDPOINT_URL")
    if scheme == "s3" and endpoint:
        location |= {"endpoint": endpoint, "aws_region": os.environ.get("AWS_DEFAULT_REGION", "us-east-1")}
    return location


def file_exists(name: str) -> bool:
    """Return whether there is such a file."""
    if not is_remote(name):
        return Path(name).is_file()
    store, root = open_store(name)
    with explained(name, "read"):
        return store.isfile(root)


def list_names(folder: str) -> list[str]:
    """Return the names of the files and folders in a folder; none if there is no such folder.

    Raises:
        UserError: the folder cannot be read.
    """
    try:
        if not is_remote(folder):
            return [path.name for path in Path(folder).iterdir()]
        store, root = open_store(folder)
        with explained(folder, "read"):
            try:
                return [entry.rstrip("/").rpartition("/")[2] for entry in store.ls(root, detail=False)]
            except FileNotFoundError:
                return []
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as error:
        raise UserError(f"{folder}: cannot be read: {error.strerror}") from None


@contextmanager
def explained(
    url: str, action: str, remedy: str = "check its name, your credentials and your rights"
) -> Iterator[None]:
    """Turn the errors of a store's library, which have no common class, into one line."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        reason = one_line(error)
        raise UserError(f"{url}: cannot be {action}: {reason}; {remedy}") from error
