"""The plan of a run on a pod that is not here: its train step compiled by the real compiler, and a roofline.

Compiled figures (fit, memory, collectives) are the compiler's. Modelled figures (FLOPs, seconds) come from formulas and
published figures of the chips; they are bounds: no step is faster. Without a compiler all figures are modelled.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import jax
from jax.sharding import Mesh

from t5x_lite.config import RunConfig
from t5x_lite.errors import UserError
from t5x_lite.models.remat_policy import LEAST_RECOMPUTATION_FIRST, RematPolicy
from t5x_lite.models.sharding import MESH_AXES, mesh_axes, partition_spec
from t5x_lite.models.spec import model_spec
from t5x_lite.parallel.chips import CHIPS, Chip, chip_name
from t5x_lite.parallel.job_environment import GPU_MEMORY_FRACTION
from t5x_lite.parallel.mesh import check_sharded, make_mesh
from t5x_lite.planner.collectives import required_collectives, time_collectives
from t5x_lite.planner.compile import compile_train_step
from t5x_lite.planner.compiler_estimate import estimate_step
from t5x_lite.planner.example import example_lengths, with_vocab_of_tokenizer
from t5x_lite.planner.figures import CompiledFigures, EstimateFigures, ModelledFigures
from t5x_lite.planner.gpu_target import gpu_target
from t5x_lite.planner.memory import modelled_memory
from t5x_lite.planner.remat_choice import SHARE_OF_MEMORY, choose_remat
from t5x_lite.planner.roofline import roofline_bounds
from t5x_lite.planner.topology import Pod, find_pod
from t5x_lite.planner.workload import Workload
from t5x_lite.train.mesh_checks import check_mesh
from t5x_lite.train.state import TrainState
from t5x_lite.train.steps import make_steps

RESERVED = 0.02
"""Share of a device's memory that the runtime reserves for itself."""
LANES = 128
"""A TPU stores the last axis of an array in rows of so many values (Austin et al. 2025, part 2)."""


@dataclass(frozen=True)
class Plan:
    """The report on one config and one topology. Bytes and seconds are of one device and one step.

    Attributes:
        topology: the pod, with the number of its slices.
        devices: number of devices.
        mesh: sizes of the mesh axes that are larger than 1.
        microbatches: `train.microbatches`.
        data_reduction: `train.data_reduction`.
        width: `model.embed`.
        requested_remat: `model.remat`.
        remat: the policy: another one where `auto` was requested.
        fits: whether the step fits into the memory of a device.
        available_bytes: memory of a device without what the runtime reserves.
        parameters: number of parameters.
        active_parameters: number of parameters that are used per token.
        tokens_per_step: tokens of a global batch.
        kernels: the attention kernel of each kind of attention.
        compiled: figures of the compiler; empty if it was not asked.
        estimate: the time of a step by the compiler's cost model; empty without one.
        modelled: figures by formula; `mfu_causal_half` counts half of causal attention, as training does, and
            `mfu_causal_full` all of it.
        largest: the largest buffers of a program that does not fit.
    """

    topology: str
    devices: int
    mesh: dict[str, int]
    microbatches: int
    data_reduction: str
    width: int
    requested_remat: str
    remat: str
    fits: bool
    available_bytes: float
    parameters: int
    active_parameters: int
    tokens_per_step: int
    kernels: dict[str, str]
    compiled: CompiledFigures
    estimate: EstimateFigures
    modelled: ModelledFigures
    largest: list[str]

    @property
    def memory_bytes(self) -> float:
        """Peak memory of a device: the compiler's figure if there is one, infinite if the compiler gives none."""
        return _peak_memory(self.compiled, self.modelled)

    @property
    def width_shards(self) -> int:
        """Number of shards of the width of the weights."""
        sizes = {axis: self.mesh.get(axis, 1) for axis in MESH_AXES}
        return math.prod(sizes[axis] for axis in mesh_axes(partition_spec(sizes, ("embed",), (self.width,))))

    @property
    def is_aligned(self) -> bool:
        """True if the shards of the width are whole rows of a TPU's memory; it gathers no others."""
        return self.width_shards == 1 or self.width % (self.width_shards * LANES) == 0


def make_plan(config: RunConfig, topology: str, slices: int = 1, pod: Pod | None = None) -> Plan:
    """Compile the train step of a config for a topology, or estimate it by formula if the pod cannot compile.

    Of a run with stages (`data.schedule`) it is that of the largest stage. With `model.remat: auto` it is that with the
    least recomputation whose program takes at most `SHARE_OF_MEMORY` of a device.

    Args:
        config: the run.
        topology: the pod; see `find_pod`.
        slices: number of slices of that topology.
        pod: the devices of the topology, if they are known already.

    Raises:
        UserError: see `find_pod`; the mesh does not fill the pod; the model has no vocabulary.
    """
    pod = pod or find_pod(topology, slices)
    mesh = make_mesh(config.mesh, list(pod.devices))
    check_mesh(mesh, config, pod.platform)
    config = with_vocab_of_tokenizer(config.of_stage(config.largest_stage))
    available_bytes = SHARE_OF_MEMORY * chip_of(pod.device_kind).memory
    if config.model.remat != "auto":
        return _plan_policy(config, mesh, pod, topology, slices)
    first = choose_remat(config, mesh, pod.platform, available_bytes)

    def plan_policy(policy: RematPolicy) -> Plan:
        return _plan_policy(config.replace_model(remat=policy), mesh, pod, topology, slices)

    plan = plan_least_recomputation(plan_policy, first, available_bytes, pod)
    return replace(plan, requested_remat="auto")


