"""Compilation of a train step, and what the compiler reports of its memory and collectives."""

import re
import time
from typing import cast

import jax
from jax.sharding import Mesh

from t5x_lite.config import RunConfig
from t5x_lite.parallel.chips import Chip
from t5x_lite.parallel.compiler_options import compile_lowered
from t5x_lite.parallel.mesh import batch_shapes
from t5x_lite.planner import gpu_compiler
from t5x_lite.planner.collectives import time_collectives
from t5x_lite.planner.compiler_estimate import estimated_cycles
from t5x_lite.planner.example import example_features
from t5x_lite.planner.figures import CompiledFigures
from t5x_lite.planner.hlo import count_quantized_products, find_collectives
from t5x_lite.planner.libtpu import involuntary_reshards
from t5x_lite.train.steps import Steps

_KERNEL_CALL = re.compile(r'custom_call_target="(?:tpu_custom_call|__cudnn\$fmha|__gpu\$xla\.gpu\.triton)')
_MEMORY_NEEDED = re.compile(r"(?:Used |temporaries \()([\d.]+)([KMGT])")
_BUFFER = re.compile(r"\n\s*\d+\. (?=Size: )")
_BUFFER_FIELDS = (re.compile(r"Size: (\S+)"), re.compile(r"Shape: (\S+)"), re.compile(r'op_name="(.*?)"'))
_UNITS = {"K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}
BUFFERS_SHOWN = 3


def compile_train_step(
    config: RunConfig, steps: Steps, mesh: Mesh, chip: Chip, slices: int
) -> tuple[CompiledFigures, list[str]]:
    """Compile the train step.

    Returns:
        The compiler's figures, and an empty list. If the program does not fit, the memory that it needs and its
        largest buffers.
    """
    started = time.perf_counter()
    try:
        figures = _compile_and_measure(config, steps, mesh, chip, slices)
        largest_buffers: list[str] = []
    except jax.errors.JaxRuntimeError as error:
        message = str(error)
        if "RESOURCE_EXHAUSTED" not in message:
            raise
        figures = {"memory_bytes": _read_memory_needed(message)}
        largest_buffers = _read_largest_buffers(message)
    figures["seconds"] = round(time.perf_counter() - started, 1)
    return figures, largest_buffers


def _compile_and_measure(config: RunConfig, steps: Steps, mesh: Mesh, chip: Chip, slices: int) -> CompiledFigures:
    train_step = cast(jax.stages.Wrapped, steps.train)
    shapes = batch_shapes(mesh, example_features(config), config.train.batch_size)
    earlier_reshards = len(involuntary_reshards())
    with gpu_compiler.assume_cudnn(mesh.devices.flat[0]):
        lowered = train_step.lower(steps.state, shapes)
    program = compile_lowered(lowered)
    memory = program.memory_analysis()
    text = program.as_text()
    assert memory is not None
    assert text is not None
    arguments_bytes = memory.argument_size_in_bytes
    temporaries_bytes = memory.temp_size_in_bytes
    output_bytes = memory.output_size_in_bytes - memory.alias_size_in_bytes
    collectives = find_collectives(text, mesh.shape, slices)
    return {
        "arguments_bytes": arguments_bytes,
        "temporaries_bytes": temporaries_bytes,
        "output_bytes": output_bytes,
        "kernel_calls": len(_KERNEL_CALL.findall(text)),
        "quantized_products": count_quantized_products(text),
        "involuntary_reshards": involuntary_reshards()[earlier_reshards:],
        "collectives": time_collectives(collectives, mesh, chip),
        "estimated_cycles": estimated_cycles(text),
        "memory_bytes": arguments_bytes + temporaries_bytes + output_bytes,
    }


def _read_memory_needed(message: str) -> float | None:
    """Return the bytes that a program would need, from the error that it does not fit."""
    needed = _MEMORY_NEEDED.search(message)
    if needed is None:
        return None
    return float(needed[1]) * _UNITS[needed[2]]


def _read_largest_buffers(message: str) -> list[str]:
    """Return size, shape and operation of the largest buffers, from the error that a program does not fit."""
    _, *descriptions = _BUFFER.split(message)
    buffers = [_describe_buffer(description) for description in descriptions[:BUFFERS_SHOWN]]
    return buffers or [message.splitlines()[0][:200]]


def _describe_buffer(description: str) -> str:
    fields = [pattern.search(description) for pattern in _BUFFER_FIELDS]
    return " ".join(field[1] for field in fields if field)
