"""Checkpoints: Orbax writes and reads the arrays; this file decides what is whole, what is kept and what is restored.

A checkpoint is a folder `STEP/` that ends with `manifest.json`: the checksum of every other file, written after
Orbax has committed. Orbax itself returns a flipped byte as a value without a word, so nothing is restored unverified.
"""

import contextlib
import json
import logging
import time
import warnings
import zlib
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from etils import epath
from jax.experimental import multihost_utils

from t5x_lite.config import CheckpointConfig
from t5x_lite.errors import UserError, free_space, is_disk_full, replace_file
from t5x_lite.trees import flatten_names

logger = logging.getLogger(__name__)
MANIFEST = "manifest.json"
IN_FLIGHT_GB = 0.25
"""Arrays on their way from memory to disk at one time, where memory is short; a larger one passes alone."""
RESTORE_GB = 1.0
"""Arrays on their way from disk to memory at one time, likewise."""


class SaveError(UserError):
    """A checkpoint could not be written."""


class Checkpoints:
    """The checkpoints of one run, in `folder`, local or of an object store (gs://).

    Every process of a run makes the same calls in the same order.
    """

    def __init__(self, folder: str | Path, config: CheckpointConfig) -> None:
        remote = "://" in str(folder)
        self.folder, self.config = epath.Path(folder if remote else Path(folder).absolute()), config
        self._saver = ocp.AsyncCheckpointer(_items(ocp.PyTreeCheckpointHandler(use_compression=False)))
        self._background = ThreadPoolExecutor(1, "checkpoint")
        self._finishing: Future[None] | None = None
        self._last_time = time.monotonic()

    def steps(self) -> list[int]:
        """Steps of the complete checkpoints, ascending."""
        if not self.folder.is_dir():
            return []
        return sorted(int(p.name) for p in self.folder.iterdir() if p.name.isdigit() and (p / MANIFEST).is_file())

    def clean(self) -> None:
        """Remove what killed saves have left: folders without a manifest."""
        if jax.process_index() == 0 and self.folder.is_dir():
            for path in self.folder.iterdir():
                if path.is_dir() and not (path / MANIFEST).is_file():
                    _remove(path)
        multihost_utils.sync_global_devices("checkpoints cleaned")

    def due(self, step: int) -> bool:
        """Whether a save is due after `step`: by the steps, or by the clock of the first process."""
        if step % self.config.every_steps == 0 or step in self.config.keep_steps:
            return True
        if self.config.every_minutes is None:
            return False
        late = np.array(time.monotonic() - self._last_time > 60 * self.config.every_minutes)
        return bool(multihost_utils.broadcast_one_to_all(late))

    def save(self, step: int, state: Any, meta: Mapping[str, Any], metrics: Mapping[str, float] | None = None) -> None:
        """Start to write a checkpoint in the background; an earlier save is waited for first.

        Args:
            step: its name.
            state: pytree of arrays.
            meta: JSON values that go with it.
            metrics: evaluation of this step, from which the best are chosen.

        Raises:
            SaveError: this or the earlier save failed; earlier checkpoints are as they were.
        """
        self.wait()
        self._last_time = time.monotonic()
        self._begin(self._saver, step, state, meta)
        self._finishing = self._background.submit(self._finish, step, dict(metrics or {}))

    def write(self, step: int, state: Any, meta: Mapping[str, Any]) -> None:
        """Write a checkpoint before this returns, few arrays in flight: for a model that memory holds just once.

        One of the same step that is there already is replaced.

        Raises:
            SaveError: it could not be written.
        """
        largest = max(leaf.nbytes for leaf in jax.tree.leaves(state)) / 1e9
        in_flight = max(1.1 * largest, IN_FLIGHT_GB)
        handler = ocp.PyTreeCheckpointHandler(save_concurrent_gb=in_flight, use_compression=False)  # type: ignore[arg-type]
        self.clean()
        with contextlib.closing(ocp.Checkpointer(_items(handler))) as saver:
            self._begin(saver, step, state, meta)
        if jax.process_index() == 0:
            _write_manifest(self.folder / str(step), {})

    def _begin(self, saver: ocp.Checkpointer, step: int, state: Any, meta: Mapping[str, Any]) -> None:
        path = self.folder / str(step)
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            if jax.process_index() == 0:
                path.rmtree(missing_ok=True)
            multihost_utils.sync_global_devices("checkpoint folder ready")
            items = ocp.args.Composite(
                state=ocp.args.PyTreeSave(flatten_names(state)), meta=ocp.args.JsonSave(dict(meta))
            )
            saver.save(path, args=items)
        except Exception as error:
            raise self._explained(step, error) from error

    def _finish(self, step: int, metrics: dict[str, float]) -> None:
        try:
            self._saver.wait_until_finished()
            if jax.process_index() == 0:
                _write_manifest(self.folder / str(step), metrics)
                self._retain()
        except Exception as error:
            raise self._explained(step, error) from error

    def check(self) -> None:
        """Raise what went wrong in the background, if anything did."""
        if self._finishing is not None and self._finishing.done():
            self._finishing.result()

    def wait(self) -> None:
        """Return when the newest save is complete; raise if it failed."""
        if self._finishing is not None:
            self._finishing.result()

    def close(self) -> None:
        """Wait, and end the threads."""
        try:
            self.wait()
        finally:
            self._background.shutdown()
            self._saver.close()

    def restore(self, target: Any, step: int | None = None, prefix: str = "") -> tuple[int, Any, dict[str, Any]] | None:
        """The newest whole checkpoint, or that of `step`; None where there is none at all.

        Args:
            target: pytree of `jax.ShapeDtypeStruct` with shardings: what comes back, whatever mesh saved it.
            step: an explicit one, which must be whole.
            prefix: read this part of the saved state alone (`params.`); `target` is that part.

        Raises:
            UserError: the explicit step is missing or damaged, all are damaged, or arrays differ from `target`.
        """
        steps = self.steps()
        if step is not None and step not in steps:
            have = ", ".join(map(str, steps)) or "none"
            raise UserError(f"{self.folder}: there is no checkpoint of step {step}; complete ones are: {have}")
        damage = []
        for number in [step] if step is not None else reversed(steps):
            path = self.folder / str(number)
            broken = _agreed(damaged(path))
            if broken is None:
                return number, *self._read(path, target, prefix)
            damage.append(f"step {number}: {broken}")
            logger.warning("%s: the checkpoint of step %d is damaged: %s", self.folder, number, broken)
        if damage:
            raise UserError(f"{self.folder}: no checkpoint is whole: {'; '.join(damage)}; remove it to start anew")
        return None

    def _read(self, path: epath.Path, target: Any, prefix: str) -> tuple[Any, dict[str, Any]]:
        wanted = {prefix + name: leaf for name, leaf in flatten_names(target).items()}
        largest = max(leaf.size * leaf.dtype.itemsize for leaf in wanted.values()) / 1e9
        handler = ocp.PyTreeCheckpointHandler(restore_concurrent_gb=max(2.2 * largest, RESTORE_GB))  # type: ignore[arg-type]
        with contextlib.closing(ocp.Checkpointer(_items(handler))) as reader:
            saved = reader.metadata(path).item_metadata.state.tree
            _compare(path, {name: saved[name] for name in saved if name.startswith(prefix)}, wanted)
            how = ocp.checkpoint_utils.construct_restore_args(wanted)
            state = ocp.args.PyTreeRestore(item=wanted, restore_args=how, partial_restore=bool(prefix))
            found = reader.restore(path, args=ocp.args.Composite(state=state, meta=ocp.args.JsonRestore()))
        return jax.tree.unflatten(jax.tree.structure(target), [found.state[name] for name in wanted]), found.meta

    def meta(self, step: int) -> dict[str, Any]:
        """The JSON values saved with `step`."""
        return ocp.Checkpointer(ocp.JsonCheckpointHandler()).restore(self.folder / str(step) / "meta")

    def _retain(self) -> None:
        metric = self.config.best_metric
        scores = {step: _manifest(self.folder / str(step))["metrics"].get(metric) for step in self.steps()}
        for step in set(scores) - kept(scores, self.config):
            # The manifest goes first: a deletion that is interrupted leaves a folder that counts as unfinished.
            (self.folder / str(step) / MANIFEST).unlink()
            _remove(self.folder / str(step))

    def _explained(self, step: int, error: Exception) -> SaveError:
        # Orbax drops the writes that were still to come; Python would say so of each, after our one line.
        warnings.filterwarnings("ignore", "coroutine .* was never awaited", RuntimeWarning)
        free = f" ({space} there)" if (space := free_space(self.folder)) else ""
        words = " ".join(str(error).split()) or type(error).__name__
        why = "the disk is full" if is_disk_full(error) else words[:300]
        return SaveError(
            f"{self.folder}: the checkpoint of step {step} could not be written{free}: {why}; earlier checkpoints are "
            "intact: make room, or mend the disk, and run the same command to resume"
        )


