"""ELECTRA: a generator and a discriminator (Clark et al. 2020)."""

from collections.abc import Mapping

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int, PRNGKeyArray

from t5x_lite.models.config import ModelConfig
from t5x_lite.models.layers import Embed, weight
from t5x_lite.models.transformer import Encoder

DISCRIMINATOR = "discriminator."
TOKENS = "tokens.weight"
OTHER_TOKENS = "tokens.other.weight"


class EmbedDifference(Embed):
    """A token table that is another one, through which no gradient passes, plus a trained difference.

    Gradient-disentangled embedding sharing (DeBERTa-v3: He et al. 2023, §3.4). `weight` is the difference, E_Δ.

    Attributes:
        other: the other table, E_G.
    """

    def __init__(self, config: ModelConfig, other: Embed, *, rngs: nnx.Rngs) -> None:
        rows, width = other.weight.shape
        super().__init__(config, rows, width, rngs=rngs)
        self.weight = weight(jnp.zeros((rows, width), jnp.float32), (self.axis, "embed"), is_table=True)
        self.other = other

    @property
    def rows(self) -> Float[Array, "v d"]:
        """The sum of both."""
        return jax.lax.stop_gradient(self.other.rows) + self.weight[...]


class Electra(nnx.Module):
    """A small generator fills masks, a discriminator predicts which tokens it has replaced.

    Both have the same token table and embedding, or what `model.generator.embedding_sharing` says.
    """

    def __init__(self, config: ModelConfig, *, rngs: nnx.Rngs) -> None:
        assert config.generator is not None
        sharing = config.generator.embedding_sharing
        self.discriminator = Encoder(config, rngs=rngs)
        shared_with = self.discriminator if sharing == "shared" else None
        self.generator = Encoder(config.generator_model, shared_with=shared_with, rngs=rngs)
        if sharing == "gradient_disentangled":
            assert isinstance(self.generator.tokens, Embed)
            self.discriminator.tokens = EmbedDifference(config, self.generator.tokens, rngs=rngs)

    @property
    def text_model(self) -> Encoder:
        """The model that reads a text: the discriminator."""
        return self.discriminator

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


def discriminator_weights(weights: Mapping[str, Array]) -> dict[str, Array]:
    """Return the weights of the discriminator as those of an encoder, by name, with its token table in one array."""
    arrays = {
        name.removeprefix(DISCRIMINATOR): array for name, array in weights.items() if name.startswith(DISCRIMINATOR)
    }
    if OTHER_TOKENS in arrays:
        arrays[TOKENS] = arrays[TOKENS] + arrays.pop(OTHER_TOKENS)
    return arrays
