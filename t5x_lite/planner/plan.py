"""What a run would be on a pod, without one: its train step compiled by the real TPU compiler, and a roofline.

For GPUs, which no compiler is here for, the same report from formulas alone.

What is *compiled* (fit, memory, exchanges) is the compiler's word; what is *modelled* (FLOPs, seconds) is arithmetic on
published figures of the chips, and a bound: no step is faster.
"""

import contextlib
import importlib.util
import math
import re
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import product
from typing import Any

import jax
import numpy as np
from jax.experimental import topologies
from jax.sharding import Mesh
from rich.console import Console
from rich.progress import track

from t5x_lite.config import GPUS, MeshConfig, RunConfig
from t5x_lite.errors import UserError
from t5x_lite.models.config import ModelConfig, RematPolicy
from t5x_lite.models.transformer import model_spec
from t5x_lite.objectives.objective import ExampleContext, TokenRow, Vocabulary
from t5x_lite.parallel import mesh as meshes
from t5x_lite.parallel.chips import Chip
from t5x_lite.planner.hlo import find_collectives
from t5x_lite.planner.libtpu import involuntary_reshards
from t5x_lite.planner.roofline import (
    RESERVED,
    chip_of,
    modelled_memory,
    required_collectives,
    roofline_bounds,
    with_links,
)
from t5x_lite.progress import print_line, print_table
from t5x_lite.train.health import check_sharded
from t5x_lite.train.setup import Steps, check_mesh, make_steps

LANES = 128
"""A TPU lays the last axis of an array in rows of so many numbers (Austin et al. 2025, part 2)."""
SENT_AT_MOST = 1.2
"""Beyond this multiple of what the mesh must send, the report says so."""


@dataclass(frozen=True)
class Plan:
    """The report of one config on one topology; bytes and seconds are of one device and one step.

    `compiled` holds the compiler's figures (none for GPUs that are not here), `modelled` those from formulas;
    `mfu_causal_half` counts causal attention half, as training does, `mfu_causal_full` whole.
    """

    topology: str
    devices: int
    mesh: dict[str, int]
    width: int
    remat: str
    fits: bool
    available_bytes: float
    parameters: int
    active_parameters: int
    tokens_per_step: int
    kernels: dict[str, str]
    compiled: dict[str, Any]
    modelled: dict[str, Any]
    largest: list[str]

    @property
    def memory_bytes(self) -> float:
        """What a device holds at most: the compiler's figure where there is one."""
        return (self.compiled or self.modelled).get("memory_bytes") or math.inf


@dataclass(frozen=True)
class Pod:
    """Devices to plan for, and what they are: others stand in for GPUs that are not here, which `compiles` denies."""

    devices: Sequence[Any]
    device_kind: str
    platform: str
    compiles: bool = True


def pod_of(topology: str, slices: int) -> Pod:
    """The devices of a pod that is not here.

    Raises:
        UserError: libtpu is not installed, or does not know the topology; GPUs without their number.
    """
    name, _, count = topology.partition(":")
    if kind := GPUS.get(name.lower()):
        if not count.isdigit() or not int(count):
            raise UserError(f"--topology {topology}: write the number of GPUs, for example {name}:8")
        here = [one for one in jax.devices() if one.device_kind.startswith(kind)]
        if len(here) == int(count):
            return Pod(here, here[0].device_kind, "gpu")
        return Pod(jax.devices("cpu")[: int(count)], kind, "gpu", compiles=False)
    if importlib.util.find_spec("libtpu") is None:
        raise UserError("plan needs the TPU compiler: pip install 't5x_lite[tpu]'")
    joined = {"num_slices": slices} if slices > 1 else {}
    whole = {"chip_config_name": "megacore"} if topology.startswith("v4") else {}  # one device a chip, as JAX has it
    try:
        found: Any = topologies.get_topology_desc(topology, "tpu", **joined, **whole).devices
    except Exception as error:  # libtpu has no narrower one
        raise UserError(
            f"--topology {topology}: not known to libtpu: {str(error).splitlines()[0]}; write for example v5p:4x4x4, "
            "v5e:16x16, v6e:8x8, or h100:64"
        ) from None
    return Pod(found, found[0].device_kind, found[0].platform)


