"""Models with random weights, created without compiling an initialisation."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import DictKey

from t5x_lite.models.config import ModelConfig
from t5x_lite.models.spec import model_spec


def random_model(config: ModelConfig, std: float = 0.2) -> Any:
    """Return a model whose weights are normal with mean 0; the scales of norms have mean 1.

    Biases and norms then have an effect too, which those of a fresh model do not have.
    """
    spec = model_spec(config)
    rng = np.random.default_rng(0)

    def draw(path: tuple[DictKey, ...], shape: jax.ShapeDtypeStruct) -> jax.Array:
        mean = 1.0 if path[-1].key == "scale" else 0.0
        return jnp.asarray(mean + std * rng.normal(size=shape.shape), jnp.float32)

    return spec.model(jax.tree_util.tree_map_with_path(draw, spec.shapes))