def plan_least_recomputation(
    plan_policy: Callable[[RematPolicy], Plan], first: RematPolicy, available_bytes: float, pod: Pod
) -> Plan:
    """Plan the policy that fits by formula; then those before it while they fit, or those after it until one does.

    Without a compiler there is nothing but the formula.
    """
    plan = plan_policy(first)
    place = LEAST_RECOMPUTATION_FIRST.index(first)
    if not pod.can_compile:
        return plan
    if plan.memory_bytes <= available_bytes:
        for policy in reversed(LEAST_RECOMPUTATION_FIRST[:place]):
            other = plan_policy(policy)
            if other.memory_bytes > available_bytes:
                break
            plan = other
        return plan
    for policy in LEAST_RECOMPUTATION_FIRST[place + 1 :]:
        plan = plan_policy(policy)
        if plan.memory_bytes <= available_bytes:
            break
    return plan


def _plan_policy(config: RunConfig, mesh: Mesh, pod: Pod, topology: str, slices: int) -> Plan:
    """Plan a config whose policy of rematerialisation is known."""
    kernels = check_mesh(mesh, config, pod.platform)
    lengths = example_lengths(config)
    spec = model_spec(config.model, config.method.surgery).with_blank_characters(config.model)
    check_sharded(mesh, spec.axes, spec.shapes)
    workload = Workload(config, spec, lengths, mesh)
    compiled: CompiledFigures = {}
    largest_buffers: list[str] = []
    with jax.set_mesh(mesh):
        steps = make_steps(config, spec, mesh)
        if pod.can_compile:
            chip = chip_of(pod.device_kind)
            compiled, largest_buffers = compile_train_step(config, steps, mesh, chip, slices)
    plan = describe_plan(workload, steps.state, kernels, pod, topology, slices, compiled)
    return replace(plan, fits=plan.fits and not largest_buffers, largest=largest_buffers)


def describe_plan(
    workload: Workload,
    state: TrainState,
    kernels: dict[str, str],
    pod: Pod,
    topology: str,
    slices: int,
    compiled: CompiledFigures | None = None,
) -> Plan:
    """Return the plan of a train step from formulas, and from what the compiler reports where it was asked.

    Args:
        workload: the train step.
        state: shapes and shardings of the train state.
        kernels: the attention kernel of each kind of attention.
        pod: the devices.
        topology: their name.
        slices: number of slices of that topology.
        compiled: figures of the compiler.

    Raises:
        UserError: there are no published figures of the devices.
    """
    compiled = compiled or {}
    config = workload.config
    chip = chip_of(pod.device_kind)
    modelled = _model_figures(workload, state, chip, pod.platform, slices, compiled)
    available_bytes = chip.memory * (1 - RESERVED)
    if pod.platform == "gpu":
        # JAX takes its share of what the driver reports, which differs from the maker's figure.
        available_bytes = min(available_bytes, gpu_target(pod.device_kind).memory * GPU_MEMORY_FRACTION)
    return Plan(
        topology=f"{slices} x {topology}" if slices > 1 else topology,
        devices=workload.mesh.size,
        mesh={axis: size for axis, size in workload.mesh.shape.items() if size > 1},
        microbatches=config.train.microbatches,
        data_reduction=config.train.data_reduction,
        width=config.model.embed,
        requested_remat=config.model.remat,
        remat=config.model.remat,
        fits=_peak_memory(compiled, modelled) <= available_bytes,
        available_bytes=available_bytes,
        parameters=workload.spec.parameters,
        active_parameters=workload.spec.active_parameters,
        tokens_per_step=config.train.batch_size * config.train.seq_len,
        kernels=kernels,
        compiled=compiled,
        estimate=estimate_step(workload, chip, compiled, modelled),
        modelled=modelled,
        largest=[],
    )


def _peak_memory(compiled: CompiledFigures, modelled: ModelledFigures) -> float:
    if not compiled:
        return modelled["memory_bytes"]
    return compiled["memory_bytes"] or math.inf


def chip_of(device_kind: str) -> Chip:
    """Return the published figures of a device.

    Raises:
        UserError: there are none.
    """
    name = chip_name(device_kind)
    if name is None:
        raise UserError(f"plan has no published figures of {device_kind}; it has those of {', '.join(CHIPS)}")
    return CHIPS[name]


def _model_figures(
    workload: Workload, state: TrainState, chip: Chip, platform: str, slices: int, compiled: CompiledFigures
) -> ModelledFigures:
    """Compute all figures by formula; time is bounded by the compiled memory and collectives if there are any."""
    memory = modelled_memory(workload, state, platform)
    collectives = time_collectives(required_collectives(workload, slices), workload.mesh, chip)
    if "collectives" in compiled:
        used_bytes: float = compiled["arguments_bytes"] + compiled["temporaries_bytes"]
        roofline = roofline_bounds(workload, chip, used_bytes, compiled["collectives"])
    else:
        roofline = roofline_bounds(workload, chip, memory["memory_bytes"], collectives)
    return {**memory, "collectives": collectives, **roofline}
