"""Medians of cases that take turns."""

import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from rich.console import Console
from rich.progress import track

WARM_UP = 3

Case = Callable[[], Any]


def medians(cases: Mapping[str, Case], rounds: int) -> dict[str, float]:
    """Seconds of each case, the median over rounds in which all take turns."""
    times: dict[str, list[float]] = {name: [] for name in cases}
    for case in cases.values():
        for _ in range(WARM_UP):
            jax.block_until_ready(case())
    for _ in track(range(rounds), "measuring", console=Console(stderr=True), transient=True):
        for name, case in cases.items():
            start = time.perf_counter()
            jax.block_until_ready(case())
            times[name].append(time.perf_counter() - start)
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
