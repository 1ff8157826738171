"""Check gradients of sharded tables, and what the devices send for them, on 8 simulated devices; print `equal`.

Run by test_mesh.py in a process of its own, because the number of devices is fixed when JAX starts.
"""

import sys

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from t5x_lite.models.config import ModelConfig
from t5x_lite.models.layers import Embed
from t5x_lite.models.look_up import look_up
from t5x_lite.models.losses import LossSettings, token_cross_entropy
from t5x_lite.models.sharding import constrain, gather
from t5x_lite.parallel.config import MeshConfig
from t5x_lite.parallel.mesh import make_mesh
from t5x_lite.planner.hlo import find_collectives

ROWS = 512
WIDTH = 64
BATCH = 8
LENGTH = 8


def check_look_up(mesh: Mesh) -> None:
    """Compare states and the gradient of a table with those of one device, and what devices send with a count by hand.

    A device has the channels of one of `fsdp` times `context` shards. Its replicas sum the gradients of that shard. The
    devices with the other shards exchange states first along `context`, then along `fsdp`.
    """
    sizes = dict(mesh.shape)
    shards = sizes["fsdp"] * sizes["context"]
    replicas = mesh.size // shards
    table = np.random.default_rng(0).normal(size=(ROWS, WIDTH)).astype(np.float32)
    tokens = np.random.default_rng(1).integers(0, ROWS, (BATCH, LENGTH)).astype(np.int32)
    factors = np.random.default_rng(2).normal(size=(BATCH, LENGTH, WIDTH)).astype(np.float32)
    expected = np.zeros_like(table)
    np.add.at(expected, tokens, factors)
    config = ModelConfig(layers=1, embed=WIDTH, heads=1, vocab=ROWS)

    def loss(table: jax.Array, tokens: jax.Array, factors: jax.Array) -> jax.Array:
        embed = Embed(config, ROWS, WIDTH, rngs=nnx.Rngs(0))
        embed.weight[...] = table
        return jnp.sum(embed(tokens) * factors)

    table_sharding = NamedSharding(mesh, P(None, ("fsdp", "context")))
    rows_sharding = NamedSharding(mesh, P(("data", "fsdp", "expert"), "context"))
    with jax.set_mesh(mesh):
        gradient = jax.jit(
            jax.value_and_grad(loss),
            in_shardings=(table_sharding, rows_sharding, rows_sharding),
            out_shardings=(NamedSharding(mesh, P()), table_sharding),
        )
        compiled = gradient.lower(table, tokens, factors).compile()
        value, result = compiled(table, tokens, factors)
    np.testing.assert_allclose(value, np.sum(table[tokens] * factors), rtol=1e-5)
    np.testing.assert_allclose(result, expected, rtol=1e-6)
    # An all-reduce of the whole gradient over 8 devices would send 2 * 7/8 of 131,072 bytes instead.
    sum_of_gradient = 2 * (replicas - 1) / replicas * 4 * ROWS * WIDTH / shards
    rounds = sum((sizes[axis] - 1) / sizes[axis] for axis in ("fsdp", "context"))
    states = 4 * (BATCH / replicas) * LENGTH * (WIDTH / shards) * rounds
    tokens_sent = 4 * (BATCH / replicas) * LENGTH * rounds
    text = compiled.as_text()
    assert text is not None
    sent = sum(collective.sent for collective in find_collectives(text, sizes))
    assert sum_of_gradient <= sent <= sum_of_gradient + 2 * (states + tokens_sent) + 100, (sizes, sent)


