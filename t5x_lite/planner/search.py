"""Search for the mesh, the microbatches, their reduction and the rematerialisation with which a run is fastest."""

import contextlib
import math
from collections.abc import Iterator, Sequence
from itertools import groupby, product

import jax
from rich.console import Console
from rich.progress import track

from t5x_lite.config import RunConfig
from t5x_lite.data.stages import Stage
from t5x_lite.errors import UserError
from t5x_lite.models.remat_policy import LEAST_RECOMPUTATION_FIRST
from t5x_lite.models.spec import ModelSpec, model_spec
from t5x_lite.parallel.config import MeshConfig
from t5x_lite.parallel.mesh import check_sharded, make_mesh
from t5x_lite.planner.example import example_lengths, with_vocab_of_tokenizer
from t5x_lite.planner.memory import cautious_bytes
from t5x_lite.planner.plan import LANES, Plan, chip_of, describe_plan, make_plan
from t5x_lite.planner.remat_choice import SHARE_OF_MEMORY
from t5x_lite.planner.topology import Pod, find_pod
from t5x_lite.planner.workload import Workload
from t5x_lite.train.mesh_checks import check_mesh
from t5x_lite.train.steps import make_steps

AXIS_SIZES = tuple(2**exponent for exponent in range(12))
LARGEST_TENSOR = 16
LARGEST_PIPELINE = 16
SHORTEST_CONTEXT_SHARD = 2048
"""Tokens of a row that each device along `context` holds at least."""
MICROBATCHES = (1, 2, 4, 8, 16, 32)
"""Values of `train.microbatches` that are tried beside that of the config."""
COMPILED_CANDIDATES = 6
"""Candidates that are compiled; each takes minutes."""


def search(config: RunConfig, topology: str, slices: int = 1, pod: Pod | None = None) -> list[Plan]:
    """Plan the most promising candidates; return the plans of those that fit first, then by step time.

    All candidates are ranked by formula. If there is a compiler, the best `COMPILED_CANDIDATES` are compiled. After a
    candidate that does not fit, the same mesh with full rematerialisation is next.

    Raises:
        UserError: see `make_plan`; no mesh divides the pod, the model and the batch.
    """
    pod = pod or find_pod(topology, slices)
    config = with_vocab_of_tokenizer(config)
    example_lengths(config)  # raises if the vocabulary is not known
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
    return sorted(plans, key=lambda plan: _rank(plan, pod, fits=plan.fits))


def _rank(plan: Plan, pod: Pod, *, fits: bool) -> tuple[bool, float, bool, float, float]:
    """Return what plans are sorted by: fit, time of a step, shards that a TPU gathers, time of collectives, memory.

    The time of a step is that which the compiler estimates, if it does.
    """
    modelled = plan.modelled
    seconds = plan.estimate.get("step_seconds", modelled["step_seconds"])
    step_seconds = float(f"{seconds:.3g}")  # times that differ by rounding alone are equal
    collective_seconds = modelled["ici_seconds"] + modelled["dcn_seconds"]
    sums_instead_of_gathering = pod.platform == "tpu" and not plan.is_aligned
    return not fits, step_seconds, sums_instead_of_gathering, collective_seconds, plan.memory_bytes


def _rank_by_formula(
    config: RunConfig, topology: str, slices: int, pod: Pod, console: Console
) -> list[tuple[Plan, RunConfig]]:
    """Return the candidates and their plans without compilation, the best first.

    A candidate that is to be compiled fits if it does by the cautious formula.
    """
    spec = model_spec(config.model, config.method.surgery).with_blank_characters(config.model)
    every_candidate = []
    for candidate in candidates(config.of_stage(config.largest_stage), len(pod.devices), slices):
        if all(_divides(candidate, stage) for stage in config.stages):
            every_candidate.append(candidate)
    meshes = [list(of_mesh) for _, of_mesh in groupby(every_candidate, key=lambda candidate: candidate.mesh)]
    planned: list[tuple[Plan, RunConfig]] = []
    description = f"ranking {len(every_candidate)} candidates by formula"
    for of_mesh in track(meshes, description, console=console):
        planned += _plan_mesh(of_mesh, spec, topology, slices, pod)
    if not planned:
        raise UserError(f"--search: no mesh over {topology} divides model and batch; change train.batch_size")
    limit_bytes = SHARE_OF_MEMORY * chip_of(pod.device_kind).memory

    def rank(pair: tuple[Plan, RunConfig]) -> tuple[bool, float, bool, float, float]:
        plan, _ = pair
        fits = cautious_bytes(plan.modelled) <= limit_bytes if pod.can_compile else plan.fits
        return _rank(plan, pod, fits=fits)

    return sorted(planned, key=rank)


