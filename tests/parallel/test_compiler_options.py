"""Options of XLA's compiler."""

import jax
import jax.numpy as jnp
import pytest

from t5x_lite.errors import UserError
from t5x_lite.parallel.compiler_options import compile_lowered, compiler_options
from t5x_lite.parallel.config import MeshConfig
from t5x_lite.parallel.mesh import make_mesh


def test_the_options_of_the_config_reach_the_compiler() -> None:
    """XLA's fast math on a CPU takes x - x for 0; without it infinity minus infinity is not a number."""
    infinity = jnp.full(4, jnp.inf)
    options = {"xla_cpu_enable_fast_math": True, "xla_cpu_fast_math_honor_nans": False}

    def subtract(x: jax.Array) -> jax.Array:
        return jnp.exp(x - jnp.roll(x, 0)) - 1

    exact = compile_lowered(jax.jit(subtract, compiler_options={}).lower(infinity))
    fast = compile_lowered(jax.jit(subtract, compiler_options=options).lower(infinity))
    assert jnp.isnan(exact(infinity)).all()
    assert not jnp.isnan(fast(infinity)).all()


def test_a_cpu_has_no_options_of_its_own() -> None:
    mesh = make_mesh(MeshConfig(data=1), jax.devices("cpu")[:1])
    assert compiler_options(None, mesh) == {}
    assert compiler_options({"xla_dump_to": "folder"}, mesh) == {"xla_dump_to": "folder"}


def test_an_unknown_option_is_named() -> None:
    lowered = jax.jit(jnp.sin, compiler_options={"xla_no_such_option": True}).lower(1.0)
    with pytest.raises(UserError, match=r"train\.compiler_options: .* has no option xla_no_such_option"):
        compile_lowered(lowered)
