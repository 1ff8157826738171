"""Token vectors from the characters of the tokens, in the place of a table."""

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int, PRNGKeyArray

from t5x_lite.models.character_config import CharacterCNN
from t5x_lite.models.character_ids import CHARACTERS, CharacterIds
from t5x_lite.models.config import ModelConfig
from t5x_lite.models.layers import ACTIVATIONS, Linear, PromptAdapter, weight
from t5x_lite.models.sharding import constrain


class CharacterFilters(nnx.Module):
    """Filters over neighbouring characters, and the maximum of each over a token. Letters: c characters, f filters."""

    def __init__(self, config: ModelConfig, taps: int, width: int, filters: int, *, rngs: nnx.Rngs) -> None:
        self.dtype = jnp.dtype(config.compute)
        std = config.init.matrix_std(config, taps * width)
        matrix = std * jax.random.normal(rngs.params(), (taps, width, filters), jnp.float32)
        self.weight = weight(matrix, ("taps", "characters", "mlp"), 2)
        self.bias = weight(jnp.zeros(filters, jnp.float32), ("mlp",))

    def __call__(self, x: Float[Array, "n c d"]) -> Float[Array, "n f"]:
        matrix = self.weight[...].astype(self.dtype)
        y = jax.lax.conv_general_dilated(x, matrix, (1,), "VALID", dimension_numbers=("NWC", "WIO", "NWC"))
        return y.max(1) + self.bias[...].astype(self.dtype)


class Highway(nnx.Module):
    """g·x + (1 - g)·f(W x + b) with the gate g = σ(V x + c) (Srivastava et al. 2015, eq. 3).

    The first bias of the gate is 1, as in AllenNLP, so that the layer begins near the identity.
    """

    def __init__(self, config: ModelConfig, settings: CharacterCNN, width: int, *, rngs: nnx.Rngs) -> None:
        self.activation = ACTIVATIONS[settings.activation]
        outputs = [("gates", 2), ("mlp", width)]
        self.linear = Linear(config, [("embed", width)], outputs, bias=True, rngs=rngs)
        assert self.linear.bias is not None
        self.linear.bias[...] = self.linear.bias[...].at[1].set(1.0)

    def __call__(self, x: Float[Array, "b l f"]) -> Float[Array, "b l f"]:
        y = self.linear(x)
        gate = jax.nn.sigmoid(y[:, :, 1])
        return gate * x + (1 - gate) * self.activation(y[:, :, 0])


class CharacterEmbedding(nnx.Module):
    """The vector of each token, computed from its characters (Kim et al. 2016, §2; Peters et al. 2018, §3.4).

    Attributes:
        character_ids: the characters of every token of the vocabulary; `ModelSpec.model` sets it.
        prompt: see `Embed`.
    """

    def __init__(self, config: ModelConfig, settings: CharacterCNN, *, rngs: nnx.Rngs) -> None:
        self.dtype = jnp.dtype(config.compute)
        self.activation = ACTIVATIONS[settings.activation]
        self.character_ids: CharacterIds | None = None
        std = config.init.embedding_std()
        table = std * jax.random.normal(rngs.params(), (CHARACTERS, settings.width), jnp.float32)
        self.characters = weight(table, ("types", "characters"), is_table=True)
        self.filters: nnx.Dict = nnx.Dict()
        for taps, count in enumerate(settings.filters, start=1):
            self.filters[str(taps)] = CharacterFilters(config, taps, settings.width, count, rngs=rngs)
        width = sum(settings.filters)
        self.highways: nnx.Dict = nnx.Dict()
        for number in range(settings.highways):
            self.highways[str(number)] = Highway(config, settings, width, rngs=rngs)
        output = ("embed_out", config.embedding)
        self.projection = Linear(config, [("embed", width)], [output], bias=True, rngs=rngs)
        self.prompt: PromptAdapter | None = nnx.data(None)

    def __call__(self, tokens: Int[Array, "b l"], key: PRNGKeyArray | None = None) -> Float[Array, "b l d"]:
        """Return the vector of each token. No words are dropped, whatever the key."""
        if self.character_ids is None:
            raise ValueError("the characters of the tokens are not known: set ModelSpec.character_ids")
        # Ids below zero are those of soft prompts, whose vectors are learned.
        spelled = jnp.asarray(self.character_ids.table)[jnp.maximum(tokens, 0)].astype(jnp.int32)
        # Looked up before the conversion, so that the gradient of the table is summed in float32.
        x = self.characters[...][spelled.reshape(-1, spelled.shape[-1])].astype(self.dtype)
        filtered = jnp.concatenate([self.filters[str(taps + 1)](x) for taps in range(len(self.filters))], axis=-1)
        y = self.activation(filtered).reshape(*tokens.shape, -1)
        for number in range(len(self.highways)):
            y = self.highways[str(number)](y)
        y = self.projection(y)
        if self.prompt is not None:
            y = self.prompt(y, tokens)
        return constrain(y, "batch", "residual_length", None)
