"""Short causal convolutions along a row, one filter for each channel, inside the documents of the row."""

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float

from t5x_lite.models.layers import Weight, weight


class CausalConvolution(nnx.Module):
    """Filters over the last `taps` tokens of a document: weight `[taps, *channels]`, bias `[*channels]`."""

    def __init__(self, taps: int, channels: list[tuple[str, int]], rngs: nnx.Rngs, *, bias: bool = True) -> None:
        names = tuple(name for name, _ in channels)
        shape = [size for _, size in channels]
        filters = taps**-0.5 * jax.random.normal(rngs.params(), (taps, *shape), jnp.float32)
        self.weight = weight(filters, ("taps", *names))
        if bias:
            self.bias: Weight | None = weight(jnp.zeros(shape, jnp.float32), names)
        else:
            self.bias = None

    def __call__(
        self, x: Float[Array, "b l *d"], continues: Bool[Array, "b l"], history: Float[Array, "b t *d"]
    ) -> tuple[Float[Array, "b l *d"], Float[Array, "b t *d"]]:
        """Return the filtered tokens, and the inputs that the next token needs.

        Args:
            x: the inputs.
            continues: see `StateMixer.mix`.
            history: inputs of the tokens before the row, zero where they belong to another document.
        """
        taps = len(self.weight[...])
        length = x.shape[1]
        documents = document_numbers(continues)
        all_documents = jnp.pad(documents, [(0, 0), (taps - 1, 0)])
        inputs = jnp.concatenate([history.astype(x.dtype), x], axis=1)
        filters = self.weight[...].astype(x.dtype)
        broadcast = [1] * (x.ndim - 2)
        y = jnp.zeros_like(x)
        for tap in range(taps):
            is_same = all_documents[:, tap : tap + length] == documents
            masked = inputs[:, tap : tap + length] * is_same.reshape(*is_same.shape, *broadcast)
            y = y + filters[tap] * masked
        if self.bias is not None:
            y = y + self.bias[...].astype(x.dtype)
        is_last = all_documents[:, length:] == documents[:, -1:]
        new_history = inputs[:, length:] * is_last.reshape(*is_last.shape, *broadcast)
        return y, new_history.astype(history.dtype)


def document_numbers(continues: Bool[Array, "b l"]) -> Array:
    """Return the number of each token's document; 0 is the document of the token before the row."""
    return jnp.cumsum(~continues, axis=1)
