"""What a run would be on a pod, without one: its train step compiled by the real TPU compiler, and a roofline.

What is *compiled* (fit, memory, exchanges) is the compiler's word; what is *modelled* (FLOPs, seconds) is arithmetic on
published figures of the chips, and a bound: no step is faster.
"""

import importlib.util
import math
import re
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import jax
import numpy as np
from jax.experimental import topologies
from jax.sharding import Mesh
from rich.console import Console
from rich.progress import track
from rich.table import Table

from t5x_lite.config import MeshConfig, RunConfig
from t5x_lite.errors import UserError
from t5x_lite.models.config import RematPolicy
from t5x_lite.models.transformer import blueprint
from t5x_lite.objectives.objective import Row, Task, Vocabulary
from t5x_lite.parallel import mesh as meshes
from t5x_lite.parallel.hlo import Collective, collectives
from t5x_lite.train.health import check_sharded
from t5x_lite.train.metrics import flops_per_row, peak_flops
from t5x_lite.train.setup import check_on, make_steps


@dataclass(frozen=True)
class Chip:
    """Published figures of one device: bytes of memory, bytes a second of memory, and of one link in one direction."""

    memory: float
    memory_rate: float
    link_rate: float


CHIPS = {
    "TPU v4": Chip(32 * 2**30, 1228e9, 45e9),
    "TPU v5 lite": Chip(16 * 2**30, 819e9, 45e9),
    "TPU v5": Chip(95 * 2**30, 2765e9, 90e9),
    "TPU v6 lite": Chip(32 * 2**30, 1640e9, 90e9),
    "TPU7x": Chip(96 * 2**30, 3690e9, 90e9),
}
"""Google Cloud's system architecture pages; links from Austin et al. 2025, "How to Scale Your Model", part 2.

A device of TPU7x is half a chip.
"""
DCN_RATE = 6.25e9
"""Bytes a second that a chip sends to other slices: 25e9 for a host of four (Austin et al. 2025, part 2)."""
RESERVED = 0.02
"""Share of the memory that the runtime keeps for itself."""


@dataclass(frozen=True)
class Plan:
    """The report of one config on one topology; bytes and seconds are of one device and one step.

    `compiled` holds the compiler's figures, `modelled` those from formulas; `mfu_causal_half` counts causal attention
    half, as training does, `mfu_causal_full` whole.
    """

    topology: str
    devices: int
    mesh: dict[str, int]
    remat: str
    fits: bool
    parameters: int
    active_parameters: int
    tokens_per_step: int
    kernels: dict[str, str]
    compiled: dict[str, Any]
    modelled: dict[str, float]
    largest: list[str] = field(default_factory=list)


@contextmanager
def pod(topology: str, slices: int) -> Iterator[Sequence[Any]]:
    """The devices of a pod that is not here.

    Raises:
        UserError: libtpu is not installed, or does not know the topology.
    """
    if importlib.util.find_spec("libtpu") is None:
        raise UserError("plan needs the TPU compiler: pip install 't5x_lite[tpu]'")
    more: dict[str, Any] = {"num_slices": slices} if slices > 1 else {}
    if topology.startswith("v4"):
        more["chip_config_name"] = "megacore"  # one device a chip, as JAX has it there
    try:
        found = topologies.get_topology_desc(platform="tpu", topology_name=topology, **more)
    except Exception as error:  # libtpu has no narrower one
        raise UserError(
            f"--topology {topology}: not known to libtpu: {str(error).splitlines()[0]}; write for example v5p:4x4x4, "
            "v5e:16x16 or v6e:8x8"
        ) from None
    yield found.devices


def plan(config: RunConfig, topology: str, slices: int = 1) -> Plan:
    """Compile the config's train step for a topology.

    Raises:
        UserError: see `pod`; a mesh that does not fill the pod; a model without a vocabulary.
    """
    with pod(topology, slices) as devices:
        return planned(config, topology, devices, slices)


