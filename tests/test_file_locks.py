"""Locks of folders on file systems that have none."""

import errno
import fcntl
import logging
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

from t5x_lite.data.corpus_lock import lock_folder
from t5x_lite.errors import UserError
from t5x_lite.locked_folder import is_locked, lock_dir

LOCKS: dict[str, Callable[[Path], AbstractContextManager[None]]] = {
    "corpus": lambda folder: lock_folder(str(folder)),
    "run": lambda folder: lock_dir(folder, "locked"),
}


def fail_to_lock(number: int) -> Callable[[object, int], None]:
    """Return a `flock` that raises an error of the operating system."""

    def flock(file: object, operation: int) -> None:
        raise OSError(number, "no lock")

    return flock


@pytest.mark.parametrize("number", [errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP])
@pytest.mark.parametrize("kind", LOCKS)
def test_without_locks_there_is_one_warning_for_a_folder(
    kind: str, number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(fcntl, "flock", fail_to_lock(number))
    entered = 0
    for _ in range(2):
        with LOCKS[kind](tmp_path):
            entered += 1
    assert entered == 2
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert record.getMessage() == f"{tmp_path}: its file system has no locks; let one process at a time write there"


@pytest.mark.parametrize("kind", LOCKS)
def test_another_error_of_a_lock_is_raised(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fcntl, "flock", fail_to_lock(errno.EIO))
    with pytest.raises(OSError, match="no lock"), LOCKS[kind](tmp_path):
        pass


def test_a_run_on_a_file_system_without_locks_is_not_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / ".lock").touch()
    monkeypatch.setattr(fcntl, "flock", fail_to_lock(errno.ENOLCK))
    assert not is_locked(tmp_path)


def test_a_run_in_a_bucket_is_locked_on_this_machine() -> None:
    with lock_dir("gs://models/runs/one", "locked"):
        assert is_locked("gs://models/runs/one/")
        assert not is_locked("gs://models/runs/two")
        with pytest.raises(UserError, match="gs://models/runs/one: locked"), lock_dir("gs://models/runs/one", "locked"):
            pass
    assert not is_locked("gs://models/runs/one")
