"""Print the cycles of a product and of a pass over memory on a TPU: `python product_cycles.py TOPOLOGY SIZE BYTES`."""

import json
import sys

from t5x_lite.planner import libtpu
from t5x_lite.planner.compiler_estimate import estimated_cycles


def main() -> None:
    """Compile a product of two square bfloat16 matrices, and a sum of each float32 of an array with a constant."""
    topology, size, array_bytes = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    libtpu.prepare()
    import jax
    import jax.numpy as jnp

    from t5x_lite.planner.topology import find_pod

    device = find_pod(topology, 1).devices[0]
    sharding = jax.sharding.SingleDeviceSharding(device)
    matrix = jax.ShapeDtypeStruct((size, size), jnp.bfloat16, sharding=sharding)
    array = jax.ShapeDtypeStruct((array_bytes // 4,), jnp.float32, sharding=sharding)
    product = jax.jit(jnp.matmul).lower(matrix, matrix).compile().as_text()
    total = jax.jit(lambda x: x + 1).lower(array).compile().as_text()
    print(json.dumps({"product": estimated_cycles(product or ""), "pass": estimated_cycles(total or "")}))


if __name__ == "__main__":
    main()