def _items(state: ocp.PyTreeCheckpointHandler) -> ocp.CompositeCheckpointHandler:
    """What a checkpoint holds. Weights are noise to a compressor: it would cost time and save next to nothing."""
    return ocp.CompositeCheckpointHandler(state=state, meta=ocp.JsonCheckpointHandler())


def kept(scores: Mapping[int, float | None], config: CheckpointConfig) -> set[int]:
    """Steps to keep: the newest `keep`, `keep_steps`, multiples of `keep_every_steps`, the `keep_best` best scores."""
    newest = sorted(scores)[-config.keep :]
    permanent = {step for step in scores if config.keep_every_steps and step % config.keep_every_steps == 0}
    permanent |= scores.keys() & set(config.keep_steps)
    scored = {step: score for step, score in scores.items() if score is not None}
    sign = 1 if config.best == "lowest" else -1
    best = sorted(scored, key=lambda step: (sign * scored[step], -step))[: config.keep_best]
    return {*newest, *permanent, *best}


def _remove(path: epath.Path) -> None:
    """Delete a folder that counts for nothing any more; what resists stays, and is tried again by `clean`."""
    with contextlib.suppress(OSError):
        path.rmtree(missing_ok=True)


def _files(path: epath.Path) -> list[epath.Path]:
    inside = [_files(one) if one.is_dir() else [one] for one in path.iterdir()]
    return sorted(file for files in inside for file in files)


