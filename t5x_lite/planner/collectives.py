"""Collectives that a mesh requires, by formula, and the links that carry collectives."""

import math
from collections.abc import Sequence

from jax.sharding import Mesh

from t5x_lite.models.layer_config import LayerConfig
from t5x_lite.models.mixers import SelfAttention
from t5x_lite.models.sharding import mesh_axes, partition_spec
from t5x_lite.parallel.chips import Chip
from t5x_lite.planner.figures import CollectiveFigures
from t5x_lite.planner.hlo import Collective
from t5x_lite.planner.workload import Workload


def required_collectives(workload: Workload, slices: int = 1) -> list[Collective]:
    """Return the least that one device must send in a step: every byte once, by collectives on rings.

    * fsdp and context, over which the weights are sharded: an all-gather of the weights for each pass, and a
      reduce-scatter of the gradients; for the tables that are looked up, an all-to-all of the states instead.
    * data: an all-reduce of the scattered gradients, after each microbatch or once in a step (`train.data_reduction`).
      Of several slices, each first scatters its sum over its devices along `data`; then a device sends its share to the
      other slices.
    * tensor: an all-gather along the length before each sublayer, and a reduce-scatter after it.
    * context: an all-gather of keys and values, or of the states that another mixer reads, too.
    * expert: an all-to-all of tokens to their experts and back. Every group of experts has other rows of the batch, so
      the gradients of all other weights are summed by an all-reduce.
    * pipeline: a permute of the activations from stage to stage.
    """
    config = workload.config
    model = config.model
    sizes = workload.mesh.shape
    microbatches = config.train.microbatches
    width = workload.bytes_per_activation
    gradient_width = 4 if config.train.reduction_dtype == "float32" else width
    weight_shards = sizes["tensor"] * sizes["pipeline"]
    gather_axes = mesh_axes(partition_spec(sizes, ("embed",), (model.embed,)))
    gathered_shards = math.prod(sizes[axis] for axis in gather_axes)

    expert_weights = workload.spec.parameters_with_axis("experts")
    other_weights = workload.spec.parameters - expert_weights
    weights = (other_weights + expert_weights / sizes["expert"]) / weight_shards
    gathered_weights = weights - workload.spec.looked_up_parameters / weight_shards
    routed_copies = workload.exchanged_copies * model.count_repeats(model.layers) / sizes["pipeline"]

    tokens = workload.tokens_per_device * microbatches
    layers = workload.layers_per_device
    sublayer = tokens * model.embed * width

    def values_read(layer: LayerConfig) -> float:
        """Return the values of a token that others read: keys and values, or the states for another mixer."""
        if isinstance(layer.mixer, SelfAttention):
            return model.kv_heads * (layer.mixer.key_dim(model) + layer.mixer.value_dim(model)) / sizes["tensor"]
        return model.embed

    read_by_others = model.mean_over_layers(values_read)
    context = tokens * read_by_others * width * sizes["context"]

    # A step uses its weights in the forward pass, in a recomputation of that pass if there is one, and in the backward
    # pass. Each of these passes goes through two sublayers of a layer, or sends tokens to experts and back.
    passes = 3 if workload.recomputes_layers else 2
    sums_over_data = 1 if config.train.data_reduction == "step" else microbatches
    other_gradients = other_weights / weight_shards * gradient_width / gathered_shards
    scattered_gradients = weights * gradient_width / gathered_shards * sums_over_data
    data_in_slice = sizes["data"] // slices
    sublayer_passes = 2 * passes
    array_bytes: dict[tuple[str, tuple[str, ...]], float] = {
        ("all-gather", gather_axes): gathered_weights * width * passes * microbatches,
        ("reduce-scatter", gather_axes): gathered_weights * gradient_width * microbatches,
        ("all-to-all", gather_axes): 2 * sublayer,
        ("all-reduce", ("data",)): 2 * scattered_gradients,
        ("all-reduce", ("expert",)): 2 * other_gradients * microbatches,
        ("all-gather", ("tensor",)): layers * sublayer * sublayer_passes,
        ("reduce-scatter", ("tensor",)): layers * sublayer * sublayer_passes,
        ("all-gather", ("context",)): layers * context * passes,
        ("reduce-scatter", ("context",)): layers * context,
        ("all-to-all", ("expert",)): routed_copies * sublayer * sublayer_passes,
        ("collective-permute", ("pipeline",)): 2 * workload.pipeline_slowdown * sublayer,
    }
    collectives = []
    for (kind, axes), size in array_bytes.items():
        devices = data_in_slice if axes == ("data",) else math.prod(sizes[axis] for axis in axes)
        sent = size * _sent_share(axes, devices)
        if sent > 0:
            collectives.append(Collective(kind, axes, 1, sent, overlapped=sent))
    if slices > 1:
        sent = 2 * scattered_gradients / data_in_slice * _sent_share(("data",), slices)
        collectives.append(Collective("all-reduce", ("data",), 1, sent, overlapped=sent, between_slices=True))
    return collectives


def _sent_share(axes: tuple[str, ...], devices: int) -> float:
    """Return the share of an array that each device of a ring sends; pipeline stages send all of it to the next one."""
    if axes == ("pipeline",):
        return float(devices > 1)
    return (devices - 1) / devices


def add_links(collectives: Sequence[Collective], mesh: Mesh, chip: Chip) -> list[CollectiveFigures]:
    """Return collectives as rows of the report, each with the link that carries it."""
    rows: list[CollectiveFigures] = []
    for collective in collectives:
        rows.append(
            {
                "kind": collective.kind,
                "axes": collective.axes,
                "times": collective.times,
                "sent": collective.sent,
                "overlapped": collective.overlapped,
                "link": _link(collective, mesh, chip),
            }
        )
    return rows


def _link(collective: Collective, mesh: Mesh, chip: Chip) -> str:
    """Return the slowest link between the devices of a collective's groups."""
    if chip.gpus_per_host is None:
        return "DCN" if collective.between_slices else "ICI"
    sizes = list(mesh.shape.values())
    for index, axis in enumerate(mesh.shape):
        # Devices are numbered with the last axis varying fastest: a group along this axis spans so many numbers.
        span = math.prod(sizes[index:])
        if axis in collective.axes and span > chip.gpus_per_host:
            return "network"
    return "NVLink"