def check_undivided_look_up(mesh: Mesh) -> None:
    """Compare the states and the gradient where neither the rows nor the length are divided."""
    rng = np.random.default_rng(4)
    table = rng.normal(size=(ROWS, WIDTH)).astype(np.float32)
    tokens = rng.integers(0, ROWS, (3, 5)).astype(np.int32)
    factors = rng.normal(size=(3, 5, WIDTH)).astype(np.float32)
    expected = np.zeros_like(table)
    np.add.at(expected, tokens, factors)

    def loss(table: jax.Array) -> jax.Array:
        return jnp.sum(look_up(table, tokens, "vocab", jnp.float32) * factors)

    sharding = NamedSharding(mesh, P(None, ("fsdp", "context")))
    with jax.set_mesh(mesh):
        gradient = jax.jit(jax.value_and_grad(loss), in_shardings=sharding)
        value, result = gradient(table)
    np.testing.assert_allclose(value, np.sum(table[tokens] * factors), rtol=1e-5)
    np.testing.assert_allclose(result, expected, rtol=1e-6)


def check_output(mesh: Mesh) -> None:
    """Compare the gradient of a matrix of the output, over two chunks of the rows, with softmax minus one-hot."""
    sizes = dict(mesh.shape)
    shards = sizes["fsdp"] * sizes["context"]
    replicas = mesh.size // shards
    rng = np.random.default_rng(3)
    matrix = rng.normal(size=(ROWS, WIDTH)).astype(np.float32)
    states = rng.normal(size=(BATCH, LENGTH, WIDTH)).astype(np.float32)
    targets = rng.integers(0, ROWS, (BATCH, LENGTH)).astype(np.int32)
    scores = np.exp(states @ matrix.T)
    errors = scores / scores.sum(-1, keepdims=True) - np.eye(ROWS)[targets]
    expected = np.einsum("blv,bld->vd", errors, states)
    settings = LossSettings(vocab=ROWS, chunks=2)

    def loss(matrix: jax.Array, states: jax.Array, targets: jax.Array) -> jax.Array:
        whole = gather(matrix, ("vocab", "embed"), "embed")
        weights = jnp.ones(targets.shape)

        def logits(states: jax.Array) -> jax.Array:
            # As BERT's dense layer before the output matrix: `fsdp` shards the rows already, and not the channels too.
            return constrain(states, "batch", "length", "embed") @ whole.T

        return token_cross_entropy(logits, states, targets, weights, settings).total

    sharding = NamedSharding(mesh, P(None, ("fsdp", "context")))
    rows_sharding = NamedSharding(mesh, P(("data", "fsdp"), "context"))
    with jax.set_mesh(mesh):
        gradient = jax.jit(jax.grad(loss), in_shardings=(sharding, rows_sharding, rows_sharding))
        compiled = gradient.lower(matrix, states, targets).compile()
        result = compiled(matrix, states, targets)
    np.testing.assert_allclose(result, expected, rtol=1e-4, atol=1e-5)
    assert result.sharding.is_equivalent_to(sharding, 2)
    # The matrix is gathered once. Its gradient is scattered as it is summed, and each shard summed over `data`.
    matrix_bytes = 4 * ROWS * WIDTH
    at_least = 2 * matrix_bytes * (shards - 1) / shards + 2 * (replicas - 1) / replicas * matrix_bytes / shards
    text = compiled.as_text()
    assert text is not None
    sent = sum(collective.sent for collective in find_collectives(text, sizes))
    assert at_least <= sent <= at_least + 500, (sizes, sent, at_least)


def main() -> None:
    data_and_fsdp = make_mesh(MeshConfig(data=2, fsdp=4))
    check_look_up(data_and_fsdp)
    check_output(data_and_fsdp)
    with_context = make_mesh(MeshConfig(data=2, fsdp=2, context=2))
    check_look_up(with_context)
    check_output(with_context)
    check_output(make_mesh(MeshConfig(data=2, context=4)))
    check_look_up(make_mesh(MeshConfig(fsdp=2, expert=2, context=2)))
    check_undivided_look_up(make_mesh(MeshConfig(data=1, fsdp=4, context=2)))
    sys.stdout.write("equal\n")


if __name__ == "__main__":
    main()
