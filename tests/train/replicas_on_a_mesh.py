"""Flip one bit of a parameter on one of 8 simulated devices, and print what the check of the replicas reports.

Run by test_replicas.py in a process of its own, because the number of devices is fixed when JAX starts.
"""

import sys

import jax
import numpy as np

from t5x_lite.errors import ReplicaMismatch
from t5x_lite.models.layers import WeightAxes
from t5x_lite.parallel.config import MeshConfig
from t5x_lite.parallel.mesh import make_mesh, sharding_of
from t5x_lite.train.replicas import ReplicaCheck

STEP = 7
AXES = {"even": WeightAxes(("embed", "mlp"), 1), "bias": WeightAxes(("head_dim",))}


def flip_bit(array: jax.Array, device_id: int) -> jax.Array:
    """Return the array with another value of one bit of one number on one device."""
    shards = []
    for shard in array.addressable_shards:
        values = np.array(shard.data)
        if shard.device.id == device_id:
            values.reshape(-1).view(np.uint32)[1] ^= 1 << 9
        shards.append(jax.device_put(values, shard.device))
    return jax.make_array_from_single_device_arrays(array.shape, array.sharding, shards)


def main() -> None:
    mesh = make_mesh(MeshConfig(data=2, fsdp=2, tensor=2))
    values = {"even": np.random.default_rng(0).standard_normal((8, 16), np.float32), "bias": np.ones(6, np.float32)}
    shardings = {name: sharding_of(mesh, AXES[name], value.shape) for name, value in values.items()}
    params = {name: jax.device_put(value, shardings[name]) for name, value in values.items()}
    replicas = ReplicaCheck(mesh, shardings)
    replicas.check(STEP, params)
    for name, device_id in (("even", 5), ("bias", 3)):
        corrupted_params = {**params, name: flip_bit(params[name], device_id)}
        try:
            replicas.check(STEP, corrupted_params)
        except ReplicaMismatch as error:
            sys.stdout.write(f"{error}\n")


if __name__ == "__main__":
    main()
