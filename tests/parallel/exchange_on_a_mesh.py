"""Compare exchanges of rows on four simulated devices with lists; print `equal` at the end.

Run by test_mesh.py in a process of its own, because the number of devices is fixed when JAX starts.
"""

import contextlib
import io
import re
import sys

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.ad_checkpoint import print_saved_residuals
from jax.sharding import Mesh, PartitionSpec
from jaxtyping import Array, Float, Int, PyTree

from t5x_lite.models.config import ModelConfig
from t5x_lite.models.experts.exchange import EXPERT_AXIS, exchange, exchange_window, simulate_ragged_all_to_all
from t5x_lite.models.experts.layer import MixtureOfExperts
from t5x_lite.models.remat import rematerialised
from t5x_lite.parallel.config import MeshConfig
from t5x_lite.parallel.mesh import make_mesh

DEVICES = 4
EXPERTS = 8
ROWS = 40
WIDTH = 3
MESH = Mesh(jax.devices()[:DEVICES], EXPERT_AXIS)
SPLIT = PartitionSpec(EXPERT_AXIS)


def compare_with_the_example_of_jax() -> None:
    """The example in the documentation of `jax.lax.ragged_all_to_all`, for two devices."""
    mesh = Mesh(jax.devices()[:2], EXPERT_AXIS)

    def send(operand: Array, starts: Array, sizes: Array, places: Array, received: Array) -> Array:
        output = jnp.zeros((4, 1))
        return simulate_ragged_all_to_all(operand, output, starts, sizes, places, received, axis_name=EXPERT_AXIS)

    result = jax.shard_map(send, mesh=mesh, in_specs=SPLIT, out_specs=SPLIT, check_vma=False)(
        jnp.array([[1.0], [2], [2], [3], [4], [0]]),
        jnp.array([0, 1, 0, 1]),
        jnp.array([1, 2, 1, 1]),
        jnp.array([0, 0, 1, 2]),
        jnp.array([1, 1, 2, 1]),
    )
    np.testing.assert_array_equal(result[:, 0], [1, 3, 0, 0, 2, 2, 4, 0])


def random_rows() -> tuple[Int[np.ndarray, "p e"], Float[np.ndarray, "p n d"]]:
    """Return how many rows each device has for each expert, and the rows, of which no two are equal.

    The first two experts, those of one device, get half of the rows, and the third none; some rows have no expert.
    """
    rng = np.random.default_rng(0)
    shares = [0.3, 0.2, 0, 0.1, 0.1, 0.1, 0.05, 0.05, 0.1]
    experts = rng.choice(EXPERTS + 1, (DEVICES, ROWS), p=shares)
    counts = np.array([np.bincount(of_device, minlength=EXPERTS + 1)[:EXPERTS] for of_device in experts])
    return counts, rng.normal(size=(DEVICES, ROWS, WIDTH))


def compare_with_lists(room: int) -> None:
    """Every window has the rows of its device's experts, in the order of experts and senders, and they come back."""
    counts, rows = random_rows()
    received: list[list[tuple[int, int]]] = [[] for _ in range(DEVICES)]  # sender and row
    for expert in range(EXPERTS):
        for sender in range(DEVICES):
            start = counts[sender, :expert].sum()
            places = [(sender, start + number) for number in range(counts[sender, expert])]
            received[expert // (EXPERTS // DEVICES)].extend(places)

    def run_window(rows: Array, factors: Array, first: Array) -> tuple[Array, Array, Array]:
        window = exchange_window(jnp.asarray(counts), first, room)
        there = exchange(rows, window.to_experts, window.back, room)
        returned = exchange(there * factors, window.back, window.to_experts, ROWS)
        return there, returned, window.rows_of_expert

    run = jax.jit(
        jax.shard_map(run_window, mesh=MESH, in_specs=(SPLIT, SPLIT, PartitionSpec()), out_specs=SPLIT, check_vma=False)
    )
    factors = np.random.default_rng(1).normal(size=(DEVICES, room, 1)).astype(np.float32)
    flat_factors = factors.reshape(-1, 1)
    flat_rows = jnp.asarray(rows.reshape(-1, WIDTH), jnp.float32)
    output_weights = np.random.default_rng(2).normal(size=flat_rows.shape).astype(np.float32)
    for first in range(0, max(map(len, received)), room):
        expected_there = np.zeros((DEVICES, room, WIDTH))
        factor_of_row = np.zeros((DEVICES, ROWS, 1))
        for device in range(DEVICES):
            for place, (sender, row) in enumerate(received[device][first : first + room]):
                expected_there[device, place] = rows[sender, row]
                factor_of_row[sender, row] = factors[device, place]
        there, returned, rows_of_expert = run(flat_rows, flat_factors, first)
        np.testing.assert_allclose(there, expected_there.reshape(-1, WIDTH), rtol=1e-6)
        np.testing.assert_allclose(returned, (factor_of_row * rows).reshape(-1, WIDTH), rtol=1e-5)
        in_window = [len(places[first : first + room]) for places in received]
        np.testing.assert_array_equal(rows_of_expert.reshape(DEVICES, -1).sum(1), in_window)

        def weigh_outputs(rows: Array, first: int = first) -> Array:
            return jnp.sum(run(rows, flat_factors, first)[1] * output_weights)

        expected_gradient = factor_of_row.reshape(-1, 1) * output_weights
        np.testing.assert_allclose(jax.grad(weigh_outputs)(flat_rows), expected_gradient, rtol=1e-5)


def check_what_is_kept() -> None:
    """With `remat: save_inner` the products of the first round's gate and up, and what is exchanged, are kept.

    A device has 64 tokens with two choices each, and room for 1.25 times as many, rounded up to 256 rows.
    """
    moe = {
        "experts": 8,
        "router": {"top_k": {"k": 2}},
        "dispatch": {"dropless": {"kernel": "ragged"}},
        "expert": {"glu": {"activation": "silu"}},
    }
    settings = {"layers": 2, "embed": 16, "heads": 2, "vocab": 12, "mlp": 48, "feedforward": {"moe": moe}}
    config = ModelConfig.model_validate(settings)
    graph, params = nnx.split(MixtureOfExperts(config, config.mixtures[0], rngs=nnx.Rngs(0)))

    def apply_layer(x: Float[Array, "b l d"], params: PyTree) -> tuple[Float[Array, "b l d"], None]:
        return nnx.merge(graph, params)(x, jnp.ones(x.shape[:2], bool), None), None

    output = io.StringIO()
    mesh = make_mesh(MeshConfig(data=1, fsdp=2, expert=4))
    with jax.set_mesh(mesh), contextlib.redirect_stdout(output):
        print_saved_residuals(rematerialised(apply_layer, "save_inner"), jnp.ones((8, 64, 16)), params)
    kept = re.findall(r"^f32\[([\d,]+)\] output of", output.getvalue(), re.MULTILINE)
    assert sorted(kept) == ["1024,16", "2048,16", "2048,48", "2048,48"], kept


if __name__ == "__main__":
    compare_with_the_example_of_jax()
    check_what_is_kept()
    for room in (ROWS * DEVICES, 16):
        compare_with_lists(room)
    sys.stdout.write("equal\n")
