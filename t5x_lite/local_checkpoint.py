"""A second tier of checkpoints: each process keeps its part of the newest states on the disk of its machine.

Such a checkpoint is cheap enough for every few steps, and a program that starts again on the same machines goes on from
it without reading the first tier. It is no replacement for that: a machine that is lost takes its part along, and then
all processes fall back to the newest checkpoint that `checkpoint.Checkpoints` has.

In the folder of a process, the checkpoint of a step is `STEP.bin`, the shards of its devices one after the other, and
`STEP.json`, where each shard lies, with its checksum. The latter is written last: a checkpoint with this file is
complete.
"""

import logging
import math
import shutil
import uuid
import zlib
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import TypeAlias

import jax
import ml_dtypes  # noqa: F401  # names bfloat16 for NumPy
import numpy as np
from jax.experimental import multihost_utils
from jaxtyping import PyTree
from pydantic import BaseModel, ConfigDict

from t5x_lite.checkpoint_config import LocalCheckpointConfig
from t5x_lite.files import replace_file
from t5x_lite.run_layout import is_step
from t5x_lite.storage import absolute, expand
from t5x_lite.trees import flatten_names

logger = logging.getLogger(__name__)

KEPT = 2
"""Newest checkpoints of a process that are kept: one is intact while the next is written."""
NO_STEP = -1
RUN_ID_FILE = "run_id"

Index: TypeAlias = tuple[slice, ...]
"""Part of an array that a device has."""
Borders: TypeAlias = tuple[tuple[int, int], ...]
"""Start and stop of such a part along each axis of the array."""


def open_local_checkpoints(config: LocalCheckpointConfig, run_dir: str, run_folder: Path) -> "LocalCheckpoints":
    """Return the local checkpoints of a run. All processes make this call together.

    The first process names the run by a random number in `RUN/run_id`, so that a run which begins anew in the same
    directory does not find the states of the one before.

    Args:
        config: the folder, and how often a state is kept.
        run_dir: the run directory, perhaps in a bucket.
        run_folder: the run directory or, of one in a bucket, the local copy, which is another folder at each start.
    """
    number = np.zeros(16, np.uint8)
    if jax.process_index() == 0:
        number = np.frombuffer(_run_number(run_folder / RUN_ID_FILE).bytes, np.uint8)
    number = np.asarray(multihost_utils.broadcast_one_to_all(number), np.uint8)
    # A copy of a run directory has the same number and another name.
    return LocalCheckpoints(config, f"{number.tobytes().hex()}-{zlib.crc32(absolute(run_dir).encode()):08x}")


def _run_number(path: Path) -> uuid.UUID:
    """Return the number in a file. A file that does not exist, or was cut short, gets a new one."""
    with suppress(OSError, ValueError):
        return uuid.UUID(path.read_text(encoding="utf-8").strip())
    number = uuid.uuid4()
    replace_file(path, number.hex)
    return number


class StoredShard(BaseModel):
    """A shard in the file of a checkpoint.

    Attributes:
        array: name of its array.
        index: start and stop of the shard along each axis of the array.
        dtype: type of its values.
        offset: bytes of the file before it.
        crc32: checksum of its bytes.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    array: str
    index: Borders
    dtype: str
    offset: int
    crc32: int


class StoredState(BaseModel):
    """Content of `STEP.json`.

    Attributes:
        processes: number of processes that saved a part.
        shards: where each shard lies.
        meta: JSON values that were stored with the state.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    processes: int
    shards: list[StoredShard]
    meta: dict[str, object]


Restored: TypeAlias = tuple[int, PyTree, dict[str, object]]
"""Step, arrays and JSON values of a checkpoint."""


