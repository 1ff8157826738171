"""Soft prompts: learned vectors before every input (prompt tuning: Lester et al. 2021; prefixes: Li & Liang 2021)."""

from typing import TYPE_CHECKING, ClassVar

from jaxtyping import Float
from jaxtyping import Int as IntArray

from t5x_lite.adapt.method import AdaptationMethod
from t5x_lite.arrays import Array
from t5x_lite.models.config import ModelConfig
from t5x_lite.models.mixers import LatentAttention, SelfAttention
from t5x_lite.schema import Int, setting

if TYPE_CHECKING:
    from flax import nnx

    from t5x_lite.models.surgery import Adapter, Parameters, Surgeon


class Prompt(AdaptationMethod):
    """`length` learned embeddings come before each input (of an encoder_decoder: of its encoder) and train alone."""

    freezes_base: ClassVar[bool] = True

    length: Int = setting(
        20, "virtual tokens, which take room of train.seq_len", ge=1, source="Lester et al. 2021, §3.2"
    )

    @property
    def num_virtual_tokens(self) -> int:
        return self.length

    def check(self, model: ModelConfig) -> None:
        """Raise ValueError for more virtual tokens than the model has positions."""
        if model.max_length is not None and self.length >= model.max_length:
            raise ValueError(f"adapt.method length {self.length}: the model has {model.max_length} positions")

    def surgery(self, surgeon: "Surgeon") -> None:
        """Add the vectors of the token ids -1, -2 and so on."""
        import jax
        import jax.numpy as jnp

        from t5x_lite.models.layers import weight

        config = surgeon.config

        def create(rngs: "nnx.Rngs") -> "Parameters":
            shape = (self.length, config.embedding)
            vectors = config.init.embedding_std() * jax.random.normal(rngs.params(), shape, jnp.float32)
            return {"vectors": weight(vectors, ("position", "embed"), is_table=True)}

        surgeon.adapt_embedding(self, create)

    def adapt_embedding(
        self, adapter: "Adapter", x: Float[Array, "b l d"], tokens: IntArray[Array, "b l"]
    ) -> Float[Array, "b l d"]:
        """Put the learned vectors in the place of those of ids below zero."""
        import jax.numpy as jnp

        # Looked up before the conversion, so that the gradients are summed in float32.
        learned = adapter.vectors[...][jnp.maximum(-1 - tokens, 0)].astype(x.dtype)
        return jnp.where((tokens < 0)[..., None], learned, x)


class Prefix(Prompt):
    """As `prompt`, with learned keys and values of the virtual tokens in every layer that reads the inputs."""

    def check(self, model: ModelConfig) -> None:
        """Raise ValueError for too many virtual tokens, or a layer without keys and values of each head."""
        super().check(model)
        for layer in (*model.first, *model.period):
            if not isinstance(layer.mixer, SelfAttention) or isinstance(layer.mixer, LatentAttention):
                raise ValueError(
                    "adapt.method prefix needs layers of plain attention, whose keys and values it replaces; take "
                    "prompt"
                )

    def surgery(self, surgeon: "Surgeon") -> None:
        """Add keys and values of a row's first tokens (Li & Liang 2021, §4)."""
        import jax
        import jax.numpy as jnp

        from t5x_lite.models.layers import weight

        config = surgeon.config

        def create(rngs: "nnx.Rngs") -> "Parameters":
            shape = (self.length, config.kv_heads, config.head_dim)
            names = ("position", "kv_heads", "head_dim")
            std = config.init.matrix_std(config, config.embed)
            key = std * jax.random.normal(rngs.params(), shape, jnp.float32)
            value = std * jax.random.normal(rngs.params(), shape, jnp.float32)
            return {"key": weight(key, names), "value": weight(value, names)}

        surgeon.adapt_keys_values(self, create)

    def adapt_keys_values(
        self,
        adapter: "Adapter",
        key: Float[Array, "b m n k"],
        value: Float[Array, "b m n k"],
        positions: IntArray[Array, "b m"],
    ) -> tuple[Float[Array, "b m n k"], Float[Array, "b m n k"]]:
        """Replace the keys and values of the first positions."""
        import jax.numpy as jnp

        is_prefix = (positions < self.length)[..., None, None]
        position = jnp.minimum(positions, self.length - 1)
        prefix_key = adapter.key[...][position].astype(key.dtype)
        prefix_value = adapter.value[...][position].astype(value.dtype)
        return jnp.where(is_prefix, prefix_key, key), jnp.where(is_prefix, prefix_value, value)
