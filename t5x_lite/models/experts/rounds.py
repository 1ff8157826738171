"""Rounds of dropless dispatch: one that always runs, and more where tokens choose their experts unevenly."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int

RunRound = Callable[..., Array]
"""A function of trees of arrays and the number of a round that returns one array."""


def sum_rounds(run_round: RunRound, needed: Int[Array, ""], capacity: int, max_needed: int, *arguments: Any) -> Array:
    """Return the sum of `run_round(*arguments, number)` over the rounds that are needed.

    The products of the first round are kept for the backward pass as `model.remat` says, those of all others are
    computed again.

    Args:
        run_round: computes one round. It may close over traced arrays.
        needed: how many places are needed in all rounds together.
        capacity: places of a round. One round is always run.
        max_needed: the largest possible `needed`.
        arguments: trees of arrays.
    """
    out = run_round(*arguments, 0)
    if max_needed <= capacity:
        return out
    return out + _sum_further_rounds(run_round, (needed + capacity - 1) // capacity, *arguments)


def _sum_further_rounds(run_round: RunRound, rounds: Int[Array, ""], *arguments: Any) -> Array:
    """Return the sum over the rounds from 1 on, in a loop that ends with the last that is needed.

    JAX has no gradient of a loop whose number of iterations is computed. This one has a rule of its own, whose
    gradients reach only explicit arguments: the arrays that `run_round` closes over become arguments too.
    """
    closed = jax.make_jaxpr(run_round)(*arguments, 1)
    const_count = len(closed.consts)
    result = closed.out_avals[0]
    inputs = (*closed.consts, *jax.tree.leaves(arguments))

    def compute(number: Int[Array, ""], *inputs: Array) -> Array:
        return jax.core.eval_jaxpr(closed.jaxpr, inputs[:const_count], *inputs[const_count:], number)[0]

    def add_up(rounds: Int[Array, ""], *inputs: Array) -> Array:
        def add_round(number: Int[Array, ""], total: Array) -> Array:
            return total + compute(number, *inputs)

        return jax.lax.fori_loop(1, rounds, add_round, jnp.zeros(result.shape, result.dtype))

    def forward(rounds: Int[Array, ""], *inputs: Array) -> tuple[Array, Any]:
        return add_up(rounds, *inputs), (rounds, inputs)

    def backward(residuals: Any, gradient: Array) -> tuple[Array | None, ...]:
        rounds, inputs = residuals

        def add_gradients(number: Int[Array, ""], totals: Sequence[Array | None]) -> Sequence[Array | None]:
            _, pull_back = jax.vjp(partial(compute, number), *inputs)
            pairs = zip(totals, pull_back(gradient), strict=True)
            return [None if total is None else total + of_round for total, of_round in pairs]

        # Counts, indices and keys have no gradient.
        zeros = [jnp.zeros_like(value) if jnp.issubdtype(value.dtype, jnp.floating) else None for value in inputs]
        return None, *jax.lax.fori_loop(1, rounds, add_gradients, zeros)

    total = jax.custom_vjp(add_up)
    total.defvjp(forward, backward)
    return total(rounds, *inputs)
