"""ELECTRA: a generator and a discriminator (Clark et al. 2020)."""

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int, PRNGKeyArray

from t5x_lite.models.config import ModelConfig
from t5x_lite.models.transformer import Encoder


class Electra(nnx.Module):
    """A small generator fills masks, a discriminator predicts which tokens it has replaced.

    Both have the same token table and embedding.
    """

    def __init__(self, config: ModelConfig, *, rngs: nnx.Rngs) -> None:
        self.discriminator = Encoder(config, rngs=rngs)
        self.generator = Encoder(config.generator_model, like=self.discriminator, rngs=rngs)

    def replace_tokens(
        self,
        tokens: Int[Array, "b l"],
        positions: Int[Array, "b p"],
        weights: Float[Array, "b p"],
        states: Float[Array, "b p d"],
        key: PRNGKeyArray | None,
    ) -> Int[Array, "b l"]:
        """Return `tokens` with some replaced by draws from the generator's softmax, through which no gradient passes.

        Args:
            tokens: token ids.
            positions: which to replace, where `weights` are not 0.
            weights: 0 where a position is unused.
            states: the generator's states at `positions`.
            key: None, in evaluation, always draws the same.
        """
        scores = jax.lax.stop_gradient(self.generator.logits(states))
        if key is None:
            key = jax.random.key(0)
        drawn = jax.random.categorical(key, scores).astype(tokens.dtype)
        unused = tokens.shape[1]
        places = jnp.where(weights > 0, positions, unused)
        rows = jnp.arange(tokens.shape[0])[:, None]
        return tokens.at[rows, places].set(drawn, mode="drop")
