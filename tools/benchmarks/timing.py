"""Medians of cases that take turns."""

import os
import statistics
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from typing import Any
from unittest.mock import patch

import jax
import jax.numpy as jnp
from rich.console import Console
from rich.progress import track

WARM_UP = 3
TURN = 0.5
"""Seconds of a turn of a `Side`: a short step is one of many in a row, as in training."""

Case = Callable[..., Any]


OURS = {"GLIBC_TUNABLES": "glibc.malloc.hugetlb=1"}
"""The environment of our side, that of `launch/local.sh`: activations come in pages of 2 MB."""
THEIRS = {"MALLOC_TRIM_THRESHOLD_": str(2**34), "MALLOC_MMAP_MAX_": "0", "MALLOC_TOP_PAD_": str(2**26)}
"""The environment of PyTorch's side: it keeps what it has freed. XLA is slower with these."""


class Side:
    """A case in a process of its own, where no other library's threads and memory are in its way.

    `make(*given)` makes the case there; both are pickled. glibc reads the environment at the start of the process.
    """

    def __init__(self, environment: dict[str, str], make: Callable[..., Case], *given: Any) -> None:
        self._process = ProcessPoolExecutor(1, get_context("spawn"))
        with patch.dict(os.environ, environment):
            self._made = self._process.submit(_prepare, make, given)  # beside the making of others

    def __enter__(self) -> "Side":
        return self

    def __exit__(self, *_: object) -> None:
        self._process.shutdown()

    def ready(self) -> "Side":
        """Itself, when the case is made; `seconds` and `result` wait for that too."""
        self._made.result()
        return self

    def seconds(self, *given: Any) -> float:
        """What the case takes, timed there over `TURN` seconds, after once that gets back its idle memory."""
        return self.ready()._process.submit(_timed, given).result()

    def result(self, *given: Any) -> Any:
        """What it makes."""
        return self.ready()._process.submit(_result, given).result()


_case: Case = lambda: None  # noqa: E731  # that of this process


def _prepare(make: Callable[..., Case], given: tuple[Any, ...]) -> None:
    global _case  # noqa: PLW0603
    _case = make(*given)


def _result(given: tuple[Any, ...]) -> Any:
    return _case(*given)


def _timed(given: tuple[Any, ...]) -> float:
    case = partial(_case, *given)
    times = max(round(TURN / seconds(case)), 1)
    return sum(seconds(case) for _ in range(times)) / times


def seconds(case: Case) -> float:
    """What a case takes."""
    start = time.perf_counter()
    jax.block_until_ready(case())
    return time.perf_counter() - start


def medians(cases: Mapping[str, Case], rounds: int) -> dict[str, float]:
    """Seconds of each case, the median over rounds in which all take turns."""
    return raced({name: partial(seconds, case) for name, case in cases.items()}, rounds, WARM_UP)


def raced(cases: Mapping[str, Callable[[], float]], rounds: int, warm_up: int = 1) -> dict[str, float]:
    """`medians` of cases that tell their own seconds; those of the first `warm_up` turns of each do not count."""
    times: dict[str, list[float]] = {name: [] for name in cases}
    for case in cases.values():
        for _ in range(warm_up):
            case()
    for _ in track(range(rounds), "measuring", console=Console(stderr=True), transient=True):
        for name, case in cases.items():
            times[name].append(case())
    return {name: statistics.median(found) for name, found in times.items()}


def both_passes(function: Callable[..., jax.Array], *arguments: Any) -> Case:
    """Forward and backward, with respect to all arguments."""
    run = jax.jit(jax.grad(lambda given: function(*given).astype(jnp.float32).sum()))
    return lambda: run(arguments)


def on_cpu() -> bool:
    """Whether no accelerator is here."""
    return jax.default_backend() == "cpu"


def dtype_here() -> Any:
    """What is measured in: float32 on a CPU, bfloat16 elsewhere."""
    return jnp.float32 if on_cpu() else jnp.bfloat16
