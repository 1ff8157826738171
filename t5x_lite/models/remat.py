"""Rematerialisation: which activations the backward pass computes again instead of keeping."""

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Float

from t5x_lite.models.quantization import QUANTIZED_PRODUCT
from t5x_lite.models.remat_policy import (
    ATTENTION_OUTPUT,
    EXCHANGED_ROWS,
    INNER_PRODUCT,
    OUTPUT_PRODUCT,
    PINNED_HOST,
    PROJECTION,
    SAVED_NAMES,
    RematPolicy,
    product_name,
)

LAYER_OUTPUT = "layer_output"
"""Name of the output of a layer, by which `remat: offload` knows it."""
CUDNN_ATTENTION = "dot_product_attention_fwd_wrapper"
"""JAX's primitive of cuDNN's attention. It has the log-sums as results that no name can be put on."""
KERNELS = ("pallas_call", CUDNN_ATTENTION, "ragged_dot_general")
"""JAX's primitives of fused attention (Pallas kernels and cuDNN's), and of products with experts of sorted rows."""
PRODUCTS = (PROJECTION, INNER_PRODUCT, OUTPUT_PRODUCT, EXCHANGED_ROWS)
"""Names of what `dots` keeps beside kernels and products that have no name."""

Carry = TypeVar("Carry")
Scanned = TypeVar("Scanned")
Stacked = TypeVar("Stacked")
ScanBody = Callable[[Carry, Scanned], tuple[Carry, Stacked]]


def name_layer_output(x: Float[Array, "b l d"]) -> Float[Array, "b l d"]:
    """Mark the output of a layer for the policies."""
    return checkpoint_name(x, LAYER_OUTPUT)


def name_attention(x: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """Mark an output of attention, or the logarithms of the sums of its softmax, for the policies."""
    return checkpoint_name(x, ATTENTION_OUTPUT)


def name_product(y: Float[Array, "*shape"], output_axes: tuple[str, ...]) -> Float[Array, "*shape"]:
    """Mark the product with a matrix whose outputs have these logical axes for the policies.

    What a policy keeps has one axis for all outputs: a TPU stores an array whose last axis is the 64 channels of a head
    in rows of 128, and takes a copy to change its shape.
    """
    rows = y.shape[: y.ndim - len(output_axes)]
    flat = checkpoint_name(y.reshape(*rows, math.prod(y.shape[len(rows) :])), product_name(output_axes))
    return flat.reshape(y.shape)


def name_exchanged_rows(rows: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """Mark what a device has received from the devices of other experts for the policies."""
    return checkpoint_name(rows, EXCHANGED_ROWS)


def rematerialised(body: ScanBody[Carry, Scanned, Stacked], policy: RematPolicy) -> ScanBody[Carry, Scanned, Stacked]:
    """Return `body` with the activations that `policy` does not keep computed again in the backward pass.

    Raises:
        ValueError: the policy is `auto`, which `planner.remat_choice` replaces by one of the others.
    """
    policies = jax.checkpoint_policies
    saveable: Callable[..., Any]
    if policy == "auto":
        raise ValueError("model.remat auto is chosen when a run starts or is planned; name a policy here")
    if policy == "none":
        return body
    if policy in SAVED_NAMES:
        saveable = partial(_named_or_cudnn_attention, SAVED_NAMES[policy])
    elif policy == "full":
        saveable = policies.nothing_saveable
    elif policy == "dots":
        saveable = _products_and_kernels
    elif policy == "dots_no_batch":
        saveable = _products_without_batch
    else:
        saveable = policies.save_and_offload_only_these_names(
            names_which_can_be_saved=[],
            names_which_can_be_offloaded=[LAYER_OUTPUT],
            offload_src="device",
            offload_dst=PINNED_HOST,
        )
    return jax.checkpoint(body, policy=saveable, prevent_cse=False)


def _named_or_cudnn_attention(names: Sequence[str], primitive: Any, *values: Any, **parameters: Any) -> bool:
    """Return whether a primitive gives one of the names, or is cuDNN's attention."""
    if primitive.name == CUDNN_ATTENTION:
        return True
    return primitive.name == "name" and parameters["name"] in names


def _products_and_kernels(primitive: Any, *values: Any, **parameters: Any) -> bool:
    """Return whether the result of a primitive is that of a matrix product, of a kernel or of another device.

    A product with weights is kept by its name, with its bias: without it, the addition would be a pass over memory of
    its own, in the forward pass and when it is computed again.
    """
    if primitive.name in KERNELS or _is_quantized_product(primitive, parameters):
        return True
    if primitive.name == "name" and parameters["name"] in PRODUCTS:
        return True
    if _has_quantized_operands(values):
        return False
    return jax.checkpoint_policies.dots_saveable(primitive, *values, **parameters)


def _products_without_batch(primitive: Any, *values: Any, **parameters: Any) -> bool:
    """Return whether the result of a primitive is that of a matrix product without batch axes."""
    if _is_quantized_product(primitive, parameters):
        return True
    if _has_quantized_operands(values):
        return False
    return jax.checkpoint_policies.dots_with_no_batch_dims_saveable(primitive, *values, **parameters)


def _is_quantized_product(primitive: Any, parameters: Mapping[str, Any]) -> bool:
    """Return whether a primitive names the result of a product in 8 bits, in the type of the activations."""
    return primitive.name == "name" and parameters["name"] == QUANTIZED_PRODUCT


def _has_quantized_operands(values: Sequence[Any]) -> bool:
    """Return whether a primitive is a product in 8 bits before it is scaled: 4 bytes, and nothing needs it later."""
    return any(value.dtype.itemsize == 1 for value in values if jnp.issubdtype(value.dtype, jnp.number))
