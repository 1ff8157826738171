"""One training step of a shape of `benchmarks/mfu.py` on this accelerator: time, MFU, memory, and its kernels.

    PYTHONPATH=tools:. python tools/gpu/step.py NAME [KEY=VALUE …] [--profile FILE]

Prints two JSON objects: figures of the step, and its memory by the compiler and by formula. `--profile` appends the
kernels of a step to a file, the longest first.
"""

import argparse
import fcntl
import gzip
import json
import signal
import tempfile
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import jax
import numpy as np
from benchmarks import mfu
from benchmarks.step import Batch, build_train_step, random_batch
from benchmarks.timing import Case

from t5x_lite.config import RunConfig
from t5x_lite.models.spec import model_spec
from t5x_lite.parallel import mesh as meshes
from t5x_lite.parallel.job_environment import reserve_gpu_memory
from t5x_lite.planner.example import example_context
from t5x_lite.planner.memory import modelled_memory
from t5x_lite.planner.workload import Workload
from t5x_lite.train.device_speed import peak_flops
from t5x_lite.train.mesh_checks import check_mesh
from t5x_lite.train.steps import make_steps

WARM_UP_STEPS = 3
ROUNDS = 3
PROFILED_STEPS = 3
KERNELS_SHOWN = 40


def seconds_per_step(step: Case, steps: int) -> float:
    """Return the time of one of several steps that are dispatched without waiting for each other."""
    start = time.perf_counter()
    for _ in range(steps):
        loss = step()
    jax.block_until_ready(loss)
    return (time.perf_counter() - start) / steps


@dataclass(frozen=True)
class KernelTime:
    """Milliseconds and calls of one kernel in a step."""

    milliseconds: float
    calls: int
    name: str


