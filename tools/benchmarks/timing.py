"""Median times of cases that take turns, in this process or each in its own."""

import os
import statistics
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from typing import Any, Self, TypeAlias
from unittest.mock import patch

import jax
import jax.numpy as jnp
from jaxtyping import Array
from rich.console import Console
from rich.progress import track

Case: TypeAlias = Callable[..., Any]
"""A function to measure. JAX arrays that it returns are waited for."""

WARM_UP_CALLS = 3
SECONDS_PER_TURN = 0.5
"""Length of a turn of a `CaseProcess`: a short step is measured as one of many in a row, as in training."""
OUR_ENVIRONMENT = {"GLIBC_TUNABLES": "glibc.malloc.hugetlb=1"}
"""The environment of `launch/local.sh`: activations are allocated in pages of 2 MB."""
TORCH_ENVIRONMENT = {
    "MALLOC_TRIM_THRESHOLD_": str(2**34),
    "MALLOC_MMAP_MAX_": "0",
    "MALLOC_TOP_PAD_": str(2**26),
}
"""The environment of PyTorch: glibc keeps freed memory. XLA is slower with these settings."""


class CaseProcess:
    """A case in a process of its own, so that threads and memory of another library do not disturb it.

    The process starts with `environment`, because glibc reads its settings at the start. Several processes build their
    cases at the same time.

    Args:
        environment: environment variables of the process, beside those of this one.
        build: builds the case in the process; pickled.
        arguments: arguments of `build`; pickled.
    """

    def __init__(self, environment: Mapping[str, str], build: Callable[..., Case], *arguments: object) -> None:
        self._pool = ProcessPoolExecutor(1, get_context("spawn"))
        with patch.dict(os.environ, environment):
            self._built = self._pool.submit(_build_case, build, arguments)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.shutdown()

    def wait_until_built(self) -> Self:
        """Wait until the process has built its case; `seconds` and `result` do so too."""
        self._built.result()
        return self

    def seconds(self, *arguments: object) -> float:
        """Return the mean time of a call over one turn, after one call that is not counted."""
        self.wait_until_built()
        return self._pool.submit(_time_turn, arguments).result()

    def result(self, *arguments: object) -> Any:
        """Return what the case returns."""
        self.wait_until_built()
        return self._pool.submit(_call_case, arguments).result()


_cases: list[Case] = []
"""The case of this process, if it is one of a `CaseProcess`."""


def _build_case(build: Callable[..., Case], arguments: tuple[object, ...]) -> None:
    _cases.append(build(*arguments))


def _call_case(arguments: tuple[object, ...]) -> Any:
    return _cases[0](*arguments)


def _time_turn(arguments: tuple[object, ...]) -> float:
    case = partial(_cases[0], *arguments)
    first_call = measure_seconds(case)
    calls = max(round(SECONDS_PER_TURN / first_call), 1)
    return sum(measure_seconds(case) for _ in range(calls)) / calls


def measure_seconds(case: Case) -> float:
    """Return the time of one call, until its arrays are computed."""
    start = time.perf_counter()
    jax.block_until_ready(case())
    return time.perf_counter() - start


def median_seconds(cases: Mapping[str, Case], rounds: int) -> dict[str, float]:
    """Return the median time of each case over rounds in which all take turns."""
    timers = {name: partial(measure_seconds, case) for name, case in cases.items()}
    return median_of_turns(timers, rounds, WARM_UP_CALLS)


def median_of_turns(timers: Mapping[str, Callable[[], float]], rounds: int, warm_up_turns: int = 1) -> dict[str, float]:
    """Return the median of what each timer returns over rounds in which all take turns.

    Args:
        timers: functions that measure their case and return seconds.
        rounds: turns of each timer that count.
        warm_up_turns: turns of each timer before the first round.
    """
    times: dict[str, list[float]] = {name: [] for name in timers}
    for timer in timers.values():
        for _ in range(warm_up_turns):
            timer()
    for _ in track(range(rounds), "measuring", console=Console(stderr=True), transient=True):
        for name, timer in timers.items():
            times[name].append(timer())
    return {name: statistics.median(seconds) for name, seconds in times.items()}


def forward_and_backward(function: Callable[..., Array], *arguments: Any) -> Case:
    """Return a case that computes a function and its gradient with respect to all arguments."""

    def scalar(inputs: tuple[Any, ...]) -> Array:
        return function(*inputs).astype(jnp.float32).sum()

    return partial(jax.jit(jax.grad(scalar)), arguments)


def is_on_cpu() -> bool:
    """Return whether JAX has no accelerator."""
    return jax.default_backend() == "cpu"


def compute_dtype() -> type[jnp.float32] | type[jnp.bfloat16]:
    """Return the dtype of the benchmarks: float32 on a CPU, bfloat16 elsewhere."""
    return jnp.float32 if is_on_cpu() else jnp.bfloat16
