"""Check that the states after every layer of a model in stages are those of one device; print `equal` at the end.

Run by test_mesh.py in a process of its own, because the number of devices is fixed when JAX starts.
"""

from functools import partial

import jax
import numpy as np

from t5x_lite.evaluate.layer_states import compute_layer_states
from t5x_lite.models.config import ModelConfig
from t5x_lite.models.spec import init_params, model_spec
from t5x_lite.parallel.config import MeshConfig
from t5x_lite.parallel.mesh import make_mesh, shardings


def main() -> None:
    config = ModelConfig.model_validate({"layers": 4, "embed": 16, "heads": 2, "vocab": 32, "positions": "rotary"})
    spec = model_spec(config)
    params = init_params(config, jax.random.key(0))
    tokens = np.random.default_rng(0).integers(0, 32, (8, 6)).astype(np.int32)
    batch = {"tokens": tokens, "segment_ids": np.ones_like(tokens)}
    states = []
    for mesh_config in (MeshConfig(data=8), MeshConfig(data=2, pipeline=4)):
        mesh = make_mesh(mesh_config)
        with jax.set_mesh(mesh):
            weights = jax.device_put(params, shardings(mesh, spec.axes, spec.shapes))
            states.append(np.asarray(jax.jit(partial(compute_layer_states, spec))(weights, batch)))
    assert states[0].shape == (5, 8, 6, 16)
    np.testing.assert_allclose(states[1], states[0], atol=1e-5)
    print("equal")


if __name__ == "__main__":
    main()
