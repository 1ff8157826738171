"""Save and restore checkpoints.

Orbax writes and reads the arrays; this module decides which checkpoints are complete, which are kept and which is
restored. A checkpoint is a folder `STEP/` whose manifest is written after Orbax has committed (see `manifest.py`).
"""

import contextlib
import logging
import math
import os
import sys
import time
import warnings
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeAlias

import jax
import numpy as np
import orbax.checkpoint as ocp
from etils import epath
from jax.experimental import multihost_utils
from jaxtyping import PyTree

from t5x_lite.checkpoint_config import CheckpointConfig
from t5x_lite.checkpoint_structure import check_structure
from t5x_lite.errors import ProcessLost, UserError, one_line
from t5x_lite.files import free_space, is_disk_full
from t5x_lite.local_copies import upload_changes
from t5x_lite.manifest import find_damage, is_complete, read_manifest, write_manifest
from t5x_lite.run_layout import MANIFEST, is_step
from t5x_lite.storage import expand, is_remote, open_store
from t5x_lite.trees import flatten_names

logger = logging.getLogger(__name__)

JsonObject: TypeAlias = dict[str, Any]
"""Values that a checkpoint stores as JSON."""

WRITE_IN_FLIGHT_GB = 0.25
"""Arrays copied to disk at the same time by `write`, which serves models that barely fit in memory."""
RESTORE_IN_FLIGHT_GB = 1.0
"""Arrays read from disk at the same time."""
ENDPOINT_VARIABLES = ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL")
"""Environment variables by which Amazon's library, and so s3fs, finds another server."""
ORBAX_TEMPORARY = ".orbax-checkpoint-tmp"
"""Text after the step in the name of a folder that Orbax has not finished."""
CLOCK_STEPS = 10
"""Steps after which several processes agree on the time, for which each waits until the devices are done."""


class SaveError(UserError):
    """A checkpoint could not be written."""


class RemoteSaveError(SaveError):
    """A checkpoint could not be written into an object store, which may answer after a restart."""

    exit_code = ProcessLost.exit_code


def _check_endpoint(folder: str) -> None:
    """Check that TensorStore would write to the same S3 as everything else does.

    Raises:
        UserError: a variable names another server for S3. Orbax has no way to pass it on to TensorStore.
    """
    variable = next((name for name in ENDPOINT_VARIABLES if os.environ.get(name)), None)
    if folder.startswith("s3://") and variable is not None:
        raise UserError(
            f"checkpoint folder {folder}: checkpoints in S3 go to Amazon's servers, but {variable} names another; set "
            "checkpoint.folder to a local or gs:// folder"
        )


class _OtherUnraisableErrors:
    """Reports errors that nobody can catch, except those of writes that Orbax abandons.

    When one write of a save fails, Orbax closes its event loop and raises the error. TensorStore's other writes finish
    later in threads of their own, and report to the loop that is closed.

    Args:
        report: reports the other errors; see `sys.unraisablehook`.
    """

    def __init__(self, report: Callable[["sys.UnraisableHookArgs"], object]) -> None:
        self._report = report

    def __call__(self, details: "sys.UnraisableHookArgs") -> None:
        if "Event loop is closed" not in str(details.exc_value):
            self._report(details)