def _divides(candidate: RunConfig, stage: Stage) -> bool:
    """Return whether a mesh and its microbatches divide the batches of a stage."""
    mesh = candidate.mesh
    parts = candidate.train.microbatches * mesh.data * mesh.fsdp * mesh.expert
    return stage.batch_size % parts == 0 and stage.seq_len % mesh.context == 0


def _plan_mesh(
    of_mesh: Sequence[RunConfig], spec: ModelSpec, topology: str, slices: int, pod: Pod
) -> Iterator[tuple[Plan, RunConfig]]:
    """Yield candidates of one mesh and their plans by formula; those that the mesh does not suit are left out."""
    with contextlib.suppress(UserError):
        mesh = make_mesh(of_mesh[0].mesh, list(pod.devices))
        check_sharded(mesh, spec.axes, spec.shapes)
        check_mesh(mesh, of_mesh[0], pod.platform)
        with jax.set_mesh(mesh):
            state = make_steps(of_mesh[0], spec, mesh).state
        for candidate in of_mesh:
            with contextlib.suppress(UserError):
                kernels = check_mesh(mesh, candidate, pod.platform)
                workload = Workload(candidate, spec, example_lengths(candidate), mesh)
                yield describe_plan(workload, state, kernels, pod, topology, slices), candidate


def _prefer_full_remat(waiting: list[RunConfig], mesh: MeshConfig) -> list[RunConfig]:
    """Move the candidate of this mesh with full rematerialisation to the front."""
    return sorted(waiting, key=lambda candidate: (candidate.mesh, candidate.model.remat) != (mesh, "full"))


def candidates(config: RunConfig, devices: int, slices: int = 1) -> list[RunConfig]:
    """Return the config with every mesh that divides pod and model, all microbatches and rematerialisation policies.

    `data` joins the slices, and `fsdp` takes the remaining devices of a slice, or with `context` no more than the width
    has rows of `LANES` values, and `data` the rest. A shard of a row over `context` has at least
    `SHORTEST_CONTEXT_SHARD` tokens, and a pipeline stage has at least one repeat of the layer pattern. Candidates of
    one mesh follow each other.

    Where `data` has several replicas and a step several microbatches, both values of `train.data_reduction` are tried,
    if the run can have both.
    """
    model = config.model
    train = config.train
    experts = model.mixtures[0].experts if model.mixtures else 1
    pattern_repeats = 1 if model.first else math.gcd(model.layers, model.decoder_layers) // len(model.period)
    # Where `tensor` does not divide the key heads, each of its devices would compute the attention of all heads.
    tensor_sizes = [size for size in AXIS_SIZES if size <= LARGEST_TENSOR and model.kv_heads % size == 0]
    expert_sizes = [size for size in AXIS_SIZES if size <= experts and experts % size == 0]
    context_sizes = [size for size in AXIS_SIZES if size == 1 or train.seq_len // size >= SHORTEST_CONTEXT_SHARD]
    pipeline_sizes = [size for size in AXIS_SIZES if size <= LARGEST_PIPELINE and pattern_repeats % size == 0]
    microbatch_counts = sorted({train.microbatches, *MICROBATCHES})
    every_reduction = _possible_reductions(config)

    configs = []
    for tensor, expert, context, pipeline in product(tensor_sizes, expert_sizes, context_sizes, pipeline_sizes):
        shards, unused_devices = divmod(devices, tensor * expert * context * pipeline * slices)
        if unused_devices or shards == 0:
            continue
        for fsdp in sorted({shards, math.gcd(shards, model.embed // (context * LANES))}, reverse=True):
            data = slices * shards // fsdp
            mesh = MeshConfig(data=data, fsdp=fsdp, tensor=tensor, expert=expert, context=context, pipeline=pipeline)
            for microbatches in microbatch_counts:
                if train.batch_size % (microbatches * data * fsdp * expert):
                    continue
                reductions = every_reduction if data > 1 and microbatches > 1 else (train.data_reduction,)
                for remat, reduction in product(LEAST_RECOMPUTATION_FIRST, reductions):
                    accumulation = {"microbatches": microbatches, "data_reduction": reduction}
                    settings = {
                        "mesh": mesh,
                        "train": train.model_copy(update=accumulation),
                        "model": model.model_copy(update={"remat": remat}),
                    }
                    configs.append(config.model_copy(update=settings))
    return configs


def _possible_reductions(config: RunConfig) -> tuple[str, ...]:
    """Return the values of `train.data_reduction` that the loss of the run allows."""
    once = config.train.model_copy(update={"data_reduction": "step"})
    has_problem = any(config.model_copy(update={"train": once}).problems())
    return ("microbatch",) if has_problem else ("microbatch", "step")
