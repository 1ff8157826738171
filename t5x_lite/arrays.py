"""The type of arrays in modules that do not import JAX, so that a config is checked before JAX starts."""

from typing import Any, TypeAlias

Array: TypeAlias = Any
"""A JAX or a NumPy array. jaxtyping checks its shape and the type of its numbers."""