class Checkpoints:
    """The checkpoints of one run, in a folder of a local disk or an object store (`gs://` or `s3://`).

    Every process of a run makes the same calls in the same order.
    """

    def __init__(self, folder: str | Path, config: CheckpointConfig) -> None:
        if is_remote(folder):
            open_store(str(folder))  # raises if its library is not installed
            _check_endpoint(str(folder))
        else:
            folder = Path(expand(folder)).absolute()
        self.folder = epath.Path(folder)
        self.config = config
        if not isinstance(sys.unraisablehook, _OtherUnraisableErrors):
            sys.unraisablehook = _OtherUnraisableErrors(sys.unraisablehook)
        self._saver = ocp.AsyncCheckpointer(_composite_handler(ocp.PyTreeCheckpointHandler(use_compression=False)))
        self._background = ThreadPoolExecutor(1, "checkpoint")
        self._pending_save: Future[None] | None = None
        self._last_save_time = time.monotonic()

    def steps(self) -> list[int]:
        """Return the steps of the complete checkpoints in ascending order."""
        steps = []
        for path in self._list_folder():
            if is_step(path.name) and is_complete(path):
                steps.append(int(path.name))
        return sorted(steps)

    def _list_folder(self) -> list[epath.Path]:
        """Return the paths in the folder. `is_dir` would take an error of a bucket for a missing folder."""
        try:
            return list(self.folder.iterdir())
        except FileNotFoundError:
            return []

    def clean(self) -> None:
        """Delete the incomplete checkpoints that interrupted saves have left."""
        if jax.process_index() == 0:
            for path in self._list_folder():
                step_name = path.name.partition(ORBAX_TEMPORARY)[0]
                if is_step(step_name) and path.is_dir() and not is_complete(path):
                    _delete_folder(path)
        multihost_utils.sync_global_devices("checkpoints cleaned")

    def due(self, step: int) -> bool:
        """Return whether to save after `step`: by the number of steps, or by the clock of the first process."""
        if step % self.config.every_steps == 0 or step in self.config.keep_steps:
            return True
        if self.config.every_minutes is None:
            return False
        if jax.process_count() > 1 and step % CLOCK_STEPS:
            return False
        seconds = time.monotonic() - self._last_save_time
        is_late = np.array(seconds > 60 * self.config.every_minutes)
        return bool(multihost_utils.broadcast_one_to_all(is_late))

    def save(
        self,
        step: int,
        state: PyTree,
        meta: Mapping[str, object],
        metrics: Mapping[str, float] | None = None,
    ) -> None:
        """Start to write a checkpoint in the background, after waiting for an earlier save.

        Args:
            step: the checkpoint's name.
            state: pytree of arrays.
            meta: JSON values to store with them.
            metrics: evaluation metrics of this step, by which the best checkpoints are chosen.

        Raises:
            SaveError: this save or the earlier one failed. Earlier checkpoints are unchanged.
        """
        self.wait()
        self._last_save_time = time.monotonic()
        self._start_save(self._saver, step, state, meta)
        self._pending_save = self._background.submit(self._finish_save, step, dict(metrics or {}))

    def write(self, step: int, state: PyTree, meta: Mapping[str, object]) -> None:
        """Write a checkpoint before returning, with little additional memory. An existing one is replaced.

        Raises:
            SaveError: it could not be written.
        """
        largest_gb = max(leaf.nbytes for leaf in jax.tree.leaves(state)) / 1e9
        in_flight_gb = max(1.1 * largest_gb, WRITE_IN_FLIGHT_GB)
        handler = ocp.PyTreeCheckpointHandler(
            save_concurrent_gb=in_flight_gb,  # type: ignore[arg-type]
            use_compression=False,
        )
        self.clean()
        with contextlib.closing(ocp.Checkpointer(_composite_handler(handler))) as saver:
            self._start_save(saver, step, state, meta)
        try:
            write_manifest(self.folder / str(step), {})
        except Exception as error:
            raise self._save_error(step, error) from error

    def _start_save(self, saver: ocp.Checkpointer, step: int, state: PyTree, meta: Mapping[str, object]) -> None:
        path = self.folder / str(step)
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            if jax.process_index() == 0:
                path.rmtree(missing_ok=True)
            multihost_utils.sync_global_devices("checkpoint folder ready")
            items = ocp.args.Composite(
                state=ocp.args.PyTreeSave(flatten_names(state)),
                meta=ocp.args.JsonSave(dict(meta)),
            )
            saver.save(path, args=items)
        except Exception as error:
            raise self._save_error(step, error) from error

    def _finish_save(self, step: int, metrics: Mapping[str, float]) -> None:
        try:
            self._saver.wait_until_finished()
            upload_changes()  # A run that resumes here finds the metrics up to this step.
            write_manifest(self.folder / str(step), metrics)
            if jax.process_index() == 0:
                self._delete_old_checkpoints(step)
        except Exception as error:
            raise self._save_error(step, error) from error

    def check(self) -> None:
        """Raise the error of the newest save, if it has failed already.

        Raises:
            SaveError: the save failed.
        """
        if self._pending_save is not None and self._pending_save.done():
            self._pending_save.result()

    def wait(self) -> None:
        """Wait until the newest save is complete.

        Raises:
            SaveError: the save failed.
        """
        if self._pending_save is not None:
            self._pending_save.result()

    def close(self) -> None:
        """Wait for the newest save and stop the background threads."""
        try:
            self.wait()
        finally:
            self._background.shutdown()
            self._saver.close()

    def restore(
        self, target: PyTree, step: int | None = None, prefix: str = ""
    ) -> tuple[int, PyTree, JsonObject] | None:
        """Restore the newest intact checkpoint, or the one of `step`.

        Args:
            target: pytree of `jax.ShapeDtypeStruct` with shardings. The arrays get these shardings, whatever the mesh
                that saved them.
            step: a particular checkpoint, which must be intact.
            prefix: restore only this part of the saved state, such as `params.`; `target` is that part.

        Returns:
            The step, the arrays and the JSON values; None if there is no checkpoint.

        Raises:
            UserError: the given step is missing or damaged, all checkpoints are damaged, or arrays differ from
                `target`.
        """
        steps = self.steps()
        candidates = list(reversed(steps))
        if step is not None:
            if step not in steps:
                complete = ", ".join(map(str, steps)) or "none"
                raise UserError(f"{self.folder}: there is no checkpoint of step {step}; complete ones are: {complete}")
            candidates = [step]
        damages = []
        for candidate in candidates:
            path = self.folder / str(candidate)
            damage = _agree_on_damage(find_damage(path))
            if damage is None:
                try:
                    state, meta = self._read(path, target, prefix)
                    return candidate, state, meta
                except FileNotFoundError:
                    if is_complete(path) or jax.process_count() > 1:
                        raise
                    # The process that trains the run has deleted it in the meantime, for a newer one.
                    return self.restore(target, step, prefix)
            damages.append(f"step {candidate}: {damage}")
            logger.warning("%s: the checkpoint of step %d is damaged: %s", self.folder, candidate, damage)
        if step is not None:
            others = ", ".join(str(other) for other in steps if other != step) or "none"
            raise UserError(f"{self.folder}: the checkpoint of {damages[0]}; other complete ones are: {others}")
        if damages:
            reasons = "; ".join(damages)
            raise UserError(f"{self.folder}: no checkpoint is intact: {reasons}; delete the folder to start again")
        return None

    def _read(self, path: epath.Path, target: PyTree, prefix: str) -> tuple[PyTree, JsonObject]:
        structs = {prefix + name: struct for name, struct in flatten_names(target).items()}
        largest_gb = max(struct.size * struct.dtype.itemsize for struct in structs.values()) / 1e9
        in_flight_gb = max(2.2 * largest_gb, RESTORE_IN_FLIGHT_GB)
        handler = ocp.PyTreeCheckpointHandler(restore_concurrent_gb=in_flight_gb)  # type: ignore[arg-type]
        with contextlib.closing(ocp.Checkpointer(_composite_handler(handler))) as reader:
            saved = reader.metadata(path).item_metadata.state.tree
            saved_part = {name: array for name, array in saved.items() if name.startswith(prefix)}
            check_structure(path, saved_part, structs, may_widen=bool(prefix))
            state_args = ocp.args.PyTreeRestore(
                item=structs,
                restore_args=ocp.checkpoint_utils.construct_restore_args(structs),
                partial_restore=bool(prefix),
            )
            restored = reader.restore(path, args=ocp.args.Composite(state=state_args, meta=ocp.args.JsonRestore()))
        leaves = [restored.state[name] for name in structs]
        return jax.tree.unflatten(jax.tree.structure(target), leaves), restored.meta

    def meta(self, step: int) -> JsonObject:
        """Return the JSON values saved with `step`."""
        return dict(ocp.JsonCheckpointHandler().restore(self.folder / str(step) / "meta"))

    def _delete_old_checkpoints(self, saved_step: int) -> None:
        """Apply the retention rules up to the step that was saved: later ones are damaged, and a run is behind them."""
        scores: dict[int, float | None] = {}
        for step in self.steps():
            if step > saved_step:
                continue
            scores[step] = None
            with contextlib.suppress(OSError, ValueError):  # a restore reports the damage
                scores[step] = read_manifest(self.folder / str(step))["metrics"].get(self.config.best_metric)
        for step in scores.keys() - steps_to_keep(scores, self.config):
            # The manifest is deleted first: an interrupted deletion leaves a folder that counts as incomplete.
            (self.folder / str(step) / MANIFEST).unlink()
            _delete_folder(self.folder / str(step))

    def _save_error(self, step: int, error: Exception) -> SaveError:
        # Orbax abandons its remaining writes, and Python would warn about each of them after our one line.
        warnings.filterwarnings("ignore", "coroutine .* was never awaited", RuntimeWarning)
        reason = one_line(error)
        if is_remote(self.folder):
            return RemoteSaveError(
                f"{self.folder}: the checkpoint of step {step} could not be written: {reason}; earlier checkpoints are "
                "intact: run the same command to resume"
            )
        if is_disk_full(error):
            reason = "the disk is full"
        space = free_space(self.folder)
        if space:
            space = f" ({space} there)"
        return SaveError(
            f"{self.folder}: the checkpoint of step {step} could not be written{space}: {reason}; earlier checkpoints "
            "are intact: free some space or repair the disk, and run the same command to resume"
        )


