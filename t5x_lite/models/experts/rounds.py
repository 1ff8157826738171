"""Rounds of dropless dispatch: one that always runs, and more where tokens choose their experts unevenly."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.extend as jex
import jax.numpy as jnp
from jaxtyping import Array, Int

RunRound = Callable[..., Array]
"""A function of trees of arrays and the number of a round that returns one array."""


def sum_rounds(run_round: RunRound, needed: Int[Array, ""], room: int, most: int, *arguments: Any) -> Array:
    """Return the sum of `run_round(*arguments, number)` over the rounds that are needed.

    The products of the first round are kept for the backward pass as `model.remat` says, those of all others are
    computed again.

    Args:
        run_round: computes one round. It may close over traced arrays.
        needed: how many places are needed in all rounds together.
        room: places of a round. One round is always run.
        most: the largest possible `needed`.
        arguments: trees of arrays.
    """
    out = run_round(*arguments, 0)
    if most <= room:
        return out
    return out + _sum_further_rounds(run_round, (needed + room - 1) // room, *arguments)


def _sum_further_rounds(run_round: RunRound, rounds: Int[Array, ""], *arguments: Any) -> Array:
    """Return the sum over the rounds from 1 on, in a loop that ends with the last that is needed.

    JAX differentiates no such loop. This one has a rule of its own, whose gradients reach only explicit arguments: the
    arrays that `run_round` closes over become arguments too.
    """
    closed = jax.make_jaxpr(run_round)(*arguments, 1)
    inputs = [*closed.consts, *jax.tree.leaves(arguments)]
    is_float = [jnp.issubdtype(jnp.result_type(value), jnp.floating) for value in inputs]
    floats = [value for value, of_floats in zip(inputs, is_float, strict=True) if of_floats]
    others = [value for value, of_floats in zip(inputs, is_float, strict=True) if not of_floats]

    def compute(floats: Sequence[Array], others: Sequence[Array], number: Int[Array, ""]) -> Array:
        float_values = iter(floats)
        other_values = iter(others)
        values = [next(float_values if of_floats else other_values) for of_floats in is_float]
        count = len(closed.consts)
        run = jex.core.jaxpr_as_fun(jex.core.ClosedJaxpr(closed.jaxpr, values[:count]))
        return run(*values[count:], number)[0]

    def add_up(floats: Sequence[Array], others: Sequence[Array], rounds: Int[Array, ""]) -> Array:
        def add_round(number: Int[Array, ""], total: Array) -> Array:
            return total + compute(floats, others, number)

        return jax.lax.fori_loop(1, rounds, add_round, jnp.zeros(closed.out_avals[0].shape, closed.out_avals[0].dtype))

    def forward(floats: Sequence[Array], others: Sequence[Array], rounds: Int[Array, ""]) -> tuple[Array, Any]:
        return add_up(floats, others, rounds), (floats, others, rounds)

    def backward(residuals: Any, gradient: Array) -> tuple[Sequence[Array], None, None]:
        floats, others, rounds = residuals

        def add_gradients(number: Int[Array, ""], totals: Sequence[Array]) -> Sequence[Array]:
            _, pull_back = jax.vjp(lambda floats: compute(floats, others, number), floats)
            return jax.tree.map(jnp.add, totals, pull_back(gradient)[0])

        return jax.lax.fori_loop(1, rounds, add_gradients, jax.tree.map(jnp.zeros_like, floats)), None, None

    total = jax.custom_vjp(add_up)
    total.defvjp(forward, backward)
    return total(floats, others, rounds)
