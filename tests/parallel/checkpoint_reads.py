"""Save and restore a sharded state, and write how many bytes each process has read for it.

Arguments: a folder, to which the checkpoints and PROCESS.json go. The environment holds the variables of
`jax.distributed`.
"""

import json
import os
import sys
from pathlib import Path

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from t5x_lite.checkpoint import Checkpoints
from t5x_lite.checkpoint_config import CheckpointConfig

SHAPE = (4096, 1024)
"""An array of 16 MB."""


def count_bytes_read() -> int:
    """Return the bytes that the process has read from files since its start (proc(5), `/proc/pid/io`)."""
    for line in Path("/proc/self/io").read_text().splitlines():
        name, value = line.split(": ")
        if name == "rchar":
            return int(value)
    raise AssertionError("no line rchar")


def make_array(seed: int, sharding: NamedSharding) -> jax.Array:
    values = np.random.default_rng(seed).standard_normal(SHAPE, np.float32)
    return jax.make_array_from_callback(SHAPE, sharding, values.__getitem__)


def main() -> None:
    jax.distributed.initialize(
        os.environ["JAX_COORDINATOR_ADDRESS"],
        int(os.environ["JAX_NUM_PROCESSES"]),
        int(os.environ["JAX_PROCESS_ID"]),
    )
    sharding = NamedSharding(Mesh(np.array(jax.devices()), ("data",)), PartitionSpec("data"))
    state = {"first": make_array(0, sharding), "second": make_array(1, sharding)}
    shapes = {name: jax.ShapeDtypeStruct(SHAPE, np.float32, sharding=sharding) for name in state}
    folder = Path(sys.argv[1])
    checkpoints = Checkpoints(folder / "checkpoints", CheckpointConfig())

    before_save = count_bytes_read()
    checkpoints.save(1, state, {})
    checkpoints.wait()
    after_save = count_bytes_read()
    multihost_utils.sync_global_devices("saved")

    before_restore = count_bytes_read()
    restored = checkpoints.restore(shapes)
    after_restore = count_bytes_read()
    assert restored is not None
    for name, array in restored[1].items():
        for shard, original in zip(array.addressable_shards, state[name].addressable_shards, strict=True):
            np.testing.assert_array_equal(shard.data, original.data)
    checkpoints.close()
    bytes_read = {"save": after_save - before_save, "restore": after_restore - before_restore}
    (folder / f"{jax.process_index()}.json").write_text(json.dumps(bytes_read))


if __name__ == "__main__":
    main()