def plan(config: RunConfig, topology: str, slices: int = 1, pod: Pod | None = None) -> Plan:
    """Compile the config's train step for a topology, or for its `pod`; for GPUs that are not here, estimate it.

    Raises:
        UserError: see `pod_of`; a mesh that does not fill the pod; a model without a vocabulary.
    """
    pod = pod or pod_of(topology, slices)
    mesh, chip = meshes.make_mesh(config.mesh, list(pod.devices)), chip_of(pod.device_kind)
    kernels, structure = check_mesh(mesh, config, pod.platform), model_spec(config.model, config.method.surgery)
    check_sharded(structure, mesh)
    lengths = config.require_objective().lengths(example_context(config.model, config.train.seq_len))
    with jax.set_mesh(mesh):
        steps = make_steps(config, structure, mesh)
        compiled = _compiled(config, steps, mesh, chip, slices) if pod.compiles else {}
    largest = compiled.pop("largest", [])
    modelled = modelled_memory(config, steps.state, lengths, mesh, pod.platform)
    modelled["exchanges"] = with_links(required_collectives(config, structure, lengths, mesh), mesh, chip, slices)
    figures = compiled if "exchanges" in compiled else modelled  # of a program that does not fit there are few
    modelled |= roofline_bounds(config, structure, lengths, mesh, chip, figures)
    available = chip.memory * (1 - RESERVED)
    return Plan(
        topology=f"{slices} x {topology}" if slices > 1 else topology,
        devices=mesh.size,
        mesh={axis: size for axis, size in mesh.shape.items() if size > 1},
        width=config.model.embed,
        remat=config.model.remat,
        fits=not largest and (compiled or modelled)["memory_bytes"] <= available,
        available_bytes=available,
        parameters=structure.parameters,
        active_parameters=structure.active_parameters,
        tokens_per_step=config.train.batch_size * config.train.seq_len,
        kernels=kernels,
        compiled=compiled,
        modelled=modelled,
        largest=largest,
    )


def _compiled(config: RunConfig, steps: Steps, mesh: Mesh, chip: Chip, slices: int) -> dict[str, Any]:
    """The compiler's word on memory and exchanges; where the program does not fit, its size and largest buffers."""
    started = time.perf_counter()
    try:
        shapes = meshes.batch_shapes(mesh, example_features(config), config.train.batch_size)
        before = len(involuntary_reshards())
        program = steps.train.lower(steps.state, shapes).compile()  # type: ignore[attr-defined]
        memory, text = program.memory_analysis(), program.as_text()
        compiled = {
            "arguments_bytes": memory.argument_size_in_bytes,
            "temporaries_bytes": memory.temp_size_in_bytes,
            "output_bytes": memory.output_size_in_bytes - memory.alias_size_in_bytes,
            "kernel_calls": len(re.findall(r'custom_call_target="(?:tpu_custom_call|__cudnn\$fmha)', text)),
            "involuntary_reshards": involuntary_reshards()[before:],
            "exchanges": with_links(find_collectives(text, mesh.shape, slices), mesh, chip, slices),
        }
        compiled["memory_bytes"] = sum(compiled[f"{kind}_bytes"] for kind in ("arguments", "temporaries", "output"))
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        compiled = _exhausted(str(error))
    return compiled | {"seconds": round(time.perf_counter() - started, 1)}