def _composite_handler(state: ocp.PyTreeCheckpointHandler) -> ocp.CompositeCheckpointHandler:
    """Return the handler of a checkpoint's two items.

    Callers switch compression off: weights look random to a compressor, which would take time and save little.
    """
    return ocp.CompositeCheckpointHandler(state=state, meta=ocp.JsonCheckpointHandler())


def steps_to_keep(scores: Mapping[int, float | None], config: CheckpointConfig) -> set[int]:
    """Apply the retention rules.

    Args:
        scores: value of `best_metric` at each step that has a checkpoint; None if it was not evaluated there. NaN, such
            as a correlation of constant predictions, has no place in the order.
        config: the rules.

    Returns:
        The newest `keep` steps, those of `keep_steps`, the multiples of `keep_every_steps`, and the `keep_best` steps
        with the best scores. Of equal scores, the later step is better.
    """
    newest = sorted(scores)[-config.keep :]
    permanent = scores.keys() & set(config.keep_steps)
    if config.keep_every_steps is not None:
        permanent |= {step for step in scores if step % config.keep_every_steps == 0}
    sign = 1 if config.best == "lowest" else -1
    known = {step: score for step, score in scores.items() if score is not None and not math.isnan(score)}
    ranking = sorted((sign * score, -step) for step, score in known.items())
    best = [-negative_step for _, negative_step in ranking[: config.keep_best]]
    return {*newest, *permanent, *best}


def _delete_folder(path: epath.Path) -> None:
    """Delete an incomplete checkpoint. A failure is ignored, because `clean` tries again at the next start."""
    with contextlib.suppress(OSError):
        path.rmtree(missing_ok=True)


def _agree_on_damage(damage: str | None) -> str | None:
    """Return a damage on every process if any process has found one."""
    is_damaged = multihost_utils.process_allgather(np.array(damage is not None))
    if not is_damaged.any():
        return None
    return damage or "another process found a damaged file"
