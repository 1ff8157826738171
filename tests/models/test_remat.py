"""What the policies of rematerialisation keep in the compiled program."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jaxtyping import Array, Float, PyTree

from t5x_lite.models.config import ModelConfig
from t5x_lite.models.remat import rematerialised
from t5x_lite.models.spec import init_params, model_spec

LAYERS = 4
ROWS = 2
LENGTH = 64
EMBED = 64
MLP = 512
TOKENS = ROWS * LENGTH
LAYER_BYTES = {
    "save_inner": 4 * TOKENS * (EMBED + EMBED + 3 * EMBED + MLP),
    "save_projections": 4 * TOKENS * (EMBED + EMBED + 3 * EMBED),
    "save_attention": 4 * TOKENS * (EMBED + EMBED),
    "full": 4 * TOKENS * EMBED,
}
"""What each policy keeps of a layer in float32, by hand: its input, the output of attention, queries, keys and values,
and the inner product of the feed-forward."""


def temporary_bytes(remat: str, layers: int) -> int:
    """Return the bytes beside arguments and results of a compiled gradient."""
    config = ModelConfig.model_validate(
        {"layers": layers, "embed": EMBED, "mlp": MLP, "heads": 4, "vocab": 8, "positions": "rotary", "remat": remat}
    )
    spec = model_spec(config)
    tokens = np.zeros((ROWS, LENGTH), np.int32)

    def loss(params: PyTree) -> Float[Array, ""]:
        model = spec.model(params)
        return jnp.square(model.logits(model(tokens))).mean()

    shapes = jax.eval_shape(lambda: init_params(config, jax.random.key(0)))
    return jax.jit(jax.grad(loss)).lower(shapes).compile().memory_analysis().temp_size_in_bytes


@pytest.mark.slow
def test_the_compiled_program_keeps_what_the_policy_names() -> None:
    """Further layers need what is kept of them; the working memory of the backward pass stays the same."""
    layer_bytes = {}
    for policy in ("none", "dots", *LAYER_BYTES):
        layer_bytes[policy] = (temporary_bytes(policy, 2 * LAYERS) - temporary_bytes(policy, LAYERS)) / LAYERS
    for policy, expected in LAYER_BYTES.items():
        assert layer_bytes[policy] == pytest.approx(expected, rel=0.05)
    assert layer_bytes["none"] > layer_bytes["dots"] > layer_bytes["save_inner"]


def test_auto_is_no_policy_of_a_model() -> None:
    with pytest.raises(ValueError, match=r"model\.remat auto is chosen when a run starts"):
        rematerialised(lambda carry, x: (carry, x), "auto")