def planned(config: RunConfig, topology: str, devices: Sequence[Any], slices: int) -> Plan:
    """See `plan`; for devices that are at hand."""
    task_of(config)
    mesh = meshes.make_mesh(config.mesh, list(devices))
    model, train = config.model, config.train
    chosen, structure = check_on(mesh, config), blueprint(model)
    check_sharded(structure, mesh)
    started = time.perf_counter()
    compiled: dict[str, Any] = {}
    largest: list[str] = []
    try:
        program = _compile(config, mesh)
        memory, text = program.memory_analysis(), program.as_text()
        compiled = {
            "arguments_bytes": memory.argument_size_in_bytes,
            "temporaries_bytes": memory.temp_size_in_bytes,
            "output_bytes": memory.output_size_in_bytes - memory.alias_size_in_bytes,
            "kernel_calls": text.count('custom_call_target="tpu_custom_call"'),
            "exchanges": [asdict(one) for one in collectives(text, dict(mesh.shape))],
        }
        compiled["memory_bytes"] = sum(compiled[f"{kind}_bytes"] for kind in ("arguments", "temporaries", "output"))
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        compiled, largest = _exhausted(str(error))
    compiled["seconds"] = round(time.perf_counter() - started, 1)
    chip = _chip(devices[0])
    compiled["available_bytes"] = chip.memory * (1 - RESERVED)
    return Plan(
        topology=f"{slices} x {topology}" if slices > 1 else topology,
        devices=mesh.size,
        mesh={axis: size for axis, size in mesh.shape.items() if size > 1},
        remat=model.remat,
        fits=not largest and compiled["memory_bytes"] <= compiled["available_bytes"],
        parameters=structure.parameters,
        active_parameters=structure.active_parameters,
        tokens_per_step=train.batch_size * train.seq_len,
        kernels=chosen,
        compiled=compiled,
        modelled=_modelled(config, structure, mesh, chip, compiled, slices),
        largest=largest,
    )


def _compile(config: RunConfig, mesh: Mesh) -> Any:
    structure, rows = blueprint(config.model), config.train.batch_size
    sharding = meshes.batch_sharding(mesh)
    shapes = {
        name: jax.ShapeDtypeStruct((rows, *value.shape), value.dtype, sharding=sharding)
        for name, value in example(config).items()
    }
    with jax.set_mesh(mesh):
        steps = make_steps(config, structure, mesh)
        return steps.train.lower(steps.state, shapes).compile()  # type: ignore[attr-defined]


