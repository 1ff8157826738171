"""Initial decay of a head's state by one number a token, exp(-rate · step) (Dao & Gu 2024; Yang et al. 2025)."""

import math

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

INITIAL_STEPS = (0.001, 0.1)
"""Range of the initial step sizes, uniform in their logarithm (Dao & Gu 2024, code: dt_min, dt_max)."""


def initial_step_bias(heads: int, rngs: nnx.Rngs) -> Float[Array, "h"]:
    """Return biases whose softplus is a step size of the initial range."""
    low, high = INITIAL_STEPS
    steps = jnp.exp(jax.random.uniform(rngs.params(), (heads,), jnp.float32, math.log(low), math.log(high)))
    return steps + jnp.log(-jnp.expm1(-steps))


def initial_log_rate(heads: int, rates: tuple[float, float], rngs: nnx.Rngs) -> Float[Array, "h"]:
    """Return logarithms of decay rates that are uniform in a range."""
    low, high = rates
    return jnp.log(jax.random.uniform(rngs.params(), (heads,), jnp.float32, low, high))
