"""The speed of a device: its peak, published or measured, and the time of a matrix product."""

import time

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from t5x_lite.parallel.chips import CHIPS, chip_name

PEAK_PROBE_SIZE = 1024
"""Rows and columns of the matrices whose product measures the peak of an unknown device."""
PEAK_PROBE_RUNS = 5

_matmul = jax.jit(jnp.matmul)


def peak_flops(device: jax.Device, configured: float | None) -> tuple[float, str]:
    """Return the FLOP/s that MFU is measured against, and where the figure comes from.

    Args:
        device: one device of the run.
        configured: `train.peak_flops`, which comes first.
    """
    if configured is not None:
        return configured, "train.peak_flops"
    name = chip_name(device.device_kind)
    if name is not None:
        return CHIPS[name].flops, f"bfloat16 data sheet of {name}"
    flops = 2 * PEAK_PROBE_SIZE**3
    seconds = fastest_matmul(device, PEAK_PROBE_SIZE, PEAK_PROBE_RUNS)
    return flops / seconds, f"the best of a few float32 matrix products of {PEAK_PROBE_SIZE}, measured here"


def fastest_matmul(device: jax.Device, size: int, runs: int) -> float:
    """Return the least time of several float32 products of square matrices on a device, in seconds."""
    seconds = []
    with jax.set_mesh(Mesh([device], ("single",))):  # not the mesh of the run, whatever it is
        matrix = jax.device_put(np.ones((size, size), np.float32), device)
        _matmul(matrix, matrix).block_until_ready()
        for _ in range(runs):
            start = time.perf_counter()
            _matmul(matrix, matrix).block_until_ready()
            seconds.append(time.perf_counter() - start)
    return min(seconds)
