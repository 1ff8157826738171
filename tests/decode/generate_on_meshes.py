"""Compare the tokens generated on a mesh of 8 devices, in one process or several, with those of one device.

`python generate_on_meshes.py FAMILY` prints "equal". Run by test_meshes.py in separate processes, because the number of
devices is fixed when JAX starts.
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
from t5x_lite.models.spec import model_spec
from t5x_lite.parallel import distributed
from t5x_lite.parallel.mesh import make_mesh, shardings

SIZES: dict[str, Any] = {"layers": 2, "embed": 16, "heads": 4, "mlp": 32, "vocab": 64}
FAMILIES = {
    "decoder": {"positions": "rotary", "kv_heads": 2, **SIZES},
    "window": {"pattern": [{}, {"attention": {"local": {"window": 4}}}], **SIZES},
    "encoder_decoder": {"family": "encoder_decoder", "positions": "relative", "norm": "rmsnorm", **SIZES},
}
LOGIT_RULES: dict[str, Any] = {
    "no_repeat_ngram_size": 2,
    "min_tokens": 3,
    "stop_tokens": [9, 11],
    "logit_bias": {8: 0.5, (7, 12): -np.inf},
}
SAMPLING = Sampling(6, top_k=20, min_p=0.02, repetition_penalty=1.3, seed=5, **LOGIT_RULES)
BEAM = Beam(6, beams=3, repetition_penalty=2.0, **LOGIT_RULES)
PROMPTS = [np.arange(4, 4 + size, dtype=np.int32) for size in (5, 2, 7, 3)]


def sampled_tokens(generator: Generator) -> np.ndarray:
    return list(generator.stream_tokens(PROMPTS, SAMPLING))[-1]


def main() -> None:
    distributed.initialize(Path("unused"))
    mesh = make_mesh(MeshConfig(data=2, fsdp=2, tensor=2))
    config = ModelConfig.model_validate(FAMILIES[sys.argv[1]])
    spec = model_spec(config)

    rng = np.random.default_rng(0)
    # Larger than initial weights: a model that always generates the same token would prove little.
    params = jax.tree.map(lambda s: jnp.asarray(rng.normal(0, 0.5, s.shape), s.dtype), spec.shapes)
    sharded_params = jax.device_put(jax.device_get(params), shardings(mesh, spec.axes, spec.shapes))
    generator = Generator(config, spec, params, None)
    mesh_generator = Generator(config, spec, sharded_params, None)

    sampled = sampled_tokens(generator)
    hypotheses, scores = generator.search_beams(PROMPTS, BEAM)
    assert len(np.unique(sampled)) >= 5, sampled
    assert len(np.unique(hypotheses)) >= 5, hypotheses
    np.testing.assert_array_equal(sampled, sampled_tokens(mesh_generator))
    mesh_hypotheses, mesh_scores = mesh_generator.search_beams(PROMPTS, BEAM)
    np.testing.assert_array_equal(hypotheses, mesh_hypotheses)
    np.testing.assert_allclose(scores, mesh_scores, atol=1e-4)

    _, _, state = mesh_generator._prefill_prompts(PROMPTS, new_tokens=6, copies=1)
    for leaf in jax.tree.leaves([state.cache.layers, state.cache.cross_kv]):
        shard = leaf.addressable_shards[0].data.shape
        assert (shard[1], shard[2]) == (leaf.shape[1] // 4, leaf.shape[2] // 2)
    print("equal")


if __name__ == "__main__":
    main()
