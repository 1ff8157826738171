"""Tokens made on a mesh of 8 devices, in one process or several, against those of one device.

`python generate_on_meshes.py FAMILY` prints "equal". Run by test_meshes.py in processes of its own, because the number
of devices is fixed when JAX starts.
"""

import sys
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from t5x_lite.config import MeshConfig
from t5x_lite.decode.beam import Beam
from t5x_lite.decode.generate import Generator
from t5x_lite.decode.sampling import Sampling
from t5x_lite.models.config import ModelConfig
from t5x_lite.models.transformer import model_spec
from t5x_lite.parallel import distributed
from t5x_lite.parallel.mesh import make_mesh, shardings

SIZES: dict[str, Any] = {"layers": 2, "embed": 16, "heads": 4, "mlp": 32, "vocab": 64}
FAMILIES = {
    "decoder": {"positions": "rotary", "kv_heads": 2, **SIZES},
    "window": {"pattern": [{}, {"attention": {"local": {"window": 4}}}], **SIZES},
    "encoder_decoder": {"family": "encoder_decoder", "positions": "relative", "norm": "rmsnorm", **SIZES},
}
SAMPLED = Sampling(6, top_k=20, min_p=0.02, repetition_penalty=1.3, seed=5)
BEAM = Beam(6, beams=3, repetition_penalty=2.0)
PROMPTS = [np.arange(4, 4 + size, dtype=np.int32) for size in (5, 2, 7, 3)]


def made(generator: Generator) -> list[np.ndarray]:
    *_, drawn = generator.tokens(PROMPTS, SAMPLED)
    return [drawn, *generator.beams(PROMPTS, BEAM)]


def main() -> None:
    distributed.initialize(Path("unused"))
    mesh = make_mesh(MeshConfig(data=2, fsdp=2, tensor=2))
    config = ModelConfig.model_validate(FAMILIES[sys.argv[1]])
    plan = model_spec(config)

    rng = np.random.default_rng(0)
    # Far from the initial ones: models that always say the same would prove little.
    alone = jax.tree.map(lambda s: jnp.asarray(rng.normal(0, 0.5, s.shape), s.dtype), plan.shapes)
    placed = jax.device_put(jax.device_get(alone), shardings(mesh, plan.axes, plan.shapes))
    generator = Generator(config, plan, placed, None)
    (*expected, scores), (*found, close) = (made(one) for one in (Generator(config, plan, alone, None), generator))
    assert all(len(np.unique(tokens)) >= 5 for tokens in expected), expected
    for one, other in zip(expected, found, strict=True):
        np.testing.assert_array_equal(one, other)
    np.testing.assert_allclose(scores, close, atol=1e-4)

    *_, cache = generator._begin(PROMPTS, 6, 1)
    for leaf in jax.tree.leaves([cache.layers, cache.remembered]):
        own = leaf.addressable_shards[0].data.shape
        assert (own[1], own[2]) == (leaf.shape[1] // 4, leaf.shape[2] // 2)
    print("equal")


if __name__ == "__main__":
    main()