class LocalCheckpoints:
    """The parts of a run's newest states that this process keeps. Every process makes the same calls in the same order.

    Args:
        config: the folder, and how often a state is kept.
        run_id: names the run, so that another run with the same folder has other checkpoints.
    """

    def __init__(self, config: LocalCheckpointConfig, run_id: str) -> None:
        self.config = config
        self.folder = Path(expand(config.folder)).absolute() / run_id / f"process-{jax.process_index()}"
        self._background = ThreadPoolExecutor(1, "local checkpoint")
        self._pending: Future[None] | None = None

    def due(self, step: int) -> bool:
        """Return whether to keep the state after a step."""
        return step % self.config.every_steps == 0

    def save(self, step: int, state: PyTree, meta: Mapping[str, object]) -> None:
        """Copy the shards of this process to host memory, and write them in the background.

        A state that cannot be written is reported, and the run goes on: its checkpoints are elsewhere.
        """
        self.wait()
        shards: list[tuple[str, Borders, np.ndarray]] = []
        for name, array in flatten_names(state).items():
            parts = {_borders(shard.index, array.shape): shard.data for shard in array.addressable_shards}
            # A view would change when the next step takes the memory of the state.
            shards += [(name, borders, np.array(data)) for borders, data in parts.items()]
        self._pending = self._background.submit(self._write, step, shards, dict(meta))

    def _write(self, step: int, shards: list[tuple[str, Borders, np.ndarray]], meta: dict[str, object]) -> None:
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._delete_incomplete()
            stored = []
            offset = 0
            with self._data_file(step).open("wb") as file:
                for name, borders, values in shards:
                    content = values.tobytes()
                    checksum = zlib.crc32(content)
                    dtype = str(values.dtype)
                    stored.append(StoredShard(array=name, index=borders, dtype=dtype, offset=offset, crc32=checksum))
                    offset += file.write(content)
            summary = StoredState(processes=jax.process_count(), shards=stored, meta=meta)
            replace_file(self._summary_file(step), summary.model_dump_json())
            for old_step in sorted(self._steps())[:-KEPT]:
                self._delete(old_step)
        except OSError as error:
            logger.warning("%s: the state of step %d is not kept: %s (checkpoint.local)", self.folder, step, error)
            with suppress(OSError):
                self._delete_incomplete()

    def _delete_incomplete(self) -> None:
        """Delete states that were not written to their end: of a full disk, or of a process that was killed."""
        steps = set(self._steps())
        for path in self.folder.glob("*.bin"):
            if path.stem.isdecimal() and int(path.stem) not in steps:
                path.unlink()

    def wait(self) -> None:
        """Wait until the newest state is written."""
        if self._pending is not None:
            self._pending.result()

    def clear(self) -> None:
        """Delete all states of this process."""
        self.wait()
        shutil.rmtree(self.folder, ignore_errors=True)

    def restore(self, target: PyTree, after: int) -> Restored | None:
        """Restore the newest state that every process has, intact and in the shards of `target`.

        Args:
            target: pytree of `jax.ShapeDtypeStruct` with shardings.
            after: only the states of later steps.

        Returns:
            The step, the arrays and the JSON values; None if there is no such state.
        """
        for step in self._common_steps(after):
            state = self._load(step, target)
            is_loaded = multihost_utils.process_allgather(np.array(state is not None))
            if is_loaded.all():
                assert state is not None
                return step, state, self._read_summary(step).meta
            del state  # its memory is free for the next one
        return None

    def delete_after(self, step: int) -> None:
        """Delete the states of later steps: the run goes on from an earlier one, and would keep them as the newest."""
        for later_step in self._steps():
            if later_step > step:
                self._delete(later_step)

    def _common_steps(self, after: int) -> list[int]:
        """Return the steps that all processes have, the newest first."""
        newest = sorted((step for step in self._steps() if step > after), reverse=True)[:KEPT]
        padded = np.full(KEPT, NO_STEP)
        padded[: len(newest)] = newest
        gathered = np.asarray(multihost_utils.process_allgather(padded)).reshape(-1, KEPT)
        common = set(newest).intersection(*(set(steps) for steps in gathered.tolist()))
        return sorted(common, reverse=True)

    def _load(self, step: int, target: PyTree) -> PyTree | None:
        """Return the arrays of a step; None if a file is damaged, or if the devices have other shards now."""
        try:
            summary = self._read_summary(step)
            if summary.processes != jax.process_count():
                return None
            stored = {(shard.array, shard.index): shard for shard in summary.shards}
            structs = flatten_names(target)
            if {shard.array for shard in summary.shards} != structs.keys():
                return None
            content = np.memmap(self._data_file(step), np.uint8, mode="r")
            leaves = [_load_array(name, struct, stored, content) for name, struct in structs.items()]
        except (KeyError, OSError, TypeError, ValueError) as error:
            logger.warning("%s: the state of step %d is left out: %s", self.folder, step, error)
            return None
        return jax.tree.unflatten(jax.tree.structure(target), leaves)

    def _read_summary(self, step: int) -> StoredState:
        return StoredState.model_validate_json(self._summary_file(step).read_bytes())

    def _steps(self) -> list[int]:
        return [int(path.stem) for path in self.folder.glob("*.json") if is_step(path.stem)]

    def _delete(self, step: int) -> None:
        self._summary_file(step).unlink(missing_ok=True)
        self._data_file(step).unlink(missing_ok=True)

    def _summary_file(self, step: int) -> Path:
        return self.folder / f"{step}.json"

    def _data_file(self, step: int) -> Path:
        return self.folder / f"{step}.bin"


def _borders(index: Index, shape: tuple[int, ...]) -> Borders:
    """Return start and stop of a shard along each axis of an array."""
    borders = []
    for part, size in zip(index, shape, strict=True):
        start, stop, _ = part.indices(size)
        borders.append((start, stop))
    return tuple(borders)


def _load_array(
    name: str,
    struct: jax.ShapeDtypeStruct,
    stored: Mapping[tuple[str, Borders], StoredShard],
    content: np.ndarray,
) -> jax.Array:
    """Return an array whose shards are in a file.

    Raises:
        KeyError: the file lacks a shard.
        ValueError: a shard has another type, or has changed.
    """
    assert struct.sharding is not None
    arrays = []
    for device, index in struct.sharding.addressable_devices_indices_map(struct.shape).items():
        borders = _borders(index or (), struct.shape)
        shard = stored[name, borders]
        if shard.dtype != str(struct.dtype):
            raise ValueError(f"{name} is {shard.dtype}, the model has {struct.dtype}")
        shape = [stop - start for start, stop in borders]
        size = math.prod(shape) * np.dtype(struct.dtype).itemsize
        values = content[shard.offset : shard.offset + size]
        if zlib.crc32(values.data) != shard.crc32:
            raise ValueError(f"{name} has changed")
        arrays.append(jax.device_put(np.array(values).view(struct.dtype).reshape(shape), device))
    return jax.make_array_from_single_device_arrays(struct.shape, struct.sharding, arrays)