def profile_kernels(step: Case, steps: int = PROFILED_STEPS) -> list[KernelTime]:
    """Return the kernels of one step, the longest first."""
    with tempfile.TemporaryDirectory() as folder:
        with jax.profiler.trace(folder):
            seconds_per_step(step, steps)
        [path] = Path(folder).rglob("*.trace.json.gz")
        events = json.loads(gzip.decompress(path.read_bytes()))["traceEvents"]
    process_names = {event["pid"]: event["args"]["name"] for event in events if _is_name_of("process", event)}
    thread_names = {
        (event["pid"], event.get("tid")): event["args"]["name"] for event in events if _is_name_of("thread", event)
    }
    milliseconds: dict[str, float] = defaultdict(float)
    calls: dict[str, int] = defaultdict(int)
    for event in events:
        process = process_names.get(event.get("pid"), "")
        thread = thread_names.get((event.get("pid"), event.get("tid")), "")
        if event.get("ph") == "X" and "GPU" in process and "Stream" in thread:
            name = _kernel_name(event)
            milliseconds[name] += event["dur"] / 1000 / steps
            calls[name] += 1
    kernels = [KernelTime(time, calls[name] // steps, name) for name, time in milliseconds.items()]
    return sorted(kernels, key=lambda kernel: (-kernel.milliseconds, kernel.name))


def _is_name_of(kind: str, event: Mapping[str, Any]) -> bool:
    return event.get("name") == f"{kind}_name" and "args" in event


def _kernel_name(event: Mapping[str, Any]) -> str:
    """Return the JAX operation and the name of the kernel that computes it."""
    arguments = event.get("args", {})
    operation = arguments.get("tf_op", arguments.get("name", ""))
    return f"{operation[-90:]} | {event['name'][:70]}"


def append_profile(path: Path, title: str, kernels: Sequence[KernelTime]) -> None:
    """Append the longest kernels of a step to a text file."""
    total = sum(kernel.milliseconds for kernel in kernels)
    lines = [f"{title}: {total:.2f} ms of kernels a step"]
    for kernel in kernels[:KERNELS_SHOWN]:
        name = kernel.name.replace("\n", " ")
        lines.append(f"{kernel.milliseconds:8.3f} ms {kernel.calls:5d} x {name}")
    with path.open("a") as file:
        file.write("\n".join(lines) + "\n\n")


def measure_step(config: RunConfig, step: Case, steps: int) -> dict[str, Any]:
    """Return time, speed and memory of a step. Its first call, which compiles, is in here."""
    device = jax.devices()[0]
    started = time.perf_counter()
    first_loss = float(step())
    compile_seconds = time.perf_counter() - started
    seconds_per_step(step, WARM_UP_STEPS)
    times = [seconds_per_step(step, steps) for _ in range(ROUNDS)]
    seconds = float(np.median(times))
    costs = mfu.count_costs(config)
    peak, _ = peak_flops(device, None)
    memory = device.memory_stats() or {}
    return {
        "ms": round(1000 * seconds, 2),
        "spread": round((max(times) - min(times)) / seconds, 4),
        "tokens_per_second": round(costs.tokens / seconds),
        "mfu_causal_full": round(costs.flops_causal_full / seconds / peak, 4),
        "mfu_causal_half": round(costs.flops_causal_half / seconds / peak, 4),
        "first_loss": round(first_loss, 4),
        "loss": round(float(step()), 4),
        "compile_seconds": round(compile_seconds, 1),
        "peak_gb": round(memory.get("peak_bytes_in_use", 0) / 1e9, 2),
    }


def compare_memory(config: RunConfig, batch: Batch) -> dict[str, float]:
    """Return the gigabytes of a step by the compiler, and by the formulas of `plan`."""
    mesh = meshes.make_mesh(config.mesh)
    spec = model_spec(config.model)
    lengths = config.require_objective().example_lengths(example_context(config.model, config.train.seq_len))
    example = {name: rows[0] for name, rows in batch.items()}
    with jax.set_mesh(mesh):
        steps = make_steps(config, spec, mesh)
        train_step = cast(jax.stages.Wrapped, steps.train)
        shapes = meshes.batch_shapes(mesh, example, config.train.batch_size)
        memory = train_step.lower(steps.state, shapes).compile().memory_analysis()
    assert memory is not None
    compiled_bytes = memory.argument_size_in_bytes + memory.temp_size_in_bytes
    compiled_bytes += memory.output_size_in_bytes - memory.alias_size_in_bytes
    workload = Workload(config, spec, lengths, mesh)
    modelled_bytes = modelled_memory(workload, steps.state, jax.default_backend())["memory_bytes"]
    return {"compiler_gb": compiled_bytes / 1e9, "formula_gb": modelled_bytes / 1e9}


def parse_options() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", choices=list(mfu.SHAPES))
    parser.add_argument("overrides", nargs="*")
    parser.add_argument("--profile", type=Path)
    parser.add_argument("--tiny", action="store_true")
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--limit", type=int, default=0, help="seconds after which the process ends; 0: none")
    parser.add_argument("--lock", type=Path, help="a file that one process at a time locks while it measures")
    return parser.parse_args()


def main() -> None:
    """Measure the step that the command line names."""
    options = parse_options()
    reserve_gpu_memory()
    config = mfu.load_shape(options.name, [*(mfu.TINY if options.tiny else ()), *options.overrides])
    if options.lock:
        # Several processes start at the same time and take turns on the device.
        lock = options.lock.open("w")
        fcntl.flock(lock, fcntl.LOCK_EX)
    signal.alarm(options.limit)
    device = jax.devices()[0]
    batch = random_batch(config)
    step = build_train_step(config, batch)
    line = {
        "shape": options.name,
        "overrides": options.overrides,
        "device": device.device_kind,
        "attention": check_mesh(meshes.make_mesh(config.mesh), config, device.platform),
    }
    print(json.dumps(line | measure_step(config, step, options.steps)), flush=True)
    if options.profile:
        append_profile(options.profile, f"{options.name} {options.overrides}", profile_kernels(step))
    print(json.dumps({"shape": options.name} | compare_memory(config, batch)), flush=True)


if __name__ == "__main__":
    main()
