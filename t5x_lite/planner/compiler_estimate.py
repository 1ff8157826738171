"""The time of a step by the cost model of the TPU compiler."""

import re

import jax

from t5x_lite.models.experts.dispatch import sorting_kernel
from t5x_lite.parallel.chips import Chip
from t5x_lite.planner.figures import CompiledFigures, EstimateFigures
from t5x_lite.planner.hlo_program import read_program
from t5x_lite.planner.workload import Workload
from t5x_lite.train.flops import attention_flops_per_text, products_per_text
from t5x_lite.train.step_flops import step_flops_per_example
from t5x_lite.trees import flatten_names

KERNEL_PRODUCTS = 9 / 6
"""Products of attention kernels over those that FLOPs count: the kernel for gradients of queries, and that for those of
keys and values, each compute the scores and their gradients again."""
NO_ESTIMATE = 2**63 - 1
"""Cycles of an instruction that the compiler cannot tell."""
_CYCLES = re.compile(r'"estimated_cycles":"(\d+)"')


def estimated_cycles(text: str) -> float | None:
    """Return the cycles that a compiled program takes by its compiler's estimate; None if it has none, as on a GPU.

    The compiler estimates each fusion, product and copy, which follow each other on a device. It has no estimate of
    Pallas kernels, of collectives, and of waiting for them.

    Args:
        text: `compiled.as_text()`.
    """
    if not _CYCLES.search(text):
        return None
    program = read_program(text)
    cycles = 0
    for name, times in program.executions.items():
        for line in program.bodies[name]:
            estimate = _CYCLES.search(line)
            if estimate and int(estimate[1]) != NO_ESTIMATE:
                cycles += times * int(estimate[1])
    return float(cycles)


def estimate_step(workload: Workload, chip: Chip, compiled: CompiledFigures, exposed_seconds: float) -> EstimateFigures:
    """Return the time of a step by the compiler's estimate, and the speed at that; nothing if it cannot be told.

    Pallas kernels count the products of attention and of experts at the peak rate of the chip.

    Args:
        workload: the train step.
        chip: the devices.
        compiled: figures of the compiler.
        exposed_seconds: those of collectives without work beside them.
    """
    cycles = compiled.get("estimated_cycles")
    if cycles is None or chip.clock is None:
        return {}
    train = workload.config.train
    model = workload.config.model
    kernel_flops = 0.0
    if compiled["kernel_calls"]:
        attention_flops = KERNEL_PRODUCTS * attention_flops_per_text(model, workload.lengths, causal_half=True)
        texts = train.batch_size * workload.lengths.texts / workload.mesh.size
        kernel_flops = texts * (attention_flops + _sorted_expert_flops(workload))
    instruction_seconds = cycles / chip.clock
    kernel_seconds = kernel_flops / chip.flops
    step_seconds = instruction_seconds + kernel_seconds + exposed_seconds
    model_flops = train.batch_size * step_flops_per_example(
        workload.config, workload.spec, workload.lengths, causal_half=False
    )
    return {
        "instruction_seconds": instruction_seconds,
        "kernel_seconds": kernel_seconds,
        "exposed_seconds": exposed_seconds,
        "step_seconds": step_seconds,
        "mfu_causal_full": model_flops / workload.mesh.size / (train.peak_flops or chip.flops) / step_seconds,
    }


def _sorted_expert_flops(workload: Workload) -> float:
    """Return the FLOPs of one text, forward and backward, of the experts that a kernel for sorted rows computes."""
    model = workload.config.model
    with jax.set_mesh(workload.mesh):
        kernels = [sorting_kernel(moe.dispatch, "tpu") for moe in model.mixtures]
    if not any(kernels):
        return 0.0
    shapes = flatten_names(workload.spec.shapes)
    flops = 0.0
    for name, axes in flatten_names(workload.spec.axes).items():
        if "experts" in axes.names and axes.inputs > 0:
            flops += 6 * products_per_text(model, name, axes, shapes[name].shape, workload.lengths)
    return flops
