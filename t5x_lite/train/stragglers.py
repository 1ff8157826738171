"""Search for a process that is slower than the others."""

import jax
import numpy as np
from jax.experimental import multihost_utils

from t5x_lite.evaluate.evaluation_model import EvaluationModel
from t5x_lite.evaluate.evaluators.evaluator import Evaluation
from t5x_lite.train.device_speed import fastest_matmul

PROBE_SIZE = 512
"""Rows and columns of the matrices whose product is timed on each device."""
PROBE_RUNS = 3
NOISE_SECONDS = 1e-3
"""Added to all times, so that differences below a millisecond do not count."""


class Stragglers:
    """Compares the processes of a job by the time of the work that each does alone.

    In a synchronous program every process takes the same time per step, because all wait for the slowest. Two times
    differ: the work of the host between the steps (data, Python), and a matrix product on the process's own devices.
    """

    def __init__(self) -> None:
        self._steps = 0
        self._host_seconds = 0.0

    def add(self, host_seconds: float) -> None:
        """Add the time of one step in which only this process worked."""
        self._steps += 1
        self._host_seconds += host_seconds

    def run(self, model: EvaluationModel) -> Evaluation:
        """Compare the processes. All of them call this at the same step.

        Returns:
            `straggler`: the time of the slowest process as a multiple of the median; `straggler_process`: its number;
            `straggler_seconds`: its time.
        """
        probe_seconds = max(fastest_matmul(device, PROBE_SIZE, PROBE_RUNS) for device in jax.local_devices())
        local_seconds = np.array([self._host_seconds / max(self._steps, 1), probe_seconds])
        self._steps = 0
        self._host_seconds = 0.0
        seconds = multihost_utils.process_allgather(local_seconds).reshape(-1, len(local_seconds))
        ratios = (seconds + NOISE_SECONDS) / (np.median(seconds, axis=0) + NOISE_SECONDS)
        process, kind = np.unravel_index(ratios.argmax(), ratios.shape)
        metrics = {
            "straggler": float(ratios.max()),
            "straggler_process": int(process),
            "straggler_seconds": float(seconds[process, kind]),
        }
        return Evaluation(metrics)
