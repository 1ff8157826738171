"""The type checker that jaxtyping's import hook applies to every function of the package while the tests run."""

from collections.abc import Callable
from inspect import isclass
from types import UnionType
from typing import Any, ForwardRef, Union, get_args, get_origin

import numpy as np
from beartype import beartype
from jaxtyping import AbstractArray


def check(function: Callable[..., Any]) -> Callable[..., Any]:
    """Check the shapes and number types of the arrays that a function takes and returns, in each of its calls.

    mypy checks everything else. Constructors are left out: JAX builds the dataclasses that are pytrees with anything as
    their leaves, such as shardings, shapes or None.
    """
    if function.__name__ == "__init__":
        return function
    hints = {name: _accept_numpy(hint) for name, hint in function.__annotations__.items() if _has_shape(hint)}
    if not hints:
        return function
    function.__annotations__ = hints
    return beartype(function)


def _is_array(hint: object) -> bool:
    return isclass(hint) and issubclass(hint, AbstractArray)


def _has_shape(hint: object) -> bool:
    """Return whether a type hint contains a shape, and no name that is imported for mypy alone."""
    parts = get_args(hint)
    if any(isinstance(part, str | ForwardRef) for part in parts):
        return False
    return _is_array(hint) or any(_has_shape(part) for part in parts)


def _accept_numpy(hint: Any) -> Any:
    """Return a hint that accepts a NumPy array in the place of a JAX array, as JAX does."""
    import jax  # not at the top, because the environment variables of JAX are set after this module is imported

    if _is_array(hint) and hint.array_type is jax.Array:
        return hint.dtype[jax.Array | np.ndarray, hint.dim_str]
    if get_origin(hint) in {Union, UnionType}:
        return Union[tuple(_accept_numpy(part) for part in get_args(hint))]  # noqa: UP007
    return hint