def example_context(model: ModelConfig, length: int) -> ExampleContext:
    """The task of a model whose tokenizer is not there: a vocabulary that has every special token.

    Raises:
        UserError: `model.vocab` is not given.
    """
    if (size := model.vocab) is None:
        raise UserError("plan needs `model.vocab`: the size of a tokenizer that is not trained yet is not known")
    names = ("[CLS]", "[SEP]", "[MASK]", "<s>", "</s>", "[R]", "[S]", "[X]", "<unk>", "<pad>")
    special = np.arange(size) < len(names)
    named = {name: number for number, name in enumerate(names)}
    sentinels = tuple(range(size - 1, max(size - 101, size // 2), -1))
    words = np.ones(size, bool)
    frequency = np.full(size, 1 / size)
    vocabulary = Vocabulary(size, 1, named, sentinels, special, words, frequency)
    return ExampleContext(length, vocabulary, model.family)


def example_features(config: RunConfig) -> Any:
    """One row of features of the config's objective, for their shapes and types."""
    task, objective = example_context(config.model, config.train.seq_len), config.require_objective()
    length = objective.row_length(task)
    ones = np.ones(length, np.int32)
    halves = (np.arange(length) >= length // 2).astype(np.int32)
    row = TokenRow(ones * 20, ones, halves)
    return objective.example(replace(row, second_sentence=row), task, np.random.default_rng(0))


def _exhausted(message: str) -> dict[str, Any]:
    """What the compiler says of a program that does not fit: its size, and the largest buffers."""
    used = re.search(r"(?:Used |temporaries \()([\d.]+)([KMGT])", message)
    size = float(used[1]) * 2 ** {"K": 10, "M": 20, "G": 30, "T": 40}[used[2]] if used else None
    largest = []
    for block in re.split(r"\n\s*\d+\. (?=Size: )", message)[1:4]:
        parts = [re.search(pattern, block) for pattern in (r"Size: (\S+)", r"Shape: (\S+)", r'op_name="(.*?)"')]
        largest.append(" ".join(part[1] for part in parts if part))
    return {"memory_bytes": size, "largest": largest or [message.splitlines()[0][:200]]}


REMATS: tuple[RematPolicy, ...] = ("none", "dots", "full")
POWERS = [2**n for n in range(12)]
COMPILED = 6
"""Candidates of a search that are compiled: minutes each."""


def search(config: RunConfig, topology: str, slices: int = 1) -> list[Plan]:
    """Plans of the best candidate meshes and remat policies, those that fit first, by the bound on their step time.

    All are ranked by formula; where there is a compiler, the first `COMPILED` are compiled, and where one does not fit,
    next the same mesh with full rematerialisation.

    Raises:
        UserError: see `plan`; no mesh divides the pod, the model and the batch.
    """

    def rank(one: Plan) -> tuple[bool, float, float]:
        return not one.fits, one.modelled["step_seconds"], one.memory_bytes

    pod, console, modelled = pod_of(topology, slices), Console(stderr=True), []
    every = candidates(config, len(pod.devices), slices)
    for one in track(every, f"ranking {len(every)} candidates by formula", console=console):
        with contextlib.suppress(UserError):  # a mesh that does not divide the batch or the layers
            modelled.append((plan(one, topology, slices, replace(pod, compiles=False)), one))
    if not modelled:
        raise UserError(f"--search: no mesh over {topology} divides model and batch; change train.batch_size")
    best = sorted(modelled, key=lambda pair: rank(pair[0]))
    if not pod.compiles:
        return [one for one, _ in best]
    waiting, compiled = [one for _, one in best], []
    for _ in track(range(min(COMPILED, len(waiting))), "compiling the best", console=console):
        one = waiting.pop(0)
        compiled.append(plan(one, topology, slices, pod))
        if not compiled[-1].fits:
            waiting.sort(key=lambda other: (other.mesh, other.model.remat) != (one.mesh, "full"))
    return sorted(compiled, key=rank)


def candidates(config: RunConfig, devices: int, slices: int = 1) -> list[RunConfig]:
    """Meshes that divide pod and model, with each remat policy: data joins the slices, fsdp takes what is left.

    A row is cut over `context` into parts of 2048 tokens at least; stages are of one repeat of the pattern at least.
    """
    model, train, found = config.model, config.train, []
    experts = model.mixtures[0].experts if model.mixtures else 1
    repeats = math.gcd(model.layers, model.layers_of_decoder) // len(model.pattern)
    choices = (
        [n for n in POWERS if n <= 16 and model.heads % n == 0],
        [n for n in POWERS if experts % n == 0 and n <= experts],
        [n for n in POWERS if n == 1 or train.seq_len // n >= 2048],
        [n for n in POWERS if n <= 16 and repeats % n == 0],
    )
    for tensor, expert, context, pipeline, remat in product(*choices, REMATS):
        fsdp, rest = divmod(devices, tensor * expert * context * pipeline * slices)
        if rest or not fsdp or train.batch_size // train.microbatches % (slices * fsdp * expert):
            continue
        mesh = MeshConfig(data=slices, fsdp=fsdp, tensor=tensor, expert=expert, context=context, pipeline=pipeline)
        own = model.model_copy(update={"remat": remat})
        found.append(config.model_copy(update={"mesh": mesh, "model": own}))
    return found


def show(plan: Plan) -> None:
    """The report as tables."""
    console, c, m = Console(), plan.compiled, plan.modelled
    mesh = " × ".join(f"{axis} {size}" for axis, size in plan.mesh.items()) or "one device"
    active = f", of which a token passes {plan.active_parameters:,}" if plan.active_parameters < plan.parameters else ""
    print_line(console, f"{plan.topology}: {plan.devices} devices as {mesh}, remat {plan.remat}")
    print_line(console, f"{plan.parameters:,} parameters{active}; {plan.tokens_per_step:,} tokens a step")
    how = f"compiled in {c['seconds']:.0f} s" if c else "modelled, not compiled: these devices are not here"
    used, has = plan.memory_bytes / 2**30, plan.available_bytes / 2**30
    print_line(console, f"{how}: {'fits' if plan.fits else 'does NOT fit'}: {used:.1f} of {has:.1f} GiB a device")
    for line in plan.largest:
        print_line(console, f"  {line}")
    if not plan.fits:
        larger = "mesh.fsdp or mesh.tensor larger"
        print_line(console, f"try: {larger}, model.remat=full, train.microbatches, a smaller batch; --search")
    for figures, name in ((c, "compiled"), (m, "modelled")):
        kinds = ("arguments", "temporaries", "output", "state", "gradients", "activations")
        sizes = [(kind, figures[f"{kind}_bytes"]) for kind in kinds if f"{kind}_bytes" in figures]
        print_table(console, f"{name}, a device", ("memory", "GiB"), [(kind, f"{n / 2**30:.2f}") for kind, n in sizes])
    print_table(console, "attention (chosen)", ("kind", "kernel"), list(plan.kernels.items()))
    if "kernel_calls" in c:
        print_line(console, f"{c['kernel_calls']} calls of attention and expert kernels in the compiled program")
    for line in c.get("involuntary_reshards", ()):
        print_line(console, f"the compiler could not lay out anew, and made whole on every device: {line}")
    for figures, name in ((c, "compiled, sent"), (m, "modelled, must be sent")):
        sent = [
            (e["kind"], ", ".join(e["axes"]), str(e["times"]), e["link"], f"{e['sent'] / 1e6:,.1f}")
            for e in figures.get("exchanges", ())
        ]
        print_table(console, f"{name} by a device in one step", ("exchange", "mesh axes", "times", "link", "MB"), sent)
    if plan.largest:
        return
    total, needed = (sum(one["sent"] for one in figures.get("exchanges", ())) for figures in (c, m))
    if (times := total / max(needed, 1)) > SENT_AT_MOST:
        print_line(console, f"sent: {times:.1f} times what the mesh must send{_unaligned(plan)}")
    least = [(kind, f"{m[f'{kind}_seconds']:.4f}") for kind in ("compute", "memory", "ici", "dcn", "step")]
    print_table(console, "modelled, the least a step can take", ("bound by", "seconds"), least)
    reached = [
        ("FLOPs of a device and step, causal attention half", f"{m['flops_per_device']:.3e}"),
        ("the same, causal attention full", f"{m['flops_per_device_causal_full']:.3e}"),
        ("MFU, causal attention half", f"{m['mfu_causal_half']:.1%}"),
        ("MFU, causal attention full", f"{m['mfu_causal_full']:.1%}"),
        ("tokens per second", f"{m['tokens_per_second']:,.0f}"),
        (f"days for {m['tokens']:.3g} tokens", f"{m['days']:.2f}"),
        ("device-hours", f"{m['chip_hours']:,.0f}"),
    ]
    print_table(console, "modelled, at that bound", ("", ""), reached)


def _unaligned(plan: Plan) -> str:
    part, odd = divmod(plan.width, plan.mesh.get("fsdp", 1))
    if odd or part % LANES == 0:
        return ""
    return (
        f": the parts of the width, {plan.width}/{plan.mesh['fsdp']} = {part}, are no multiple of {LANES}, so a TPU "
        "sums padded arrays instead of gathering them; try a smaller mesh.fsdp and a larger mesh.data"
    )


def show_search(plans: Sequence[Plan]) -> None:
    """One line a candidate."""
    rows = [
        (
            " × ".join(f"{axis} {size}" for axis, size in one.mesh.items()),
            one.remat,
            "yes" if one.fits else "no",
            f"{one.memory_bytes / 2**30:.1f}",
            f"{one.modelled['step_seconds']:.3f}",
            f"{one.modelled['mfu_causal_half']:.1%}",
        )
        for one in plans
    ]
    print_table(Console(), "candidates, best first", ("mesh", "remat", "fits", "GiB", "step ≥ s", "MFU ≤"), rows)
