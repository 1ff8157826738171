"""The manifest of a checkpoint: a checksum of each of its files, and the evaluation metrics of its step.

A checkpoint is complete once it has a manifest. Orbax returns a flipped byte as a value without an error, so the
checksums are verified before a restore.

Orbax lets each process write its arrays to a folder of its name. Each process computes the checksums of its folder, and
the first one those of the few small files that have no process, so that no process reads what another has written.
"""

import json
import re
import zlib
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypedDict

import jax
import orbax.checkpoint as ocp
from etils import epath

from t5x_lite.files import replace_file
from t5x_lite.run_layout import MANIFEST

PROCESS_FOLDER = re.compile(r"state/ocdbt\.process_(\d+)(/.*)?")
"""Path, in a checkpoint, of what a process has written."""
PARTS_FOLDER = "checksums"
"""Folder of the checksums that the processes hand to the first one, deleted when the manifest is written."""
PART_TIMEOUT_SECONDS = 1200
"""Longest time that a process waits for the checksums of the others."""
BLOCK_BYTES = 2**20
CHECKSUM_THREADS = 8


class Manifest(TypedDict):
    """Content of a manifest.

    Attributes:
        crc32: hexadecimal checksum of each file, by its path in the checkpoint.
        metrics: evaluation metrics of the step.
    """

    crc32: dict[str, str]
    metrics: dict[str, float]


def write_manifest(checkpoint: epath.Path, metrics: Mapping[str, float]) -> None:
    """Write the manifest of a checkpoint whose files are complete. Every process makes this call.

    Each process but the first writes its checksums to a file of their own. The first one joins and deletes these files.
    """
    process = jax.process_index()
    files = _list_files(checkpoint)
    checksums = dict(zip(files, _compute_checksums(checkpoint, files), strict=True))
    parts_folder = checkpoint / PARTS_FOLDER
    if process > 0:
        parts_folder.mkdir(exist_ok=True)
        _write_atomically(parts_folder / f"{process}.json", json.dumps(checksums))
    barrier = ocp.multihost.get_barrier_sync_fn()
    barrier(key=f"checksums of {checkpoint}", timeout_ms=1000 * PART_TIMEOUT_SECONDS)
    if process > 0:
        return
    parts = [parts_folder / f"{other}.json" for other in range(1, jax.process_count())]
    with ThreadPoolExecutor(CHECKSUM_THREADS) as pool:
        for content in pool.map(epath.Path.read_text, parts):
            checksums.update(json.loads(content))
    parts_folder.rmtree(missing_ok=True)
    manifest: Manifest = {"crc32": checksums, "metrics": dict(metrics)}
    _write_atomically(checkpoint / MANIFEST, json.dumps(manifest))


def _write_atomically(path: epath.Path, content: str) -> None:
    if "://" in str(path):
        path.write_text(content)  # object stores write files atomically
    else:
        replace_file(Path(path), content)


def read_manifest(checkpoint: epath.Path) -> Manifest:
    """Read the manifest of a complete checkpoint.

    Raises:
        OSError: it cannot be read.
        ValueError: it is not a manifest.
    """
    try:
        manifest = json.loads((checkpoint / MANIFEST).read_text())
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    if not isinstance(manifest, dict):
        raise ValueError("it is not an object")
    checksums = manifest.get("crc32")
    if not isinstance(checksums, dict) or not all(isinstance(checksum, str) for checksum in checksums.values()):
        raise ValueError("it has no checksums in `crc32`")
    metrics = manifest.get("metrics", {})
    if not isinstance(metrics, dict):
        raise ValueError("its `metrics` are not an object")
    for name, value in metrics.items():
        if isinstance(value, bool) or not isinstance(value, int | float | None):
            raise ValueError(f"its metric {name} is not a number")
    return {"crc32": checksums, "metrics": metrics}


def is_complete(checkpoint: epath.Path) -> bool:
    """Return whether a checkpoint was written to its end."""
    return (checkpoint / MANIFEST).is_file()


def find_damage(checkpoint: epath.Path) -> str | None:
    """Verify a checkpoint. Each process verifies the files that it would have written.

    Returns:
        A description of the first file that is missing, changed or not in the manifest; None if all are as they were
        written.
    """
    try:
        checksums = read_manifest(checkpoint)["crc32"]
        return _find_damaged_file(checkpoint, checksums)
    except (OSError, ValueError) as error:
        return f"it cannot be read ({error})"


def _find_damaged_file(checkpoint: epath.Path, checksums: Mapping[str, str]) -> str | None:
    files = set(_list_files(checkpoint))
    for name in sorted(files - checksums.keys()):
        return f"{name} is not in {MANIFEST}"
    names = sorted(name for name in checksums if _summing_process(name) == jax.process_index())
    for name in names:
        if name not in files:
            return f"{name} is missing"
    current_checksums = _compute_checksums(checkpoint, names)
    for name, checksum in zip(names, current_checksums, strict=True):
        if checksum != checksums[name]:
            return f"{name} has changed"
    return None


def _summing_process(name: str) -> int:
    """Return the process that computes the checksum of a file or of the files in a folder."""
    match = PROCESS_FOLDER.fullmatch(name)
    if match is None:
        return 0
    return int(match[1]) % jax.process_count()  # a checkpoint may be read by fewer processes than have written it


def _list_files(checkpoint: epath.Path) -> list[str]:
    """Return the paths, in a checkpoint, of the files whose checksums this process computes."""
    process = jax.process_index()
    files = []
    folders = [""]
    while folders:
        for path in (checkpoint / folders.pop()).iterdir():
            name = str(path.relative_to(checkpoint))
            is_ours = _summing_process(name) == process
            if name in (MANIFEST, PARTS_FOLDER):
                continue
            if name == "state" or (is_ours and path.is_dir()):
                folders.append(name)
            elif is_ours:
                files.append(name)
    return sorted(files)


def _compute_checksums(checkpoint: epath.Path, names: Sequence[str]) -> list[str]:
    files = [checkpoint / name for name in names]
    with ThreadPoolExecutor(CHECKSUM_THREADS) as pool:
        return list(pool.map(_compute_checksum, files))


def _compute_checksum(file: epath.Path) -> str:
    checksum = 0
    block = memoryview(bytearray(BLOCK_BYTES))
    with file.open("rb") as opened:
        while size := opened.readinto(block):
            checksum = zlib.crc32(block[:size], checksum)
    return f"{checksum:08x}"
