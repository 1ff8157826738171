"""Collectives that a mesh requires, by formula, and the time that links need for collectives."""

import math
from collections.abc import Sequence

from jax.sharding import Mesh

from t5x_lite.models.layer_config import LayerConfig
from t5x_lite.models.mixers import SelfAttention
from t5x_lite.models.spec import ModelSpec
from t5x_lite.parallel.chips import Chip
from t5x_lite.planner.figures import CollectiveFigures
from t5x_lite.planner.gpu_network import gpu_link_seconds
from t5x_lite.planner.hlo import Collective
from t5x_lite.planner.torus import torus_seconds
from t5x_lite.planner.workload import Workload


def required_collectives(workload: Workload, slices: int = 1) -> list[Collective]:
    """Return the least that one device must send in a step: every byte once, by collectives on rings.

    Of several slices, each first scatters its sum of gradients over its devices along `data`; then a device sends its
    share to the other slices.
    """
    sizes = {**workload.mesh.shape, "data": workload.mesh.shape["data"] // slices}
    collectives: list[Collective] = []
    for kind, axes, array_bytes in [*_arrays_of_weights(workload), *_arrays_of_activations(workload)]:
        sent = array_bytes * _sent_share(axes, math.prod(sizes[axis] for axis in axes))
        if sent > 0:
            collectives.append(Collective(kind, axes, 1, sent, overlapped=sent))
        if slices > 1 and axes == ("data",):
            sent = array_bytes / sizes["data"] * _sent_share(axes, slices)
            collectives.append(Collective(kind, axes, 1, sent, overlapped=sent, between_slices=True))
    return collectives


def _arrays_of_weights(workload: Workload) -> list[tuple[str, tuple[str, ...], float]]:
    """Return the collectives of weights and gradients: kind, mesh axes and bytes of the whole arrays.

    * fsdp and context, over which weights are sharded: an all-gather of the weights for each pass, and a reduce-scatter
      of the gradients; not of tables that are looked up. Frozen weights have no gradients.
    * data: an all-reduce of the scattered gradients, after each microbatch or once in a step (`train.data_reduction`).
    * expert: every group of experts has other rows of the batch, so the gradients of all other weights are summed by an
      all-reduce.
    """
    train = workload.config.train
    sizes = workload.mesh.shape
    other_shards = sizes["tensor"] * sizes["pipeline"]

    def weights_of_shard(spec: ModelSpec) -> tuple[float, float, float]:
        """Return the weights of a shard, those of them outside of experts, and those that are not looked up."""
        expert_weights = spec.parameters_with_axis("experts") / other_shards
        other_weights = spec.parameters / other_shards - expert_weights
        weights = other_weights + expert_weights / sizes["expert"]
        return weights, other_weights, weights - spec.looked_up_parameters / other_shards

    _, _, gathered = weights_of_shard(workload.spec)
    trained, trained_outside_experts, scattered = weights_of_shard(workload.trained_spec)
    width = workload.bytes_per_activation
    gradient_width = 4 if train.reduction_dtype == "float32" else width
    scattered_width = gradient_width / math.prod(sizes[axis] for axis in workload.weight_axes)
    sums_over_data = 1 if train.data_reduction == "step" else train.microbatches
    return [
        ("all-gather", workload.weight_axes, gathered * width * _passes(workload) * train.microbatches),
        ("reduce-scatter", workload.weight_axes, scattered * gradient_width * train.microbatches),
        ("all-reduce", ("data",), 2 * trained * scattered_width * sums_over_data),
        ("all-reduce", ("expert",), 2 * trained_outside_experts * scattered_width * train.microbatches),
    ]


def _arrays_of_activations(workload: Workload) -> list[tuple[str, tuple[str, ...], float]]:
    """Return the collectives of activations and their gradients: kind, mesh axes and bytes of the whole arrays.

    * fsdp and context: an all-to-all of the states of tables that are looked up, and of their gradients.
    * tensor: an all-gather along the length before each sublayer, and a reduce-scatter after it.
    * context: an all-gather of keys and values, or of the states that another mixer reads, and a reduce-scatter of
      their gradients.
    * expert: an all-to-all of tokens to their experts and back.
    * pipeline: a permute of the activations from stage to stage.
    """
    model = workload.config.model
    sizes = workload.mesh.shape
    layers = workload.layers_per_device
    width = workload.bytes_per_activation
    tokens = workload.tokens_per_device * workload.config.train.microbatches
    sublayer = tokens * model.embed * width

    def values_read(layer: LayerConfig) -> float:
        """Return the values of a token that others read: keys and values, or the states for another mixer."""
        if isinstance(layer.mixer, SelfAttention):
            return model.kv_heads * (layer.mixer.key_dim(model) + layer.mixer.value_dim(model)) / sizes["tensor"]
        return model.embed

    read_by_others = layers * tokens * model.mean_over_layers(values_read) * width * sizes["context"]
    routed_copies = workload.exchanged_copies * model.count_repeats(model.layers) / sizes["pipeline"]
    # A pass goes through two sublayers of a layer, or sends tokens to experts and back.
    sublayer_passes = 2 * _passes(workload)
    return [
        ("all-to-all", workload.weight_axes, 2 * sublayer),
        ("all-gather", ("tensor",), layers * sublayer * sublayer_passes),
        ("reduce-scatter", ("tensor",), layers * sublayer * sublayer_passes),
        ("all-gather", ("context",), read_by_others * _passes(workload)),
        ("reduce-scatter", ("context",), read_by_others),
        ("all-to-all", ("expert",), routed_copies * sublayer * sublayer_passes),
        ("collective-permute", ("pipeline",), 2 * workload.pipeline_slowdown * sublayer),
    ]


def _passes(workload: Workload) -> int:
    """Return how often a step uses its weights: forward, backward, and in a recomputation of the forward pass."""
    return 3 if workload.recomputes_layers else 2


def _sent_share(axes: tuple[str, ...], devices: int) -> float:
    """Return the share of an array that each device of a ring sends; pipeline stages send all of it to the next one."""
    if axes == ("pipeline",):
        return float(devices > 1)
    return (devices - 1) / devices


def time_collectives(collectives: Sequence[Collective], mesh: Mesh, chip: Chip) -> list[CollectiveFigures]:
    """Return collectives as rows of the report, each with the link that bounds it and its least time there."""
    rows: list[CollectiveFigures] = []
    for collective in collectives:
        link, seconds = _slowest_link(collective, mesh, chip)
        rows.append(
            {
                "kind": collective.kind,
                "axes": collective.axes,
                "times": collective.times,
                "sent": collective.sent,
                "overlapped": collective.overlapped,
                "link": link,
                "seconds": seconds,
            }
        )
    return rows


def _slowest_link(collective: Collective, mesh: Mesh, chip: Chip) -> tuple[str, float]:
    """Return the link that a collective needs the longest, and its least time there in seconds."""
    if chip.gpus_per_host is not None:
        seconds = gpu_link_seconds(collective.kind, collective.axes, collective.sent, mesh, chip)
        link = max(seconds, key=lambda name: seconds[name])
        return link, seconds[link]
    if collective.between_slices:
        return "DCN", collective.sent / chip.network_rate
    return "ICI", torus_seconds(collective.kind, collective.axes, collective.sent, mesh, chip)
