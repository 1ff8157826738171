"""Checkpoints of 1 GB: how long a save blocks training, and bandwidth compared with plain files of the same bytes."""

import os
import shutil
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from t5x_lite.checkpoint import Checkpoints
from t5x_lite.checkpoint_config import CheckpointConfig

ARRAYS = 16
COLUMNS = 1024
BYTES = 2**30
BYTES_IF_QUICK = 2**28
MEASURED = ("blocked", "save", "restore", "write", "read")

State = dict[str, Float[Array, "rows columns"]]


def measure(rounds: int, quick: bool) -> list[dict[str, Any]]:
    """Measure a save and a restore, and the share of a save during which the caller waits."""
    array_size = (BYTES_IF_QUICK if quick else BYTES) // 4 // ARRAYS
    state = _random_state(array_size)
    times: dict[str, list[float]] = {name: [] for name in MEASURED}
    for _ in range(max(rounds // 2, 3)):
        with tempfile.TemporaryDirectory(dir=os.environ.get("TMPDIR")) as folder:
            seconds = _measure_plain_files(Path(folder, "plain"), state)
            seconds |= _measure_checkpoints(Path(folder, "checkpoints"), state)
        for name in MEASURED:
            times[name].append(seconds[name])
    medians = {name: median(values) for name, values in times.items()}
    gigabytes = 4 * array_size * ARRAYS / 1e9
    return [
        {
            "checkpoint": "save",
            "GB/s": gigabytes / medians["save"],
            "of a copy": medians["write"] / medians["save"],
            "held back / save": medians["blocked"] / medians["save"],
        },
        {
            "checkpoint": "restore",
            "GB/s": gigabytes / medians["restore"],
            "of a copy": medians["read"] / medians["restore"],
            "held back / save": None,
        },
    ]


def _random_state(array_size: int) -> State:
    rng = np.random.default_rng(0)
    state = {}
    for number in range(ARRAYS):
        values = rng.normal(size=(array_size // COLUMNS, COLUMNS)).astype(np.float32)
        state[f"w{number}"] = jnp.asarray(values)
    return state


def _measure_plain_files(folder: Path, state: State) -> dict[str, float]:
    folder.mkdir()
    seconds = {
        "write": _measure_seconds(partial(_write_files, folder, state)),
        "read": _measure_seconds(partial(_read_files, folder)),
    }
    shutil.rmtree(folder)
    return seconds


def _measure_checkpoints(folder: Path, state: State) -> dict[str, float]:
    shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state)
    checkpoints = Checkpoints(folder, CheckpointConfig())
    seconds = {}
    start = time.perf_counter()
    checkpoints.save(1, state, {})
    seconds["blocked"] = time.perf_counter() - start
    checkpoints.wait()
    seconds["save"] = time.perf_counter() - start
    seconds["restore"] = _measure_seconds(lambda: jax.block_until_ready(checkpoints.restore(shapes)))
    checkpoints.close()
    return seconds


def _measure_seconds(function: Callable[[], object]) -> float:
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def _write_files(folder: Path, state: State) -> None:
    for name, value in state.items():
        with (folder / name).open("wb") as file:
            file.write(np.asarray(value).data)
            os.fsync(file.fileno())


def _read_files(folder: Path) -> None:
    for path in folder.iterdir():
        jax.block_until_ready(jnp.asarray(np.frombuffer(path.read_bytes(), np.float32)))
