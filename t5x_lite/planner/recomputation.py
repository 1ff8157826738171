"""FLOPs that the backward pass computes again, by `model.remat`."""

from t5x_lite.models.feedforward.config import NoFeedForward
from t5x_lite.models.layer_path import parse_layer_path
from t5x_lite.models.layers import WeightAxes
from t5x_lite.models.remat_policy import EXCHANGED_ROWS, INNER_PRODUCT, OUTPUT_PRODUCT, SAVED_NAMES, product_name
from t5x_lite.planner.workload import Workload
from t5x_lite.train.flops import attention_flops_per_text, products_per_text
from t5x_lite.trees import flatten_names

NORMS_OF_OUTPUTS = {"post", "sublayer", "sandwich"}
"""Values of `model.norm_place` with a norm of each sublayer's output, whose gradient needs that output."""


def recomputed_flops_per_example(workload: Workload, *, causal_half: bool = True) -> float:
    """Return the FLOPs that the backward pass of one example repeats.

    A policy repeats the products that it does not keep, except those that no gradient needs: the last product of a
    layer is added to the residual stream, so that its value is needed only where a norm, a gate of experts or another
    sublayer of the same period reads it. A gate may read what devices have exchanged instead. Not counted are scores
    that the backward pass of attention computes again under every policy, recurrences of other mixers, and elementwise
    work.

    Args:
        workload: the train step.
        causal_half: causal attention counts half.
    """
    model = workload.config.model
    lengths = workload.lengths
    shapes = flatten_names(workload.spec.shapes)
    products = 0.0
    for name, axes in flatten_names(workload.spec.axes).items():
        if _is_repeated(name, axes, workload):
            products += products_per_text(model, name, axes, shapes[name].shape, lengths)
    attention_flops = 0.0
    if model.remat in {"full", "offload", "dots_no_batch"}:
        attention_flops = attention_flops_per_text(model, lengths, causal_half=causal_half) / 3
    return lengths.texts * (2 * products + attention_flops)


def _is_repeated(name: str, axes: WeightAxes, workload: Workload) -> bool:
    """Return whether the backward pass repeats the products with a weight."""
    model = workload.config.model
    remat = model.remat
    path = parse_layer_path(name)
    is_of_tokens = axes.inputs > 0 and ".positions." not in name
    if not is_of_tokens or path is None or remat in {"none", "dots"}:
        return False
    if remat == "dots_no_batch":
        return "experts" in axes.names  # a batch of products, one for each expert
    product = product_name(axes.names[axes.stacked + axes.inputs :])
    if product != OUTPUT_PRODUCT:
        return product not in SAVED_NAMES.get(remat, ())
    if "experts" in axes.names:
        return EXCHANGED_ROWS not in SAVED_NAMES.get(remat, ()) or workload.exchanged_copies == 0
    layers = path.period(model)
    if model.norm_place in NORMS_OF_OUTPUTS or path.index < len(layers) - 1:
        return True
    feedforward = model.feedforward_of(layers[path.index])
    is_followed = model.sublayers == "sequential" and not isinstance(feedforward, NoFeedForward)
    is_of_feedforward = product_name(axes.names[axes.stacked : axes.stacked + axes.inputs]) == INNER_PRODUCT
    return is_followed and not is_of_feedforward
