"""Compare one step of a small MoE model on meshes of 8 simulated devices with one device; print `equal` at the end.

Run by test_mesh.py in a process of its own, because the number of devices is fixed when JAX starts.
"""

import sys
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, PyTree

from t5x_lite.adapt.lora import LoRA
from t5x_lite.adapt.method import AdaptationMethod
from t5x_lite.models.config import ModelConfig
from t5x_lite.models.experts.activity import router_loss
from t5x_lite.models.sharding import LOGICAL_AXIS_RULES
from t5x_lite.models.spec import ModelSpec, init_params, model_spec
from t5x_lite.parallel import mesh as meshes
from t5x_lite.parallel.config import MeshConfig

EXPERTS = 4
RAGGED = {"dropless": {"kernel": "ragged"}}
CASES: tuple[tuple[str | dict, dict[str, int], int, AdaptationMethod | None], ...] = (
    ({"capacity": {"factor": 1.0}}, {"data": 2, "expert": 2, "tensor": 2}, 16, None),
    ("dropless", {"data": 1, "expert": 2, "fsdp": 2, "tensor": 2}, 16, None),
    (RAGGED, {"data": 4, "fsdp": 2}, 16, None),
    (RAGGED, {"data": 2, "expert": 4}, 16, None),
    (RAGGED, {"data": 2, "expert": 4}, 16, LoRA(targets="experts", rank=4)),
    # 128 or more choices of each device, and room for as many: where they are uneven a second round is needed.
    ({"dropless": {"kernel": "ragged", "buffer": 1.0}}, {"fsdp": 2, "expert": 2, "context": 2}, 128, None),
)
"""Dispatch, mesh, length of a row, and adaptation method."""


def moe_config(dispatch: str | dict) -> ModelConfig:
    """Return two layers, the second with experts."""
    moe = {"experts": EXPERTS, "router": {"top_k": {"k": 2}}, "dispatch": dispatch}
    pattern = [{}, {"feedforward": {"moe": moe}}]
    return ModelConfig.model_validate({"layers": 2, "embed": 16, "heads": 4, "vocab": 12, "pattern": pattern})


def loss_and_statistics(
    config: ModelConfig, spec: ModelSpec, params: PyTree, tokens: Int[Array, "b l"]
) -> tuple[Float[Array, ""], dict[str, Array]]:
    module = spec.model(params)
    logits = module.logits(module(tokens))
    router = router_loss(module, config)
    assert router is not None
    return jnp.mean(jnp.sin(logits)) + router.total, router.means("router")


def compare_with_one_device(
    dispatch: str | dict, sizes: dict[str, int], length: int, method: AdaptationMethod | None
) -> None:
    """Compare loss, statistics and gradients; experts that are sharded receive their tokens by all-to-all."""
    tokens = jnp.asarray(np.random.default_rng(0).integers(0, 11, (8, length)))
    config = moe_config(dispatch)
    surgery = None if method is None else method.surgery
    spec = model_spec(config, surgery)
    params = jax.jit(init_params, static_argnums=(0, 2))(config, jax.random.key(0), surgery)
    step = jax.value_and_grad(partial(loss_and_statistics, config, spec), has_aux=True)
    expected = jax.device_get(jax.jit(step)(params, tokens))

    mesh = meshes.make_mesh(MeshConfig.model_validate(sizes))
    param_shardings = meshes.shardings(mesh, spec.axes, spec.shapes)
    batch_sharding = meshes.batch_sharding(mesh)
    with jax.set_mesh(mesh):
        sharded_params = jax.device_put(params, param_shardings)
        sharded_tokens = jax.device_put(tokens, batch_sharding)
        jitted = jax.jit(step, in_shardings=(param_shardings, batch_sharding))
        compiled = jitted.lower(sharded_params, sharded_tokens).compile()
        result = jax.device_get(compiled(sharded_params, sharded_tokens))
    case = f"{dispatch} on {sizes}"
    assert_close = partial(np.testing.assert_allclose, atol=1e-6, rtol=2e-5, err_msg=case)
    jax.tree.map(assert_close, result, expected)
    if sizes.get("expert", 1) > 1:
        text = compiled.as_text()
        assert text is not None
        is_sorted = "ragged" in case  # a CPU sends sorted rows by gathers
        assert is_sorted or "all-to-all" in text, f"{case}: tokens do not travel by all-to-all"
        up = sharded_params["decoder"]["stack"]["layers"]["1"]["feedforward"]["experts"]["up"]["weight"]
        assert up.sharding.shard_shape(up.shape)[1] == EXPERTS // sizes["expert"], LOGICAL_AXIS_RULES["experts"]


if __name__ == "__main__":
    for case in CASES:
        compare_with_one_device(*case)
    sys.stdout.write("equal\n")
