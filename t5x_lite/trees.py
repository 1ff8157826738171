"""Nested trees as flat dicts from dotted name to leaf, and back. Importing this module does not import JAX."""

from collections.abc import Mapping
from typing import Any


def flatten_names(tree: object) -> dict[str, Any]:
    """Return the leaves of a pytree by dotted name, in the order in which JAX flattens them.

    A checkpoint stores its arrays under these names, such as `params.decoder.embedding.weight`.
    """
    import jax  # not at the top of the file, because configs use this module and must load without JAX

    leaves_with_paths = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="."): leaf for path, leaf in leaves_with_paths}


def unflatten_names(leaves: Mapping[str, Any]) -> dict[str, Any]:
    """Return nested dicts with these leaves: the inverse of `flatten_names` for a tree of dicts."""
    tree: dict[str, Any] = {}
    for name, leaf in leaves.items():
        *parents, key = name.split(".")
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
        node[key] = leaf
    return tree
