"""Weights in int8 for generation: the matrices of attention and feed-forward layers, with a scale for each output."""

from dataclasses import dataclass
from functools import partial
from types import EllipsisType

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int8, PyTree

from t5x_lite.errors import UserError
from t5x_lite.models.config import ModelConfig
from t5x_lite.models.experts.config import Dropless
from t5x_lite.models.layers import WeightAxes
from t5x_lite.models.quantization import QUANTIZED_AXES
from t5x_lite.trees import flatten_names, unflatten_names

LARGEST = 127
"""Largest int8 value that is used: the range is symmetric."""
SUBLAYERS = (".attention.", ".cross_attention.", ".feedforward.")
"""Parts of the names of quantized matrices. Other mixers read their weights in ways of their own."""


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Int8Matrix:
    """A matrix, or a stack of them, as int8 values and scales. It takes the place of the array in a model.

    Attributes:
        values: the rounded quotients of the matrix and its scales.
        scale: for each output, the largest absolute value of its weights divided by 127; input axes have size 1.
    """

    values: Int8[Array, "*shape"]
    scale: Float[Array, "*scales"]

    def __getitem__(self, index: EllipsisType) -> "Int8Matrix":
        """Return the whole matrix, which is what layers read of their weights."""
        return self

    def astype(self, dtype: DTypeLike) -> Float[Array, "*shape"]:
        """Return the products of values and scales."""
        return (self.values.astype(jnp.float32) * self.scale).astype(dtype)


def quantize_weights(config: ModelConfig, axes: PyTree[WeightAxes], params: PyTree[Array]) -> PyTree:
    """Return the weights with the matrices of attention and feed-forward layers in int8. The old matrices are deleted.

    Raises:
        UserError: the model does not generate, or has no such matrices, or its experts are multiplied in groups.
    """
    if config.is_encoder_only:
        raise UserError(f"int8 weights are for generation, and a model of family {config.family} does not generate")
    if any(isinstance(moe.dispatch, Dropless) for moe in config.mixtures):
        raise UserError("int8 weights: experts with dispatch: dropless are multiplied in groups, as floats only")
    axes_by_name = flatten_names(axes)
    leaves = {}
    for name, array in flatten_names(params).items():
        if is_quantized(name, axes_by_name[name]):
            leaves[name] = _quantize(array, axes_by_name[name])
            array.delete()
        else:
            leaves[name] = array
    if not any(isinstance(leaf, Int8Matrix) for leaf in leaves.values()):
        raise UserError("int8 weights: this model has no matrices of attention or feed-forward layers")
    return unflatten_names(leaves)


def is_quantized(name: str, axes: WeightAxes) -> bool:
    """Return whether a weight, by its dotted name and axes, is a matrix of attention or a feed-forward layer."""
    in_sublayer = any(part in name for part in SUBLAYERS) and name.endswith(".weight")
    return in_sublayer and axes.inputs > 0 and not QUANTIZED_AXES.isdisjoint(axes.names)


@partial(jax.jit, static_argnames="axes")
def _quantize(matrix: Float[Array, "*shape"], axes: WeightAxes) -> Int8Matrix:
    first_input = axes.stack_depth(matrix)
    inputs = tuple(range(first_input, first_input + axes.inputs))
    matrix = matrix.astype(jnp.float32)
    scale = jnp.max(jnp.abs(matrix), axis=inputs, keepdims=True) / LARGEST
    scale = jnp.where(scale > 0, scale, 1)
    return Int8Matrix(jnp.round(matrix / scale).astype(jnp.int8), scale)
