"""Local copies of run directories in object stores.

A program often writes small files of a run directory, and appends to some of them. Object stores have no appending.
So each process works in a local copy of such a folder. The copy is made when the folder is first used. Files that
change in it are uploaded at intervals while a run trains, before a checkpoint counts as complete, and at the end of a
command. Checkpoints are not copied: Orbax writes them to the store.
"""

import atexit
import shutil
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

from t5x_lite.errors import UserError
from t5x_lite.storage import explained, is_remote, open_store

if TYPE_CHECKING:
    from fsspec import AbstractFileSystem

NOT_COPIED = ("checkpoints", "tensorboard", "profile", "runs")
"""Folders of a run directory or a sweep that are not read from its copy; they may be large."""
UPLOAD_SECONDS = 30.0
"""Shortest time between two uploads while a run trains."""
MAX_UPLOAD_SHARE = 0.05
"""Largest share of the time that goes into uploads: they become rarer as the files grow."""

Version: TypeAlias = tuple[int, int]
"""Size and modification time of a local file."""


def local_path(name: str | Path) -> Path:
    """Return a local name as a path, or the local copy of a folder in an object store.

    Raises:
        UserError: the store cannot be read, or its library is not installed.
    """
    if not is_remote(name):
        return Path(name).expanduser()
    open_store(str(name))  # raises if the name is wrong
    return _open_copy(str(name).rstrip("/")).folder


def check_writable(name: str, key: str = "") -> None:
    """Write and delete a small file where a folder is, or will be.

    Args:
        name: the folder.
        key: the setting that names it, for the message.

    Raises:
        UserError: it cannot be written.
    """
    if is_remote(name):
        store, root = open_store(name)
        with explained(name, "written"):
            store.pipe_file(f"{root}/.write_test", b"")
            store.rm_file(f"{root}/.write_test")
        return
    start = f"{key} {name}" if key else name
    try:
        with tempfile.TemporaryFile(dir=nearest_folder(name)):
            pass
    except OSError as error:
        raise UserError(f"{start}: cannot be created or written: {error.strerror}; choose another folder") from None


def nearest_folder(name: str) -> Path:
    """Return a local folder, or the nearest of those above it that exists."""
    folder = Path(name).expanduser().absolute()
    while not folder.exists():
        folder = folder.parent
    return folder


def local_file(name: str, siblings: Sequence[str] = ()) -> Path:
    """Return a local name as a path, or the path of a copy of a file in an object store.

    Args:
        name: the file.
        siblings: names of further files in its folder, which are copied if they exist.

    Raises:
        UserError: the store cannot be read, or its library is not installed.
    """
    if not is_remote(name):
        return Path(name)
    folder, _, file_name = name.rpartition("/")
    store, root = open_store(folder)
    copy = _temporary_folder()
    with explained(name, "read"):
        for other_name in (file_name, *siblings):
            if store.isfile(f"{root}/{other_name}"):
                store.get_file(f"{root}/{other_name}", str(copy / other_name))
    return copy / file_name


def upload_changes() -> None:
    """Upload the files that have changed in the local copies.

    Raises:
        UserError: a store cannot be written.
    """
    for copy in list(_copies.values()):
        copy.upload_changes()


@contextmanager
def uploading() -> Iterator[None]:
    """Upload changed files at intervals by a thread of its own. A failure is retried at the next interval."""
    if not _copies:
        yield
        return
    is_over = threading.Event()

    def upload_at_intervals() -> None:
        pause = UPLOAD_SECONDS
        while not is_over.wait(pause):
            started = time.monotonic()
            try:
                upload_changes()
            except UserError:  # The upload before the next checkpoint raises it, if the store does not recover.
                continue
            pause = max(UPLOAD_SECONDS, (time.monotonic() - started) / MAX_UPLOAD_SHARE)

    thread = threading.Thread(target=upload_at_intervals, name="upload", daemon=True)
    thread.start()
    try:
        yield
    finally:
        is_over.set()
        thread.join()
    upload_changes()


def finish() -> None:
    """Upload what can be uploaded, and delete the copies, for a process that ends at once."""
    with suppress(UserError):
        upload_changes()
    _delete_copies()


def with_urls(text: str) -> str:
    """Replace the paths of local copies in a message by the names of the folders that they are copies of."""
    for copy in _copies.values():
        text = text.replace(str(copy.folder), copy.url)
    return text


@dataclass
class _Copy:
    """The local copy of a remote folder.

    Attributes:
        url: the remote folder.
        folder: the local one.
        versions: the files that are the same in both, by their path in the folder.
    """

    url: str
    folder: Path
    versions: dict[str, Version] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def download(self) -> None:
        store, root = open_store(self.url)
        with explained(self.url, "read"):
            for name in _list_files(store, root, root):
                target = self.folder / name
                target.parent.mkdir(parents=True, exist_ok=True)
                store.get_file(f"{root}/{name}", str(target))
                self.versions[name] = _version(target)

    def upload_changes(self) -> None:
        store, root = open_store(self.url)
        with self._lock:
            for name, version in self.changes().items():
                with explained(self.url, "written", f"what is not uploaded is in {self.folder.parent}"):
                    store.pipe_file(f"{root}/{name}", (self.folder / name).read_bytes())
                self.versions[name] = version

    def changes(self) -> dict[str, Version]:
        """Return the files that differ from those in the store, with their versions here."""
        versions = {}
        for path in sorted(self.folder.rglob("*")):
            name = str(path.relative_to(self.folder))
            if path.name.startswith(".") or not path.is_file():  # locks and temporary files
                continue
            with suppress(FileNotFoundError):  # it was deleted meanwhile
                version = _version(path)
                if self.versions.get(name) != version:
                    versions[name] = version
        return versions


_temporary_folders: list[Path] = []
_copies: dict[str, _Copy] = {}
_copies_lock = threading.Lock()


@atexit.register
def _delete_copies() -> None:
    """Delete the copies. One that has changes which could not be uploaded is kept."""
    kept_folders = {copy.folder.parent for copy in _copies.values() if copy.changes()}
    for folder in set(_temporary_folders) - kept_folders:
        shutil.rmtree(folder, ignore_errors=True)


def _temporary_folder() -> Path:
    """Create a folder that is deleted when the process ends."""
    folder = Path(tempfile.mkdtemp(prefix="t5x_lite_"))
    _temporary_folders.append(folder)
    return folder


def _open_copy(url: str) -> _Copy:
    with _copies_lock:
        if url not in _copies:
            copy = _Copy(url, _temporary_folder() / url.rpartition("/")[2])
            copy.folder.mkdir()
            copy.download()
            _copies[url] = copy
        return _copies[url]


def _list_files(store: "AbstractFileSystem", folder: str, root: str) -> Iterator[str]:
    """Yield the paths, below `root`, of the files in a folder. `NOT_COPIED` are left out."""
    try:
        entries = store.ls(folder, detail=True)
    except FileNotFoundError:
        return
    for entry in entries:
        path = entry["name"].rstrip("/")
        if path == folder:  # some programs create an empty object in place of a folder
            continue
        if entry["type"] == "directory":
            if path.rpartition("/")[2] not in NOT_COPIED:
                yield from _list_files(store, path, root)
        else:
            yield path.removeprefix(f"{root}/")


def _version(path: Path) -> Version:
    status = path.stat()
    return status.st_size, status.st_mtime_ns
