"""Arithmetic on published figures of chips: the least that a step needs, and what it holds and sends."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import jax
from jax.sharding import Mesh

from t5x_lite.config import RunConfig
from t5x_lite.errors import UserError
from t5x_lite.models.components import GLU, MoE
from t5x_lite.models.experts.config import Capacity
from t5x_lite.models.losses import logits_limit
from t5x_lite.models.stack import pipeline_parts
from t5x_lite.models.transformer import ModelSpec
from t5x_lite.objectives.objective import ExampleLengths
from t5x_lite.parallel.chips import CHIPS, Chip, chip_name
from t5x_lite.parallel.mesh import batch_shards
from t5x_lite.planner.hlo import Collective
from t5x_lite.train.metrics import flops_per_row

RESERVED = 0.02
"""Share of the memory that the runtime keeps for itself."""


def chip_of(device_kind: str) -> Chip:
    """The figures of a device by the beginning of its name in JAX.

    Raises:
        UserError: there are none.
    """
    if (name := chip_name(device_kind)) is None:
        raise UserError(f"plan has no published figures of {device_kind}; known are {', '.join(CHIPS)}")
    return CHIPS[name]


def with_links(sent: Sequence[Collective], mesh: Mesh, chip: Chip, slices: int) -> list[dict[str, Any]]:
    """Exchanges as rows of the report, each with its link: inside a slice or the host of a GPU, or beyond it."""
    sizes = list(mesh.shape.values())

    def link(axes: Sequence[str]) -> str:
        if chip.host is None:
            return "DCN" if slices > 1 and "data" in axes else "ICI"
        far = any(math.prod(sizes[n:]) > chip.host for n, axis in enumerate(mesh.shape) if axis in axes)
        return "network" if far else "NVLink"

    return [asdict(one) | {"link": link(one.axes)} for one in sent]


def roofline_bounds(
    config: RunConfig, structure: ModelSpec, lengths: ExampleLengths, mesh: Mesh, chip: Chip, figures: Mapping[str, Any]
) -> dict[str, float]:
    """FLOPs of a step, the least seconds that arithmetic, memory and links need for it, and what the run takes so.

    Args:
        config: the run.
        structure: its model.
        lengths: of one example.
        mesh: the devices.
        chip: what they are.
        figures: bytes of a device (its state, and what it makes on the way) and exchanges, as compiled or modelled.
    """
    train, n = config.train, mesh.size
    flops = train.batch_size * flops_per_row(config.model, structure, lengths) / n
    full = train.batch_size * flops_per_row(config.model, structure, lengths, causal_half=False) / n
    peak = train.peak_flops or chip.flops
    again = {"none": 1.0, "full": 4 / 3, "offload": 4 / 3}.get(config.model.remat, 7 / 6)
    # Weights, gradients and moments are read and written once; what is kept for the backward pass too; and each pass
    # reads the weights that it has gathered, in the type of the activations.
    held = figures.get("arguments_bytes", 0) + figures.get("temporaries_bytes", 0) or figures["memory_bytes"]
    passes = 4 if again > 7 / 6 else 3
    shards = mesh.shape["tensor"] * mesh.shape["expert"] * mesh.shape["pipeline"]
    weights = structure.parameters * _width(config) / shards * passes * train.microbatches
    inside, between = _seconds(figures["exchanges"], chip)
    seconds = {
        "compute_seconds": flops * (again * _ticks(config, mesh)) / peak,
        "memory_seconds": (2 * held + weights) / chip.memory_rate,
        "ici_seconds": inside,
        "dcn_seconds": between,
    }
    step, tokens = max(seconds.values()), train.batch_size * train.seq_len
    days = train.steps * step / 86400
    return seconds | {
        "flops_per_device": flops,
        "flops_per_device_causal_full": full,
        "peak_flops": peak,
        "step_seconds": step,
        "mfu_causal_half": flops / peak / step,
        "mfu_causal_full": full / peak / step,
        "tokens_per_second": tokens / step,
        "days": days,
        "chip_hours": days * 24 * n,
        "tokens": float(tokens * train.steps),
    }


def _seconds(exchanges: Sequence[Mapping[str, Any]], chip: Chip) -> tuple[float, float]:
    """What exchanges (see `linked`) take inside (ICI, NVLink), and on the network between slices or hosts (DCN)."""
    inside = between = 0.0
    for one in exchanges:
        if one["link"] in {"DCN", "network"}:
            between += one["sent"] / chip.network_rate
        else:
            # A torus sends both ways along each axis.
            inside += one["sent"] / (2 * chip.link_rate * len(one["axes"]) if chip.host is None else chip.link_rate)
    return inside, between


def _ticks(config: RunConfig, mesh: Mesh) -> float:
    """What a pipeline's filling and emptying make of its time (Huang et al. 2019, §2.3)."""
    stages = mesh.shape["pipeline"]
    with jax.set_mesh(mesh):
        parts = pipeline_parts(config.model, config.train.batch_size // config.train.microbatches, stages)
    return (parts + stages - 1) / parts


def _width(config: RunConfig) -> int:
    return 2 if config.model.compute == "bfloat16" else 4


def _tokens(config: RunConfig, lengths: ExampleLengths, mesh: Mesh) -> float:
    """Tokens of both sides that a device has of one microbatch."""
    rows = config.train.batch_size / config.train.microbatches / batch_shards(mesh)
    targets = lengths.targets if config.model.family == "encoder_decoder" else 0
    return rows * lengths.texts * (lengths.tokens + targets) / mesh.shape["context"]


def modelled_memory(
    config: RunConfig, state: Any, lengths: ExampleLengths, mesh: Mesh, platform: str
) -> dict[str, Any]:
    """Bytes of a device by kind and in all, without a compiler; `platform` is that of the devices planned for.

    State and gradients are exact; activations are what `model.remat` keeps of each layer, with one layer as a whole and
    two parts of the logits beside.
    """
    model, t = config.model, mesh.shape["tensor"]

    def size(tree: Any) -> float:
        leaves = jax.tree.leaves(tree)
        return float(sum(math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize for x in leaves))

    d, head, hidden = model.embed, model.width_of_head, model.width_of_mlp
    gated = 2 if isinstance(model.dense_feedforward, GLU) else 1
    products = ((2 * model.heads + 2 * model.key_value_heads) * head + gated * hidden + 2 * d) / t
    layer = products + (hidden + 2 * d) / t + 2 * d
    kept = {"none": layer, "full": d / t, "offload": 0.0}.get(model.remat, products + d / t)
    layers = model.layers / mesh.shape["pipeline"]
    tokens = _tokens(config, lengths, mesh) * _width(config)
    # Logits and their gradient, of as many tokens as are computed at once.
    whole = 4 * _tokens(config, lengths, mesh) * (model.vocab or 1)
    logits = 2 * min(logits_limit(platform), whole)
    found = {
        "state_bytes": size(state),
        "gradients_bytes": size(state.params),
        "activations_bytes": tokens * (layers * kept + layer) + logits,
    }
    return found | {"memory_bytes": sum(found.values())}


def required_collectives(
    config: RunConfig, structure: ModelSpec, lengths: ExampleLengths, mesh: Mesh
) -> list[Collective]:
    """What a device must send in a step on this mesh, without a compiler: rings, and every byte just once.

    fsdp gathers weights for each pass and sums gradients into parts; data sums the parts; tensor and context gather the
    length or its keys and values before, and divide it after, each sublayer; experts send tokens there and back, and
    sum the gradients of all weights but their own, for each holds rows of the batch.
    """
    model, sizes, width = config.model, mesh.shape, _width(config)
    parts, again = config.train.microbatches, model.remat in {"full", "offload"}
    apart, parted = structure.of("experts"), sizes["tensor"] * sizes["pipeline"]
    shared, layers = structure.parameters - apart, model.layers / sizes["pipeline"]
    weights = (shared + apart / sizes["expert"]) / parted
    tokens = _tokens(config, lengths, mesh) * parts
    moe = [kind for layer in model.pattern if isinstance(kind := model.feedforward_of(layer), MoE)]
    routed = sum(_copies(kind) for kind in moe) * model.layers / len(model.pattern) / sizes["pipeline"]
    sublayer = tokens * model.embed * width
    keys = tokens * 2 * model.key_value_heads * model.width_of_head / sizes["tensor"] * width * sizes["context"]
    wanted = [
        ("all-gather", "fsdp", weights * width * (3 if again else 2) * parts),
        ("reduce-scatter", "fsdp", weights * width * parts),
        ("all-reduce", "data", 2 * weights * 4 / sizes["fsdp"]),
        ("all-reduce", "expert", 2 * shared / parted * width / sizes["fsdp"] * parts),
        ("all-gather", "tensor", layers * sublayer * (6 if again else 4)),
        ("reduce-scatter", "tensor", layers * sublayer * (6 if again else 4)),
        ("all-gather", "context", layers * keys * (3 if again else 2)),
        ("all-to-all", "expert", routed * sublayer * (6 if again else 4)),
        ("collective-permute", "pipeline", 2 * _ticks(config, mesh) * sublayer),
    ]
    ring = {axis: (size - 1) / size for axis, size in sizes.items()} | {"pipeline": float(sizes["pipeline"] > 1)}
    return [Collective(kind, (axis,), 1, sent * ring[axis]) for kind, axis, sent in wanted if sent * ring[axis] > 0]


def _copies(moe: MoE) -> float:
    """How many times a token's state travels to experts: its choices, and the room that capacity leaves empty."""
    return moe.router.choices * (moe.dispatch.factor if isinstance(moe.dispatch, Capacity) else 1.0)
