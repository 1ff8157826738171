"""Plans as tables on the terminal."""

from collections.abc import Mapping, Sequence

from rich.console import Console

from t5x_lite.parallel.config import gpu_count
from t5x_lite.planner.figures import CollectiveFigures
from t5x_lite.planner.plan import LANES, Plan
from t5x_lite.progress import print_line, print_table

GIBIBYTE = 2**30
MEMORY_KINDS = ("arguments", "temporaries", "output", "state", "gradients", "activations")
BOUNDS = ("compute", "memory", "ici", "dcn", "exposed", "step")
BOUNDS_OF_GPUS = {"ici": "NVLink", "dcn": "network"}
"""Names that some of `BOUNDS` have for GPUs."""
LARGEST_EXCESS = 1.2
"""The report warns if a device sends more than this multiple of what the mesh requires."""


def print_plan(plan: Plan) -> None:
    """Print a plan as tables."""
    console = Console()
    _print_summary(console, plan)
    _print_memory(console, plan)
    _print_kernels(console, plan)
    _print_collectives(console, "compiled, sent", plan.compiled.get("collectives", []))
    _print_collectives(console, "modelled, must be sent", plan.modelled["collectives"])
    if plan.largest:
        return
    _print_excess(console, plan)
    _print_bounds(console, plan)
    _print_speed(console, plan)
    _print_estimate(console, plan)


def print_search(plans: Sequence[Plan]) -> None:
    """Print a row for each candidate of a search."""
    rows = []
    for plan in plans:
        rows.append(
            (
                _format_mesh(plan.mesh),
                str(plan.microbatches),
                plan.data_reduction,
                plan.remat,
                "yes" if plan.fits else "no",
                f"{plan.memory_bytes / GIBIBYTE:.1f}",
                f"{plan.modelled['step_seconds']:.3f}",
                f"{plan.modelled['mfu_causal_half']:.1%}",
                f"{plan.estimate['step_seconds']:.3f}" if plan.estimate else "",
            )
        )
    columns = ("mesh", "microbatches", "data_reduction", "remat", "fits", "GiB", "step ≥ s", "MFU ≤", "estimated s")
    print_table(Console(), "candidates, best first", columns, rows)


def _format_mesh(mesh: Mapping[str, int]) -> str:
    return " × ".join(f"{axis} {size}" for axis, size in mesh.items())


def _print_summary(console: Console, plan: Plan) -> None:
    mesh = _format_mesh(plan.mesh) or "one device"
    remat = f"remat {plan.remat}"
    if plan.requested_remat == "auto":
        remat += " (auto: the least recomputation that fits)"
    print_line(console, f"{plan.topology}: {plan.devices} devices as {mesh}, {remat}")
    parameters = f"{plan.parameters:,} parameters"
    if plan.active_parameters < plan.parameters:
        parameters += f", {plan.active_parameters:,} active per token"
    print_line(console, f"{parameters}; {plan.tokens_per_step:,} tokens per step")
    if plan.compiled:
        source = f"compiled in {plan.compiled['seconds']:.0f} s"
    else:
        source = "modelled, not compiled"
    verdict = "fits" if plan.fits else "does NOT fit"
    used = plan.memory_bytes / GIBIBYTE
    available = plan.available_bytes / GIBIBYTE
    print_line(console, f"{source}: {verdict}: {used:.1f} of {available:.1f} GiB per device")
    for buffer in plan.largest:
        print_line(console, f"  {buffer}")
    if not plan.fits:
        larger_axes = "larger mesh.fsdp, mesh.tensor or, for long rows, mesh.context"
        print_line(console, f"try: {larger_axes}, model.remat=full, train.microbatches, a smaller batch; --search")


def _print_memory(console: Console, plan: Plan) -> None:
    for source, figures in (("compiled", plan.compiled), ("modelled", plan.modelled)):
        sizes: Mapping[str, object] = figures
        rows = []
        for kind in MEMORY_KINDS:
            size = sizes.get(f"{kind}_bytes")
            if isinstance(size, int | float):
                rows.append((kind, f"{size / GIBIBYTE:.2f}"))
        print_table(console, f"{source}, per device", ("memory", "GiB"), rows)


