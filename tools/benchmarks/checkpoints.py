"""Checkpoints of 1 GB: how long a save holds a step back, and bandwidth against plain copies of the same bytes."""

import os
import shutil
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from t5x_lite.checkpoint import Checkpoints
from t5x_lite.config import CheckpointConfig

ARRAYS = 16


def table(rounds: int, quick: bool) -> list[dict[str, Any]]:
    """Seconds of a save and of a restore; the share of a synchronous save that the caller waits for."""
    size = (2**28 if quick else 2**30) // 4 // ARRAYS
    rng = np.random.default_rng(0)
    state = {f"w{n}": jnp.asarray(rng.normal(size=(size // 1024, 1024)).astype(np.float32)) for n in range(ARRAYS)}
    shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state)
    times: dict[str, list[float]] = {name: [] for name in ("blocked", "save", "restore", "write", "read")}
    for _ in range(max(rounds // 2, 3)):
        with tempfile.TemporaryDirectory(dir=os.environ.get("TMPDIR")) as folder:
            path = Path(folder, "plain")
            path.mkdir()
            times["write"].append(_seconds(lambda path=path: _write(path, state)))
            times["read"].append(_seconds(lambda path=path: _read(path)))
            shutil.rmtree(path)
            checkpoints = Checkpoints(Path(folder, "checkpoints"), CheckpointConfig())
            start = time.perf_counter()
            checkpoints.save(1, state, {})
            times["blocked"].append(time.perf_counter() - start)
            checkpoints.wait()
            times["save"].append(time.perf_counter() - start)
            times["restore"].append(_seconds(lambda c=checkpoints: jax.block_until_ready(c.restore(shapes))))
            checkpoints.close()
    found = {name: median(values) for name, values in times.items()}
    gigabytes = 4 * size * ARRAYS / 1e9

    def line(what: str, copy: str, held_back: float | None) -> dict[str, Any]:
        speed = {"GB/s": gigabytes / found[what], "of a copy": found[copy] / found[what]}
        return {"checkpoint": what, **speed, "held back / save": held_back}

    return [line("save", "write", found["blocked"] / found["save"]), line("restore", "read", None)]


def _seconds(case: Callable[[], Any]) -> float:
    start = time.perf_counter()
    case()
    return time.perf_counter() - start


def _write(folder: Path, state: dict[str, Any]) -> None:
    for name, value in state.items():
        with (folder / name).open("wb") as file:
            file.write(np.asarray(value).data)
            os.fsync(file.fileno())


def _read(folder: Path) -> None:
    for path in folder.iterdir():
        jax.block_until_ready(jnp.asarray(np.frombuffer(path.read_bytes(), np.float32)))
