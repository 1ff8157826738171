"""Models with random weights, made without compiling an initialisation."""

import jax
import jax.numpy as jnp
import numpy as np

from t5x_lite.models.config import ModelConfig
from t5x_lite.models.spec import model_spec


def random_model(config: ModelConfig, deviation: float = 0.2) -> object:
    """Every weight normal, scales of norms around one."""
    plan, rng = model_spec(config), np.random.default_rng(0)

    def weight(path: tuple, shape: jax.ShapeDtypeStruct) -> jax.Array:
        centre = 1.0 if path[-1].key == "scale" else 0.0
        return jnp.asarray(centre + deviation * rng.normal(size=shape.shape), jnp.float32)

    return plan.model(jax.tree_util.tree_map_with_path(weight, plan.shapes))
