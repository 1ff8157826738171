"""The recurrent block of Griffin: a gated linear recurrence behind a short convolution (De et al. 2024, §2.3-2.4)."""

from collections.abc import Iterator
from typing import TYPE_CHECKING, ClassVar

from jaxtyping import Bool, Float

from t5x_lite.arrays import Array
from t5x_lite.models.mixers.mixer import MixerState, StateMixer
from t5x_lite.schema import Int, setting

if TYPE_CHECKING:
    from flax import nnx
    from jaxtyping import PRNGKeyArray

    from t5x_lite.models.config import ModelConfig
    from t5x_lite.models.mixers.module import MixerModule

GATE_SCALE = 8.0
"""c of a = σ(Λ)^(c·r) (De et al. 2024, §2.4)."""
INITIAL_DECAYS = (0.9, 0.999)
"""Range of the initial σ(Λ)^c (De et al. 2024, §2.4)."""


class RGLRU(StateMixer):
    """Real-gated linear recurrent unit: h = a·h + sqrt(1 - a²)·i·x, whose decay a = σ(Λ)^(c·r) depends on the input.

    The gates r and i are block-diagonal maps of the input. A GELU branch multiplies the recurrence (Griffin, Hawk,
    RecurrentGemma).
    """

    has_bias: ClassVar[bool] = True

    width: Int | None = setting(None, "channels of the recurrence; null takes `model.embed`", ge=1)
    blocks: Int | None = setting(None, "blocks of the gates' maps; null takes `model.heads`", ge=1)
    taps: Int = setting(4, "tokens that the convolution reads", ge=1)

    def channels(self, model: "ModelConfig") -> tuple[int, int]:
        """Return the number of blocks and their width."""
        width = self.width or model.embed
        blocks = self.blocks or model.heads
        return blocks, width // blocks

    def resolve(self, model: "ModelConfig") -> "RGLRU":
        """Return the mixer with its width and its number of blocks."""
        blocks, block_width = self.channels(model)
        return self.model_copy(update={"width": blocks * block_width, "blocks": blocks})

    def init_parameters(self, model: "ModelConfig", rngs: "nnx.Rngs") -> "dict[str, nnx.Module | nnx.Param]":
        """Return the maps around the recurrence, its convolution, its two gates and Λ.

        `decay` is the inverse softplus of -log σ(Λ): the recurrence computes log a = -c · r · softplus(decay).
        """
        import jax
        import jax.numpy as jnp

        from t5x_lite.models.layers import Linear, weight
        from t5x_lite.models.mixers.block_linear import BlockLinear
        from t5x_lite.models.mixers.convolution import CausalConvolution

        blocks, block_width = self.channels(model)
        embed = ("embed", model.embed)
        channels = [("heads", blocks), ("head_dim", block_width)]

        low, high = INITIAL_DECAYS
        decay = jax.random.uniform(rngs.params(), (blocks, block_width), jnp.float32, low, high)
        return {
            "branch": Linear(model, [embed], channels, rngs=rngs),
            "input": Linear(model, [embed], channels, rngs=rngs),
            "convolution": CausalConvolution(self.taps, channels, rngs),
            "input_gate": BlockLinear(model, blocks, block_width, rngs),
            "decay_gate": BlockLinear(model, blocks, block_width, rngs),
            "decay": weight(jnp.log(jnp.expm1(-jnp.log(decay) / GATE_SCALE)), ("heads", "head_dim")),
            "out": Linear(model, channels, [embed], residual=True, rngs=rngs),
        }

    def empty_state(self, model: "ModelConfig", batch: int) -> MixerState:
        """Return zeros for the recurrence and for the inputs of the convolution."""
        import jax.numpy as jnp

        channels = self.channels(model)
        return {
            "h": jnp.zeros((batch, *channels), jnp.float32),
            "inputs": jnp.zeros((batch, self.taps - 1, *channels), model.compute),
        }

    def mix(
        self,
        parameters: "MixerModule",
        x: Float[Array, "b l d"],
        continues: Bool[Array, "b l"],
        state: MixerState,
        key: "PRNGKeyArray | None",
    ) -> tuple[Float[Array, "b l d"], MixerState]:
        """Convolve, run the recurrence in parallel over the row, and multiply by the branch."""
        import jax
        import jax.numpy as jnp

        from t5x_lite.models.mixers.linear_recurrence import bounded_sqrt, linear_recurrence

        branch = jax.nn.gelu(parameters.branch(x), approximate=True)
        u, inputs = parameters.convolution(parameters.input(x), continues, state["inputs"])
        decay_gate = jax.nn.sigmoid(parameters.decay_gate(u))
        input_gate = jax.nn.sigmoid(parameters.input_gate(u))
        log_decay = -GATE_SCALE * decay_gate * jax.nn.softplus(parameters.decay[...])
        is_continued = continues[:, :, None, None]
        root = bounded_sqrt(1 - jnp.exp(2 * log_decay))
        # The first token of a document enters with its full size, as nothing decays (transformers: recurrent_gemma).
        entering = jnp.where(is_continued, root, 1.0) * input_gate * u.astype(jnp.float32)
        h = linear_recurrence(jnp.where(is_continued, jnp.exp(log_decay), 0.0), entering, state["h"])
        y = parameters.out(h.astype(x.dtype) * branch)
        return y, {"h": h[:, -1], "inputs": inputs}

    def scan_flops(self, model: "ModelConfig") -> float:
        """Return the FLOPs of the convolution and of the recurrence, of 2 for each channel and product."""
        blocks, block_width = self.channels(model)
        return 2.0 * blocks * block_width * (self.taps + 1)

    def model_problems(self, model: "ModelConfig") -> Iterator[str]:
        """Yield a width that the blocks do not divide."""
        width = self.width or model.embed
        blocks = self.blocks or model.heads
        if width % blocks:
            yield f"rg_lru: width {width} is not a multiple of its {blocks} blocks"
