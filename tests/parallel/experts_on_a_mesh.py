"""One step of a small MoE model on several meshes of 8 simulated devices, against one device: prints nothing if equal.

Run by test_mesh.py in a process of its own, because the number of devices is fixed when JAX starts.
"""

import sys
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from t5x_lite.config import MeshConfig
from t5x_lite.models.config import ModelConfig
from t5x_lite.models.experts.routing import routing
from t5x_lite.models.sharding import RULES
from t5x_lite.models.transformer import init_params, model_spec
from t5x_lite.parallel import mesh as meshes

CASES: tuple[tuple[Any, tuple[dict[str, int], ...]], ...] = (
    ({"capacity": {"factor": 1.0}}, ({"data": 2, "expert": 2, "tensor": 2},)),
    ("dropless", ({"data": 1, "expert": 2, "fsdp": 2, "tensor": 2},)),
    ({"dropless": {"kernel": "ragged"}}, ({"data": 4, "fsdp": 2},)),
)


def main() -> None:
    """Loss, statistics and gradients on each mesh; experts travel by all-to-all."""
    tokens = jnp.asarray(np.random.default_rng(0).integers(0, 11, (8, 16)))
    for dispatch, sizes_of_meshes in CASES:
        feedforward = {"moe": {"experts": 4, "router": {"top_k": {"k": 2}}, "dispatch": dispatch}}
        pattern = [{}, {"feedforward": feedforward}]
        config = ModelConfig.model_validate({"layers": 2, "embed": 16, "heads": 4, "vocab": 12, "pattern": pattern})
        plan, params = model_spec(config), jax.jit(init_params, static_argnums=0)(config, jax.random.key(0))

        def loss(params: Any, tokens: jax.Array, plan: Any = plan, config: ModelConfig = config) -> tuple[Any, Any]:
            module = plan.model(params)
            logits = module.logits(module(tokens))
            seen = routing(module, config)
            assert seen is not None
            return jnp.mean(jnp.sin(logits)) + seen.total, seen.means("router")

        run = jax.value_and_grad(loss, has_aux=True)
        expected = jax.device_get(jax.jit(run)(params, tokens))
        for sizes in sizes_of_meshes:
            mesh = meshes.make_mesh(MeshConfig.model_validate(sizes))
            placed = meshes.shardings(mesh, plan.axes, plan.shapes)
            with jax.set_mesh(mesh):
                step = jax.jit(run, in_shardings=(placed, meshes.batch_sharding(mesh)))
                sharded = (jax.device_put(params, placed), jax.device_put(tokens, meshes.batch_sharding(mesh)))
                compiled = step.lower(*sharded).compile()
                found = jax.device_get(compiled(*sharded))
            compare = partial(np.testing.assert_allclose, atol=1e-6, rtol=2e-5, err_msg=f"{dispatch} on {sizes}")
            jax.tree.map(compare, found, expected)
            if sizes.get("expert", 1) > 1:
                assert "all-to-all" in compiled.as_text(), f"{dispatch} on {sizes}: tokens do not travel by all-to-all"
                up = sharded[0]["decoder"]["stack"]["layers"]["1"]["feedforward"]["experts"]["up"]["weight"]
                assert up.sharding.shard_shape(up.shape)[1] == 4 // sizes["expert"], RULES["experts"]


if __name__ == "__main__":
    main()
    sys.stdout.write("equal\n")