def task_of(config: RunConfig) -> Task:
    """The task of a config whose tokenizer is not there: a vocabulary that has every special token.

    Raises:
        UserError: `model.vocab` is not given.
    """
    size = config.model.vocab
    if size is None:
        raise UserError("plan needs `model.vocab`: the size of a tokenizer that is not trained yet is not known")
    names = ("[CLS]", "[SEP]", "[MASK]", "<s>", "</s>", "[R]", "[S]", "[X]", "<unk>", "<pad>")
    special = np.arange(size) < len(names)
    named = {name: number for number, name in enumerate(names)}
    sentinels = tuple(range(size - 1, max(size - 101, size // 2), -1))
    words = np.ones(size, bool)
    frequency = np.full(size, 1 / size)
    vocabulary = Vocabulary(size, 1, named, sentinels, special, words, frequency)
    return Task(config.train.seq_len, vocabulary, config.model.family)


def example(config: RunConfig) -> Any:
    """One row of features of the config's objective, for their shapes and types."""
    task, objective = task_of(config), config.task
    length = objective.row_length(task)
    ones = np.ones(length, np.int32)
    halves = (np.arange(length) >= length // 2).astype(np.int32)
    row = Row(ones * 20, ones, halves)
    return objective.example(replace(row, partner=row), task, np.random.default_rng(0))


def _chip(device: Any) -> Chip:
    known = [name for name in CHIPS if device.device_kind.startswith(name)]
    if not known:
        raise UserError(f"plan has no published figures of {device.device_kind}; known are {', '.join(CHIPS)}")
    return CHIPS[max(known, key=len)]


def _exhausted(message: str) -> tuple[dict[str, Any], list[str]]:
    """What the compiler says of a program that does not fit: its size, and the largest buffers."""
    used = re.search(r"(?:Used |temporaries \()([\d.]+)([KMGT])", message)
    size = float(used[1]) * 2 ** {"K": 10, "M": 20, "G": 30, "T": 40}[used[2]] if used else None
    largest = []
    for block in re.split(r"\n\s*\d+\. (?=Size: )", message)[1:4]:
        parts = [re.search(pattern, block) for pattern in (r"Size: (\S+)", r"Shape: (\S+)", r'op_name="(.*?)"')]
        largest.append(" ".join(part[1] for part in parts if part))
    return {"memory_bytes": size}, largest or [message.splitlines()[0][:200]]


def _modelled(
    config: RunConfig, structure: Any, mesh: Mesh, chip: Chip, compiled: dict[str, Any], slices: int
) -> dict[str, float]:
    """FLOPs of a step and the least seconds that compute, memory and links need for it."""
    train, n = config.train, mesh.size
    lengths = config.task.lengths(task_of(config))
    flops = train.batch_size * flops_per_row(config.model, structure, lengths) / n
    full = train.batch_size * flops_per_row(config.model, structure, lengths, causal_half=False) / n
    peak, _ = peak_flops(mesh.devices.flat[0], train.peak_flops)
    again = {"none": 1.0, "full": 4 / 3}.get(config.model.remat, 7 / 6)
    compute = flops * again / peak
    # Weights, gradients and moments are read and written once; what is kept for the backward pass too; and each pass
    # reads the weights that it has gathered, in the type of the activations.
    passes = 4 if config.model.remat == "full" else 3
    width = 2 if config.model.compute == "bfloat16" else 4
    shards = mesh.shape["tensor"] * mesh.shape["expert"]
    weights = structure.parameters * width / shards * passes * train.microbatches
    memory = (
        2 * compiled.get("arguments_bytes", 0) + 2 * compiled.get("temporaries_bytes", 0) + weights
    ) / chip.memory_rate
    ici = dcn = 0.0
    for one in (Collective(**found) for found in compiled.get("exchanges", ())):
        if slices > 1 and "data" in one.axes:
            dcn += one.sent / DCN_RATE
        else:
            ici += one.sent / (2 * chip.link_rate * len(one.axes))
    bound = max(compute, memory, ici, dcn)
    tokens = train.batch_size * train.seq_len
    days = train.steps * bound / 86400
    return {
        "flops_per_device": flops,
        "flops_per_device_causal_full": full,
        "compute_seconds": compute,
        "memory_seconds": memory,
        "ici_seconds": ici,
        "dcn_seconds": dcn,
        "step_seconds": bound,
        "mfu_causal_half": flops / peak / bound,
        "mfu_causal_full": full / peak / bound,
        "tokens_per_second": tokens / bound,
        "days": days,
        "chip_hours": days * 24 * n,
        "tokens": float(tokens * train.steps),
    }


REMATS: tuple[RematPolicy, ...] = ("none", "dots", "full")


def search(config: RunConfig, topology: str, slices: int = 1) -> list[Plan]:
    """A plan for each candidate mesh and remat policy, those that fit first, by the bound on their step time.

    Raises:
        UserError: see `plan`.
    """
    found = []
    with pod(topology, slices) as devices:
        every = candidates(config, len(devices), slices)
        for one in track(every, f"compiling {len(every)} candidates", console=Console(stderr=True)):
            found.append(planned(one, topology, devices, slices))
    return sorted(
        found, key=lambda one: (not one.fits, one.modelled["step_seconds"], one.compiled["memory_bytes"] or math.inf)
    )


def candidates(config: RunConfig, devices: int, slices: int = 1) -> list[RunConfig]:
    """Meshes that divide pod and model, with each remat policy: data joins the slices, fsdp takes what is left."""
    model, found = config.model, []
    experts = model.mixtures[0].experts if model.mixtures else 1
    powers = [2**n for n in range(12)]
    for tensor in (n for n in powers if n <= 16 and model.heads % n == 0):
        for expert in (n for n in powers if experts % n == 0 and n <= experts):
            fsdp, rest = divmod(devices, tensor * expert * slices)
            rows = config.train.batch_size // config.train.microbatches
            if rest or not fsdp or rows % (slices * fsdp * expert):
                continue
            mesh = MeshConfig(data=slices, fsdp=fsdp, tensor=tensor, expert=expert)
            for remat in REMATS:
                own = model.model_copy(update={"remat": remat})
                found.append(config.model_copy(update={"mesh": mesh, "model": own}))
    return found


def show(plan: Plan) -> None:
    """The report as tables."""
    console, chip, m = Console(), plan.compiled, plan.modelled
    mesh = " × ".join(f"{axis} {size}" for axis, size in plan.mesh.items()) or "one device"
    active = f", of which a token passes {plan.active_parameters:,}" if plan.active_parameters < plan.parameters else ""
    console.print(
        f"{plan.topology}: {plan.devices} devices as {mesh}, remat {plan.remat}", highlight=False, soft_wrap=True
    )
    console.print(
        f"{plan.parameters:,} parameters{active}; {plan.tokens_per_step:,} tokens a step",
        highlight=False,
        soft_wrap=True,
    )
    used, has = (chip["memory_bytes"] or math.inf) / 2**30, chip["available_bytes"] / 2**30
    verdict = "fits" if plan.fits else "does NOT fit"
    console.print(
        f"compiled in {chip['seconds']:.0f} s: {verdict}: {used:.1f} of {has:.1f} GiB a device", highlight=False
    )
    for line in plan.largest:
        console.print(f"  {line}", highlight=False, markup=False, soft_wrap=True)
    if not plan.fits:
        console.print(
            "try: mesh.fsdp or mesh.tensor larger, model.remat=full, train.microbatches, a smaller batch; --search",
            highlight=False,
            soft_wrap=True,
        )
    rows = [
        (kind, f"{chip[f'{kind}_bytes'] / 2**30:.2f} GiB")
        for kind in ("arguments", "temporaries", "output")
        if f"{kind}_bytes" in chip
    ]
    rows += (
        [("attention and expert kernels in the program", str(chip["kernel_calls"]))] if "kernel_calls" in chip else []
    )
    _table(console, "compiled, a device", ("memory", ""), rows)
    _table(console, "attention (chosen)", ("kind", "kernel"), list(plan.kernels.items()))
    _table(
        console,
        "compiled, sent by a device in one step",
        ("exchange", "mesh axes", "times", "MB"),
        [
            (e["kind"], ", ".join(e["axes"]), str(e["times"]), f"{e['sent'] / 1e6:,.1f}")
            for e in chip.get("exchanges", ())
        ],
    )
    if "exchanges" not in chip:
        return
    _table(
        console,
        "modelled, the least a step can take",
        ("bound by", "seconds"),
        [(kind, f"{m[f'{kind}_seconds']:.4f}") for kind in ("compute", "memory", "ici", "dcn", "step")],
    )
    _table(
        console,
        "modelled, at that bound",
        ("", ""),
        [
            ("FLOPs of a device and step, causal attention half", f"{m['flops_per_device']:.3e}"),
            ("the same, causal attention full", f"{m['flops_per_device_causal_full']:.3e}"),
            ("MFU, causal attention half", f"{m['mfu_causal_half']:.1%}"),
            ("MFU, causal attention full", f"{m['mfu_causal_full']:.1%}"),
            ("tokens per second", f"{m['tokens_per_second']:,.0f}"),
            (f"days for {m['tokens']:.3g} tokens", f"{m['days']:.2f}"),
            ("device-hours", f"{m['chip_hours']:,.0f}"),
        ],
    )


def show_search(plans: Sequence[Plan]) -> None:
    """One line a candidate."""
    rows = [
        (
            " × ".join(f"{axis} {size}" for axis, size in one.mesh.items()),
            one.remat,
            "yes" if one.fits else "no",
            f"{(one.compiled['memory_bytes'] or math.inf) / 2**30:.1f}",
            f"{one.modelled['step_seconds']:.3f}",
            f"{one.modelled['mfu_causal_half']:.1%}",
        )
        for one in plans
    ]
    _table(Console(), "candidates, best first", ("mesh", "remat", "fits", "GiB", "step ≥ s", "MFU ≤"), rows)


def _table(console: Console, title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    if rows:
        table = Table(*columns, title=title, title_justify="left", show_header=any(columns))
        for row in rows:
            table.add_row(*row)
        console.print(table)
