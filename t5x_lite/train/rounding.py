"""Stochastic rounding, so that an average of many small changes survives in few bits."""

from functools import partial

import jax
import jax.numpy as jnp
import optax
from jax.tree_util import GetAttrKey, KeyPath
from jax.typing import DTypeLike
from jaxtyping import Array, Float, PRNGKeyArray, PyTree

LOST_BITS = 16
"""Bits of a float32 behind those of a bfloat16."""
COEFFICIENTS = ("ns_coeffs",)
"""Fields of Optax's states that are constants: those of Muon's Newton-Schulz iteration."""


def round_stochastically(x: Float[Array, "..."], key: PRNGKeyArray) -> Float[Array, "..."]:
    """Return `x`, a float32, as one of the two nearest bfloat16, whose mean is `x` (Gupta et al. 2015, §3).

    Infinities and NaN stay.
    """
    bits = jax.lax.bitcast_convert_type(x, jnp.uint32)
    noise = jax.random.bits(key, x.shape, jnp.uint16).astype(jnp.uint32)
    rounded_down = (bits + noise) >> LOST_BITS << LOST_BITS
    rounded = jax.lax.bitcast_convert_type(rounded_down, jnp.float32)
    return jnp.where(jnp.isfinite(x), rounded, x).astype(jnp.bfloat16)


def round_leaves(tree: PyTree[Array], is_rounded: PyTree[bool], key: PRNGKeyArray) -> PyTree[Array]:
    """Round some arrays of a tree stochastically, each with random bits of its own."""
    leaves, structure = jax.tree.flatten(tree)
    rounded = []
    for number, (leaf, needs_rounding) in enumerate(zip(leaves, jax.tree.leaves(is_rounded), strict=True)):
        if needs_rounding:
            rounded.append(round_stochastically(leaf, jax.random.fold_in(key, number)))
        else:
            rounded.append(leaf)
    return jax.tree.unflatten(structure, rounded)


def store_moments_in_bfloat16(inner: optax.GradientTransformation) -> optax.GradientTransformation:
    """Keep what an optimizer remembers of each weight in bfloat16, rounded stochastically after every update.

    The arithmetic stays float32. The random bits depend on the number of updates alone, so that a run that is resumed
    continues with the same numbers.
    """

    def init(params: PyTree) -> tuple[Array, PyTree]:
        return jnp.zeros((), jnp.int32), _convert_moments(inner.init(params), jnp.float32, jnp.bfloat16)

    def update(updates: PyTree, state: tuple[Array, PyTree], params: PyTree = None) -> tuple[PyTree, PyTree]:
        count, stored = state
        moments = _convert_moments(stored, jnp.bfloat16, jnp.float32)
        new_updates, new_moments = inner.update(updates, moments, params)
        key = jax.random.fold_in(jax.random.key(0), count)
        is_moment = partial(_is_moment, dtype=jnp.float32)
        is_rounded = jax.tree_util.tree_map_with_path(is_moment, new_moments)
        return new_updates, (count + 1, round_leaves(new_moments, is_rounded, key))

    return optax.GradientTransformation(init, update)


def _convert_moments(moments: PyTree[Array], old: DTypeLike, new: DTypeLike) -> PyTree[Array]:
    """Return the moments of type `old` in type `new`; everything else, such as counts, as it is."""

    def convert(path: KeyPath, leaf: Array) -> Array:
        return leaf.astype(new) if _is_moment(path, leaf, old) else leaf

    return jax.tree_util.tree_map_with_path(convert, moments)


def _is_moment(path: KeyPath, leaf: Array, dtype: DTypeLike) -> bool:
    """Return whether an array of this type in an optimizer's state is a moment: no count and no coefficients."""
    is_coefficient = isinstance(path[-1], GetAttrKey) and path[-1].name in COEFFICIENTS
    return leaf.ndim > 0 and leaf.dtype == dtype and not is_coefficient
