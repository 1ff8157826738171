"""Shapes in signatures are checked where the import hook is installed. Run by test_shape_checks.py."""

import jax.numpy as jnp
import numpy as np
import pytest
from jaxtyping import TypeCheckError

from t5x_lite.models.losses import squared_error
from t5x_lite.objectives.features import positions_in


def test_a_wrong_number_of_axes_is_an_error() -> None:
    with pytest.raises(TypeCheckError, match="segments"):
        positions_in(np.zeros((2, 3), np.int32))


def test_a_wrong_number_type_is_an_error() -> None:
    with pytest.raises(TypeCheckError, match="segments"):
        positions_in(np.zeros(3, np.float32))


def test_axes_of_one_name_with_two_lengths_are_an_error() -> None:
    with pytest.raises(TypeCheckError, match="targets"):
        squared_error(jnp.zeros(2), jnp.zeros(3), jnp.zeros(2))


def test_a_numpy_array_takes_the_place_of_a_jax_array() -> None:
    assert squared_error(np.zeros(2, np.float32), jnp.ones(2), jnp.ones(2)).total == 2