def _print_kernels(console: Console, plan: Plan) -> None:
    print_table(console, "attention kernels", ("kind", "kernel"), list(plan.kernels.items()))
    if "kernel_calls" in plan.compiled:
        calls = plan.compiled["kernel_calls"]
        print_line(console, f"{calls} calls of attention and expert kernels in the compiled program")
    if plan.compiled.get("quantized_products"):
        products = plan.compiled["quantized_products"]
        print_line(
            console, f"{products} matrix products in 8 bits in the compiled program, those of a loop counted once"
        )
    for array in plan.compiled.get("involuntary_reshards", []):
        print_line(console, f"the compiler could reshard this array only by replicating it: {array}")


def _print_collectives(console: Console, source: str, collectives: Sequence[CollectiveFigures]) -> None:
    rows = []
    for collective in collectives:
        row = [collective["kind"], ", ".join(collective["axes"]), str(collective["times"]), collective["link"]]
        row.append(f"{collective['sent'] / 1e6:,.1f}")
        row.append(f"{collective['seconds'] * 1e3:,.2f}")
        row.append(f"{collective['overlapped'] / collective['sent']:.0%}")
        rows.append(row)
    columns = ["collective", "mesh axes", "times", "link", "MB", "ms ≥", "overlapped"]
    if source.startswith("modelled"):
        columns.pop()  # only a schedule overlaps
        rows = [row[:-1] for row in rows]
    print_table(console, f"{source} by a device in one step", columns, rows)


def _print_excess(console: Console, plan: Plan) -> None:
    """Print how much more a device sends than the mesh requires, if it is much."""
    sent = sum(collective["sent"] for collective in plan.compiled.get("collectives", []))
    required = sum(collective["sent"] for collective in plan.modelled["collectives"])
    excess = sent / max(required, 1)
    if excess > LARGEST_EXCESS:
        print_line(console, f"sent: {excess:.1f} times what the mesh requires{_explain_unaligned_shards(plan)}")
    if plan.data_reduction == "microbatch" and plan.microbatches > 1 and "data" in plan.mesh:
        sums = f"sum their gradients {plan.microbatches} times in a step"
        print_line(console, f"the replicas along data {sums}; with train.data_reduction=step they do it once")


def _explain_unaligned_shards(plan: Plan) -> str:
    if plan.is_aligned:
        return ""
    shard = f"{plan.width}/{plan.width_shards} = {plan.width // plan.width_shards}"
    return (
        f": the shards of the width, {shard}, are no multiple of {LANES}, so a TPU sums padded arrays instead of "
        "gathering them; try a smaller mesh.fsdp or mesh.context and a larger mesh.data"
    )


def _print_bounds(console: Console, plan: Plan) -> None:
    figures: Mapping[str, object] = plan.modelled
    names = {} if gpu_count(plan.topology) is None else BOUNDS_OF_GPUS
    rows = [(names.get(bound, bound), f"{figures[f'{bound}_seconds']:.4f}") for bound in BOUNDS]
    print_table(console, "modelled, the least time of a step", ("bound by", "seconds"), rows)


def _print_speed(console: Console, plan: Plan) -> None:
    figures = plan.modelled
    rows = [
        ("FLOPs per device and step, causal attention half", f"{figures['flops_per_device']:.3e}"),
        ("the same, causal attention full", f"{figures['flops_per_device_causal_full']:.3e}"),
        ("MFU, causal attention half", f"{figures['mfu_causal_half']:.1%}"),
        ("MFU, causal attention full", f"{figures['mfu_causal_full']:.1%}"),
        ("tokens per second", f"{figures['tokens_per_second']:,.0f}"),
        (f"days for {figures['tokens']:.3g} tokens", f"{figures['days']:.2f}"),
        ("device-hours", f"{figures['chip_hours']:,.0f}"),
    ]
    print_table(console, "modelled, at that speed", ("", ""), rows)


def _print_estimate(console: Console, plan: Plan) -> None:
    if not plan.estimate:
        return
    figures = plan.estimate
    rows = [
        ("fusions, products and copies", f"{figures['instruction_seconds']:.4f}"),
        ("kernels of attention and experts, at the peak rate", f"{figures['kernel_seconds']:.4f}"),
        ("collectives that nothing overlaps", f"{figures['exposed_seconds']:.4f}"),
        ("step", f"{figures['step_seconds']:.4f}"),
    ]
    print_table(console, "estimated by the compiler's cost model", ("time of", "seconds"), rows)
    mfu = f"{figures['mfu_causal_half']:.1%}, causal attention half; {figures['mfu_causal_full']:.1%}, full"
    print_line(console, f"MFU at that speed: {mfu}")
