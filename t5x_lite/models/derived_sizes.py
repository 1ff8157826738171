"""Sizes of a model that follow from others."""

from typing import Any


def derived_sizes(layers: int | None, embed: int | None, heads: int | None) -> dict[str, int]:
    """Return the sizes that follow from those that are known."""
    sizes = {}
    if layers is not None:
        sizes["decoder_layers"] = layers
    if heads is not None:
        sizes["kv_heads"] = heads
    if embed is not None:
        sizes["embedding"] = embed
        sizes["mlp"] = 4 * embed
    if embed is not None and heads:
        sizes["head_dim"] = embed // heads
    return sizes


def whole_number(value: Any) -> int | None:
    """Return a whole number as an int, and None for anything else."""
    if isinstance(value, bool):
        return None
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if isinstance(value, int):
        return value
    return None