def _checksum(file: epath.Path) -> str:
    value, block = 0, memoryview(bytearray(2**20))
    with file.open("rb") as opened:
        while size := opened.readinto(block):
            value = zlib.crc32(block[:size], value)
    return f"{value:08x}"


def _checksums(files: Sequence[epath.Path]) -> list[str]:
    with ThreadPoolExecutor(8) as pool:
        return list(pool.map(_checksum, files))


def _write_manifest(path: epath.Path, metrics: dict[str, float]) -> None:
    files = [file for file in _files(path) if file != path / MANIFEST]
    sums = {str(file.relative_to(path)): value for file, value in zip(files, _checksums(files), strict=True)}
    text = json.dumps({"crc32": sums, "metrics": metrics})
    if "://" in str(path):  # there, a file appears whole or not at all
        (path / MANIFEST).write_text(text)
    else:
        replace_file(Path(path / MANIFEST), text)


def _manifest(path: epath.Path) -> dict[str, Any]:
    return json.loads((path / MANIFEST).read_text())


def damaged(path: epath.Path) -> str | None:
    """The first file of a checkpoint that is not as it was written, or None. Each process looks at its share."""
    try:
        sums = _manifest(path)["crc32"]
    except (OSError, ValueError, KeyError) as error:
        return f"{MANIFEST} cannot be read ({error})"
    names = sorted(sums)[jax.process_index() :: jax.process_count()]
    missing = [name for name in names if not (path / name).is_file()]
    if missing:
        return f"{missing[0]} is missing"
    found = _checksums([path / name for name in names])
    return next((f"{name} has changed" for name, value in zip(names, found, strict=True) if value != sums[name]), None)


def _agreed(broken: str | None) -> str | None:
    """The same answer on every process."""
    answers = multihost_utils.process_allgather(np.array(broken is not None))
    return (broken or "another process found a damaged file") if answers.any() else None


def _compare(path: epath.Path, saved: Mapping[str, Any], wanted: Mapping[str, Any]) -> None:
    """Refuse arrays of another name, shape or type: Orbax would cast or leave out in silence."""
    faults = [f"{name} is not in the checkpoint" for name in wanted.keys() - saved.keys()]
    faults += [f"{name} is not in the model" for name in saved.keys() - wanted.keys()]
    for name in wanted.keys() & saved.keys():
        have, want = saved[name], wanted[name]
        if tuple(have.shape) != tuple(want.shape) or np.dtype(have.dtype) != np.dtype(want.dtype):
            faults.append(f"{name} is {have.dtype}{list(have.shape)}, the model has {want.dtype}{list(want.shape)}")
    if faults:
        shown = "; ".join(sorted(faults)[:8]) + (f"; and {len(faults) - 8} more" if len(faults) > 8 else "")
        raise UserError(f"{path}: does not fit this config: {shown}")
