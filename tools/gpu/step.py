"""One training step of a shape of `benchmarks/mfu.py` on this accelerator: time, MFU, memory, and where the time goes.

    python tools/gpu/step.py NAME [KEY=VALUE …] [--profile FILE]

Prints one JSON object. A profile lists the kernels of a step by the time that they take.
"""

import argparse
import fcntl
import gzip
import json
import os
import re
import signal
import tempfile
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

os.environ.setdefault("XLA_PYTHON_CLIENT_MEM_FRACTION", "0.92")

import jax
import numpy as np
from benchmarks import mfu
from benchmarks.step import CONFIGS, example_batch, ours

from t5x_lite import config as configuration
from t5x_lite.models.transformer import model_spec
from t5x_lite.parallel import mesh as meshes
from t5x_lite.planner.example import example_context
from t5x_lite.planner.roofline import modelled_memory
from t5x_lite.train.metrics import peak_flops
from t5x_lite.train.setup import check_mesh, make_steps


def load(name: str, overrides: list[str], tiny: bool) -> Any:
    """The config of a shape; if `tiny`, a model that a CPU steps in no time."""
    shape = mfu.SHAPES[name]
    small = []
    if tiny:
        small = ["model.layers=2", "model.embed=32", "model.heads=2", "model.head_dim=16", "model.mlp=64"]
        small += ["train.seq_len=64", "model.vocab=512"]
    rows = "train.batch_size=" + str(2 if tiny else shape.rows)
    settings = [*mfu.PLAIN, *shape.overrides, rows, *small, *overrides]
    return configuration.load(CONFIGS / shape.config, settings)


def timed(step: Any, steps: int) -> float:
    """Seconds of one step, of several that are sent one behind the other."""
    start = time.perf_counter()
    loss = [step() for _ in range(steps)][-1]
    jax.block_until_ready(loss)
    return (time.perf_counter() - start) / steps


def profiled(step: Any, steps: int = 3) -> list[tuple[float, int, str]]:
    """Milliseconds, calls and name of the kernels of one step, the longest first."""
    with tempfile.TemporaryDirectory() as folder:
        with jax.profiler.trace(folder):
            timed(step, steps)
        [path] = Path(folder).rglob("*.trace.json.gz")
        trace = json.loads(gzip.decompress(path.read_bytes()))
    processes = {
        event["pid"]: event["args"]["name"]
        for event in trace["traceEvents"]
        if event.get("name") == "process_name" and "args" in event
    }
    threads = {
        (event["pid"], event.get("tid")): event["args"]["name"]
        for event in trace["traceEvents"]
        if event.get("name") == "thread_name" and "args" in event
    }
    totals: dict[str, float] = defaultdict(float)
    calls: dict[str, int] = defaultdict(int)
    for event in trace["traceEvents"]:
        place = processes.get(event.get("pid"), "")
        lane = threads.get((event.get("pid"), event.get("tid")), "")
        if event.get("ph") != "X" or "GPU" not in place or "Stream" not in lane:
            continue
        arguments = event.get("args", {})
        name = f"{arguments.get('tf_op', arguments.get('name', ''))[-90:]} | {event['name'][:70]}"
        totals[name] += event["dur"] / 1000 / steps
        calls[name] += 1
    return sorted(((ms, calls[name] // steps, name) for name, ms in totals.items()), reverse=True)


def compiled_memory(config: Any) -> tuple[float, float]:
    """Bytes by the compiler, and by the formulas of `plan`."""
    mesh, structure = meshes.make_mesh(config.mesh), model_spec(config.model)
    lengths = config.require_objective().lengths(example_context(config.model, config.train.seq_len))
    with jax.set_mesh(mesh):
        steps = make_steps(config, structure, mesh)
        shapes = meshes.batch_shapes(mesh, {k: v[0] for k, v in example_batch(config).items()}, config.train.batch_size)
        found = steps.train.lower(steps.state, shapes).compile().memory_analysis()
    own = found.argument_size_in_bytes + found.temp_size_in_bytes
    own += found.output_size_in_bytes - found.alias_size_in_bytes
    return own, modelled_memory(config, steps.state, lengths, mesh, jax.default_backend())["memory_bytes"]


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", choices=list(mfu.SHAPES))
    parser.add_argument("overrides", nargs="*")
    parser.add_argument("--profile", type=Path)
    parser.add_argument("--tiny", action="store_true")
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--limit", type=int, default=0, help="seconds after which the process ends; 0: none")
    parser.add_argument("--lock", type=Path, help="a file that only one process holds while it measures")
    given = parser.parse_args()
    config = load(given.name, given.overrides, given.tiny)
    if given.lock:
        # Processes start side by side and take turns on the device.
        lock = given.lock.open("w")
        fcntl.flock(lock, fcntl.LOCK_EX)
    signal.alarm(given.limit)
    device = jax.devices()[0]
    started = time.perf_counter()
    step = ours(config, example_batch(config))
    first = float(step())
    compile_seconds = time.perf_counter() - started
    timed(step, 3)
    times = [timed(step, given.steps) for _ in range(3)]
    seconds = float(np.median(times))
    tokens, half, full = mfu.counts(config)
    peak, _ = peak_flops(device, None)
    statistics = device.memory_stats() or {}
    kernels = check_mesh(meshes.make_mesh(config.mesh), config, device.platform)
    line: dict[str, Any] = {
        "shape": given.name,
        "overrides": given.overrides,
        "device": device.device_kind,
        "attention": kernels,
        "ms": round(1000 * seconds, 2),
        "spread": round((max(times) - min(times)) / seconds, 4),
        "tokens_per_second": round(tokens / seconds),
        "mfu_causal_full": round(full / seconds / peak, 4),
        "mfu_causal_half": round(half / seconds / peak, 4),
        "first_loss": round(first, 4),
        "loss": round(float(step()), 4),
        "compile_seconds": round(compile_seconds, 1),
        "peak_gb": round(statistics.get("peak_bytes_in_use", 0) / 1e9, 2),
    }
    print(json.dumps(line), flush=True)
    if given.profile:
        kernels_of_step = profiled(step)
        total = sum(ms for ms, _, _ in kernels_of_step)
        lines = [f"{given.name} {given.overrides}: {total:.2f} ms of kernels a step"]
        lines += [f"{ms:8.3f} ms {count:5d} x {re.sub(chr(10), ' ', name)}" for ms, count, name in kernels_of_step[:40]]
        with given.profile.open("a") as file:
            file.write("\n".join(lines) + "\n\n")
    compiler, formula = compiled_memory(config)
    print(json.dumps({"shape": given.name, "compiler_gb": compiler / 1e9, "formula_gb": formula / 1e9}), flush=True)


if __name__ == "__main__":
    main()
