"""The time of a step by the cost model of the TPU compiler."""

import re

import jax

from t5x_lite.models.experts.dispatch import sorting_kernel
from t5x_lite.parallel.chips import Chip
from t5x_lite.planner.figures import CompiledFigures, EstimateFigures, RooflineFigures
from t5x_lite.planner.hlo_program import read_program
from t5x_lite.planner.workload import Workload
from t5x_lite.train.flops import attention_flops_per_text, products_per_text
from t5x_lite.trees import flatten_names

ATTENTION_KERNEL_FLOPS_RATIO = 9 / 6
"""FLOPs of attention kernels over those of the formula, which has six products. The kernel for the gradients of queries
and the kernel for those of keys and values each compute the scores and the gradients of the weights: nine products."""
UNKNOWN_CYCLES = 2**63 - 1
"""Estimate of an instruction whose cycles the compiler cannot tell."""
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
            if estimate and int(estimate[1]) != UNKNOWN_CYCLES:
                cycles += times * int(estimate[1])
    return float(cycles)


def estimate_step(
    workload: Workload, chip: Chip, compiled: CompiledFigures, modelled: RooflineFigures
) -> EstimateFigures:
    """Return the time of a step by the compiler's estimate, and the speed at that; nothing if it cannot be told.

    Pallas kernels count the products of attention and of experts at the peak rate of the chip.

    Args:
        workload: the train step.
        chip: the devices.
        compiled: figures of the compiler.
        modelled: the roofline, for the FLOPs and for the time of collectives that nothing overlaps.
    """
    cycles = compiled.get("estimated_cycles")
    if cycles is None or chip.clock is None:
        return {}
    config = workload.config
    kernel_flops = 0.0
    if compiled["kernel_calls"]:
        attention_flops = attention_flops_per_text(config.model, workload.lengths, causal_half=True)
        attention_flops *= ATTENTION_KERNEL_FLOPS_RATIO
        texts = config.train.batch_size * workload.lengths.texts / workload.mesh.size
        kernel_flops = texts * (attention_flops + _sorted_expert_flops(workload))
    instruction_seconds = cycles / chip.clock
    kernel_seconds = kernel_flops / chip.flops
    exposed_seconds = modelled["exposed_seconds"]
    step_seconds = instruction_seconds + kernel_seconds + exposed_seconds
    peak_flops = modelled["peak_flops"] * step_seconds
    return {
        "instruction_seconds": instruction_seconds,
        "kernel_seconds": kernel_seconds,
        "exposed_seconds": exposed_seconds,
        "step_seconds": step_seconds,
        "mfu_causal_half": modelled["flops_per_device"] / peak_flops,
        "mfu_causal_full": modelled["flops_per_device_causal_full"] / peak_flops,
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
