"""The figures of a plan, with the keys under which `plan --json` prints them. All are of one device and one step."""

from typing import TypedDict


class CollectiveFigures(TypedDict):
    """One row of `collectives`: a `Collective`, the link that carries it and its least time there.

    By formula all bytes are `overlapped`.
    """

    kind: str
    axes: tuple[str, ...]
    times: int
    sent: float
    overlapped: float
    link: str
    seconds: float


class CompiledFigures(TypedDict, total=False):
    """Figures of the compiler. Those of a program that does not fit are only `memory_bytes` and `seconds`."""

    arguments_bytes: int
    temporaries_bytes: int
    output_bytes: int
    kernel_calls: int
    quantized_products: int
    involuntary_reshards: list[str]
    collectives: list[CollectiveFigures]
    estimated_cycles: float | None
    memory_bytes: float | None
    seconds: float


class EstimateFigures(TypedDict, total=False):
    """The time of a step by the compiler's cost model; empty without one. `step_seconds` is the sum of the other times.

    `instruction_seconds` are those of fusions, products and copies, `kernel_seconds` those of kernels of attention and
    of experts, and `exposed_seconds` those of collectives while the schedule has no work for the device.
    """

    instruction_seconds: float
    kernel_seconds: float
    exposed_seconds: float
    step_seconds: float
    mfu_causal_half: float
    mfu_causal_full: float


class MemoryFigures(TypedDict):
    """Memory by formula; `memory_bytes` is the sum of the others."""

    state_bytes: float
    gradients_bytes: float
    activations_bytes: float
    memory_bytes: float


class RooflineFigures(TypedDict):
    """Lower bounds of the time of a step, and what follows from the largest of them.

    `ici_seconds` are those of links inside a slice or a host, `dcn_seconds` those of the network between them, each of
    all collectives that it bounds, one after the other.
    `exposed_seconds` are the part of both in which the schedule has no work for the device.
    """

    compute_seconds: float
    memory_seconds: float
    ici_seconds: float
    dcn_seconds: float
    exposed_seconds: float
    flops_per_device: float
    flops_per_device_causal_full: float
    peak_flops: float
    step_seconds: float
    mfu_causal_half: float
    mfu_causal_full: float
    tokens_per_second: float
    days: float
    chip_hours: float
    tokens: float


class ModelledFigures(MemoryFigures, RooflineFigures):
    """All figures that come from formulas."""

    collectives: list[CollectiveFigures]
