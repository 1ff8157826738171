"""The structure of a checkpoint: the names, shapes and types of its arrays, compared with those of a model."""

from collections.abc import Mapping
from typing import Protocol, runtime_checkable

import numpy as np
from etils import epath

from t5x_lite.errors import UserError

LISTED_DIFFERENCES = 8
"""Differences between a checkpoint and a model that an error message lists."""


@runtime_checkable
class ArrayType(Protocol):
    """Anything with the shape and the type of an array: a `jax.ShapeDtypeStruct`, or Orbax's metadata."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Lengths of the axes."""

    @property
    def dtype(self) -> np.dtype:
        """Type of the values."""


def check_structure(
    path: epath.Path, saved: Mapping[str, ArrayType], expected: Mapping[str, ArrayType], *, may_widen: bool
) -> None:
    """Reject arrays of another name, shape or type, which Orbax would omit or cast silently.

    Args:
        path: the checkpoint, for the message.
        saved: the arrays of the checkpoint, by name.
        expected: those of the model.
        may_widen: bfloat16 may become float32, which is exact.

    Raises:
        UserError: with the first differences.
    """
    differences = []
    for name in expected.keys() | saved.keys():
        if name not in saved:
            differences.append(f"{name} is not in the checkpoint")
        elif name not in expected:
            differences.append(f"{name} is not in the model")
        else:
            saved_type = _format_array_type(saved[name])
            expected_type = _format_array_type(expected[name])
            is_widened = may_widen and saved_type.replace("bfloat16", "float32") == expected_type
            if saved_type != expected_type and not is_widened:
                differences.append(f"{name} is {saved_type}, the model has {expected_type}")
    if not differences:
        return
    message = "; ".join(sorted(differences)[:LISTED_DIFFERENCES])
    if len(differences) > LISTED_DIFFERENCES:
        message += f"; and {len(differences) - LISTED_DIFFERENCES} more"
    raise UserError(f"{path}: does not fit this config: {message}")


def _format_array_type(array: ArrayType) -> str:
    return f"{np.dtype(array.dtype)}{list(array.shape)}"
