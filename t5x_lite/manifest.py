"""The manifest of a checkpoint: a checksum of each of its files, and the evaluation metrics of its step.

A checkpoint is complete once it has a manifest. Orbax returns a flipped byte as a value without an error, so the
checksums are verified before a restore.
"""

import json
import zlib
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypedDict

import jax
from etils import epath

from t5x_lite.files import replace_file

MANIFEST = "manifest.json"
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
    """Write the manifest of a checkpoint whose files are complete."""
    manifest_path = checkpoint / MANIFEST
    files = [file for file in _list_files(checkpoint) if file != manifest_path]
    checksums: dict[str, str] = {}
    for file, checksum in zip(files, _compute_checksums(files), strict=True):
        checksums[str(file.relative_to(checkpoint))] = checksum
    manifest: Manifest = {"crc32": checksums, "metrics": dict(metrics)}
    content = json.dumps(manifest)
    if "://" in str(checkpoint):
        manifest_path.write_text(content)  # object stores write files atomically
    else:
        replace_file(Path(manifest_path), content)


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
    """Verify a checkpoint. Each process verifies its share of the files.

    Returns:
        A description of the first file that is missing, changed or not in the manifest; None if all are as they were
        written.
    """
    try:
        checksums = read_manifest(checkpoint)["crc32"]
    except (OSError, ValueError) as error:
        return f"{MANIFEST} cannot be read ({error})"
    for file in _list_files(checkpoint):
        name = str(file.relative_to(checkpoint))
        if name != MANIFEST and name not in checksums:
            return f"{name} is not in {MANIFEST}"
    names = sorted(checksums)[jax.process_index() :: jax.process_count()]
    for name in names:
        if not (checkpoint / name).is_file():
            return f"{name} is missing"
    current_checksums = _compute_checksums([checkpoint / name for name in names])
    for name, checksum in zip(names, current_checksums, strict=True):
        if checksum != checksums[name]:
            return f"{name} has changed"
    return None


def _list_files(folder: epath.Path) -> list[epath.Path]:
    files = []
    for path in folder.iterdir():
        if path.is_dir():
            files.extend(_list_files(path))
        else:
            files.append(path)
    return sorted(files)


def _compute_checksums(files: Sequence[epath.Path]) -> list[str]:
    with ThreadPoolExecutor(CHECKSUM_THREADS) as pool:
        return list(pool.map(_compute_checksum, files))


def _compute_checksum(file: epath.Path) -> str:
    checksum = 0
    block = memoryview(bytearray(BLOCK_BYTES))
    with file.open("rb") as opened:
        while size := opened.readinto(block):
            checksum = zlib.crc32(block[:size], checksum)
    return f"{checksum:08x}"
