"""Search for the mesh and the rematerialisation policy with which a run is fastest on a pod."""

import contextlib
import math
from dataclasses import replace
from itertools import product

from rich.console import Console
from rich.progress import track

from t5x_lite.config import RunConfig
from t5x_lite.errors import UserError
from t5x_lite.models.remat_policy import LEAST_RECOMPUTATION_FIRST
from t5x_lite.parallel.config import MeshConfig
from t5x_lite.planner.plan import Plan, make_plan
from t5x_lite.planner.topology import Pod, find_pod

AXIS_SIZES = tuple(2**exponent for exponent in range(12))
LARGEST_TENSOR = 16
LARGEST_PIPELINE = 16
SHORTEST_CONTEXT_SHARD = 2048
"""Tokens of a row that each device along `context` holds at least."""
COMPILED_CANDIDATES = 6
"""Candidates that are compiled; each takes minutes."""


def search(config: RunConfig, topology: str, slices: int = 1) -> list[Plan]:
    """Plan the most promising meshes and rematerialisation policies; return those that fit first, then by step time.

    All candidates are ranked by formula. If there is a compiler, the best `COMPILED_CANDIDATES` are compiled. After a
    candidate that does not fit, the same mesh with full rematerialisation is next.

    Raises:
        UserError: see `make_plan`; no mesh divides the pod, the model and the batch.
    """
    config = config.of_stage(config.largest_stage)
    pod = find_pod(topology, slices)
    console = Console(stderr=True)
    ranked = _rank_by_formula(config, topology, slices, pod, console)
    if not pod.can_compile:
        return [plan for plan, _ in ranked]
    waiting = [candidate for _, candidate in ranked]
    plans = []
    for _ in track(range(min(COMPILED_CANDIDATES, len(waiting))), "compiling the best", console=console):
        candidate = waiting.pop(0)
        plan = make_plan(candidate, topology, slices, pod)
        plans.append(plan)
        if not plan.fits:
            waiting = _prefer_full_remat(waiting, candidate.mesh)
    return sorted(plans, key=_rank)


def _rank(plan: Plan) -> tuple[bool, float, float]:
    return not plan.fits, plan.modelled["step_seconds"], plan.memory_bytes


def _rank_by_formula(
    config: RunConfig, topology: str, slices: int, pod: Pod, console: Console
) -> list[tuple[Plan, RunConfig]]:
    """Return the candidates and their plans without compilation, the best first."""
    every_candidate = candidates(config, len(pod.devices), slices)
    pod_without_compiler = replace(pod, can_compile=False)
    planned = []
    for candidate in track(every_candidate, f"ranking {len(every_candidate)} candidates by formula", console=console):
        with contextlib.suppress(UserError):  # this mesh does not divide the batch or the layers
            plan = make_plan(candidate, topology, slices, pod_without_compiler)
            planned.append((plan, candidate))
    if not planned:
        raise UserError(f"--search: no mesh over {topology} divides model and batch; change train.batch_size")
    return sorted(planned, key=lambda pair: _rank(pair[0]))


def _prefer_full_remat(waiting: list[RunConfig], mesh: MeshConfig) -> list[RunConfig]:
    """Move the candidate of this mesh with full rematerialisation to the front."""
    return sorted(waiting, key=lambda candidate: (candidate.mesh, candidate.model.remat) != (mesh, "full"))


def candidates(config: RunConfig, devices: int, slices: int = 1) -> list[RunConfig]:
    """Return the config with every mesh that divides pod and model, and with every rematerialisation policy.

    `data` joins the slices, and `fsdp` takes the remaining devices of a slice. A shard of a row over `context` has at
    least `SHORTEST_CONTEXT_SHARD` tokens, and a pipeline stage has at least one repeat of the layer pattern.
    """
    model = config.model
    train = config.train
    experts = model.mixtures[0].experts if model.mixtures else 1
    pattern_repeats = 1 if model.first else math.gcd(model.layers, model.decoder_layers) // len(model.period)
    tensor_sizes = [size for size in AXIS_SIZES if size <= LARGEST_TENSOR and model.heads % size == 0]
    expert_sizes = [size for size in AXIS_SIZES if size <= experts and experts % size == 0]
    context_sizes = [size for size in AXIS_SIZES if size == 1 or train.seq_len // size >= SHORTEST_CONTEXT_SHARD]
    pipeline_sizes = [size for size in AXIS_SIZES if size <= LARGEST_PIPELINE and pattern_repeats % size == 0]
    rows_of_microbatch = train.batch_size // train.microbatches

    configs = []
    for tensor, expert, context, pipeline, remat in product(
        tensor_sizes, expert_sizes, context_sizes, pipeline_sizes, LEAST_RECOMPUTATION_FIRST
    ):
        fsdp, unused_devices = divmod(devices, tensor * expert * context * pipeline * slices)
        if unused_devices or fsdp == 0 or rows_of_microbatch % (slices * fsdp * expert):
            continue
        mesh = MeshConfig(data=slices, fsdp=fsdp, tensor=tensor, expert=expert, context=context, pipeline=pipeline)
        model_with_remat = model.model_copy(update={"remat": remat})
        configs.append(config.model_copy(update={"mesh": mesh, "model": model_with_remat}))
    return configs
