"""The roofline: the least time that a step can take on published figures of the chips."""

from collections.abc import Sequence

from t5x_lite.errors import UserError
from t5x_lite.parallel.chips import Chip
from t5x_lite.planner.figures import CollectiveFigures, RooflineFigures
from t5x_lite.planner.recomputation import recomputed_flops_per_example
from t5x_lite.planner.workload import Workload
from t5x_lite.train.flops import quantized_flops_per_example
from t5x_lite.train.step_flops import passes_per_step, step_flops_per_example

SECONDS_PER_DAY = 86400


def roofline_bounds(
    workload: Workload, chip: Chip, memory_bytes: float, collectives: Sequence[CollectiveFigures]
) -> RooflineFigures:
    """Return the time that arithmetic, memory and links need for one step at least, and the speed of the run at that.

    Args:
        workload: the train step.
        chip: the devices.
        memory_bytes: bytes of the state and the temporaries of a device.
        collectives: what a device sends in a step, compiled or by formula.
    """
    train = workload.config.train
    devices = workload.mesh.size
    flops = _flops_per_device(workload, causal_half=True)
    flops_causal_full = _flops_per_device(workload, causal_half=False)
    peak_flops = train.peak_flops or chip.flops
    overhead = _recomputation_factor(workload) * workload.pipeline_slowdown
    dcn_seconds = sum(row["seconds"] for row in collectives if row["link"] in {"DCN", "network"})
    ici_seconds = sum(row["seconds"] for row in collectives) - dcn_seconds
    exposed_seconds = sum(row["seconds"] * (1 - row["overlapped"] / row["sent"]) for row in collectives)
    # The state is read and written once in a step, and so is what the forward pass saves for the backward pass.
    memory_traffic = 2 * memory_bytes + _gathered_weight_bytes(workload)
    compute_seconds = _product_seconds(workload, chip, flops, peak_flops) * overhead
    memory_seconds = memory_traffic / chip.memory_rate
    # A device does not compute while it waits for a collective that the schedule does not overlap.
    step_seconds = max(compute_seconds + exposed_seconds, memory_seconds, ici_seconds, dcn_seconds)
    tokens_per_step = train.batch_size * train.seq_len
    days = train.steps * step_seconds / SECONDS_PER_DAY
    return {
        "compute_seconds": compute_seconds,
        "memory_seconds": memory_seconds,
        "ici_seconds": ici_seconds,
        "dcn_seconds": dcn_seconds,
        "exposed_seconds": exposed_seconds,
        "flops_per_device": flops,
        "flops_per_device_causal_full": flops_causal_full,
        "peak_flops": peak_flops,
        "step_seconds": step_seconds,
        "mfu_causal_half": flops / peak_flops / step_seconds,
        "mfu_causal_full": flops_causal_full / peak_flops / step_seconds,
        "tokens_per_second": tokens_per_step / step_seconds,
        "days": days,
        "chip_hours": days * 24 * devices,
        "tokens": float(tokens_per_step * train.steps),
    }


def _flops_per_device(workload: Workload, *, causal_half: bool) -> float:
    """Return the FLOPs of a step without recomputation; see `step_flops_per_example`."""
    config = workload.config
    row_flops = step_flops_per_example(config, workload.spec, workload.lengths, causal_half=causal_half)
    return config.train.batch_size * row_flops / workload.mesh.size


def _product_seconds(workload: Workload, chip: Chip, flops: float, peak_flops: float) -> float:
    """Return the seconds that a device needs for its FLOPs, those in 8 bits at the rate of the chip's units for them.

    Raises:
        UserError: the chip has no such units.
    """
    config = workload.config
    quantization = config.train.quantization
    if quantization is None:
        return flops / peak_flops
    rates = {"int8": chip.int8_flops, "fp8": chip.fp8_flops}
    rate = rates[quantization]
    if rate is None:
        others = " or ".join([name for name, value in rates.items() if value] + ["null"])
        raise UserError(f"train.quantization {quantization}: this chip has no units for it; set it to {others}")
    row_flops = quantized_flops_per_example(config.model, workload.spec, workload.lengths)
    quantized_flops = config.train.batch_size * row_flops / workload.mesh.size
    return (flops - quantized_flops) / peak_flops + quantized_flops / rate


def _recomputation_factor(workload: Workload) -> float:
    """Return the FLOPs of a step with recomputation over those without."""
    flops = step_flops_per_example(workload.config, workload.spec, workload.lengths)
    return 1 + passes_per_step(workload.config) * recomputed_flops_per_example(workload) / flops


def _gathered_weight_bytes(workload: Workload) -> float:
    """Return the bytes of gathered weights that the passes of a step read, in the type of the activations."""
    sizes = workload.mesh.shape
    passes = 4 if workload.recomputes_layers else 3
    weight_shards = sizes["tensor"] * sizes["expert"] * sizes["pipeline"]
    # Of a table, the rows of the tokens are read, which the activations hold.
    parameters = workload.spec.parameters - workload.spec.looked_up_parameters
    weight_bytes = parameters * workload.bytes_per_activation / weight_shards
    return weight_bytes * passes * workload.config.train.microbatches
