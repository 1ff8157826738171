"""Masks of pruned weights: part of the state, applied to gradients and to updated parameters."""

import jax.numpy as jnp
from jaxtyping import PyTree

from t5x_lite.trees import flatten_names, unflatten_names


def apply_masks(tree: PyTree, masks: PyTree) -> PyTree:
    """Return a tree of parameters, or of their gradients, with zeros where a mask is false.

    Args:
        tree: nested dicts of arrays.
        masks: boolean arrays of the parameters that are pruned, in nested dicts with the same names.
    """
    masks_by_name = flatten_names(masks)
    if not masks_by_name:
        return tree
    arrays = flatten_names(tree)
    for name, mask in masks_by_name.items():
        arrays[name] = jnp.where(mask, arrays[name], 0)
    return unflatten_names(arrays)
