"""Transformer-XL's relative positions (Dai et al. 2019, §3.3)."""

from collections.abc import Iterator
from typing import TYPE_CHECKING

from jaxtyping import Float

from t5x_lite.arrays import Array
from t5x_lite.models.positions.encoding import Place, PositionEncoding
from t5x_lite.models.positions.relative_shift import PairOffsets
from t5x_lite.models.positions.sinusoidal import sinusoids
from t5x_lite.schema import setting

if TYPE_CHECKING:
    from flax import nnx

    from t5x_lite.models.attention.context import AttentionContext, ContentBias, ContentPairs
    from t5x_lite.models.config import ModelConfig
    from t5x_lite.models.positions.module import ContentParameters


class TransformerXL(PositionEncoding):
    """Scores (q + u)·k + (q + v)·W R of sines and cosines R of the distance, before they are scaled (§3.3).

    W is a matrix of each layer; u and v are vectors of each head, of each layer or of all layers.
    """

    shared_biases: bool = setting(
        False, "one u and one v of each head for all layers; false: one a layer", source="untie_r of the authors' code"
    )

    @property
    def place(self) -> Place:
        """Return `layer`: each has a matrix for the distances."""
        return "layer"

    @property
    def reads_content(self) -> bool:
        """The score of a distance depends on the query, and that of u on the key."""
        return True

    @property
    def bias_products(self) -> float:
        """Return 1: that of q + v with the distance."""
        return 1.0

    def init_parameters(self, model: "ModelConfig", rngs: "nnx.Rngs") -> dict[str, "nnx.Module | nnx.Param"]:
        """Return W, `[embed, heads, head_dim]`, and the layer's u and v, `[heads, head_dim]`."""
        from t5x_lite.models.layers import Linear

        outputs = [("heads", model.heads), ("head_dim", model.head_dim)]
        distance = Linear(model, [("embed", model.embed)], outputs, bias=False, rngs=rngs)
        if self.shared_biases:
            return {"distance": distance}
        return {"distance": distance, **_biases(model, rngs)}

    def init_stack_parameters(self, model: "ModelConfig", rngs: "nnx.Rngs") -> dict[str, "nnx.Module | nnx.Param"]:
        """Return u and v where all layers share them."""
        if not self.shared_biases:
            return {}
        return _biases(model, rngs)

    def content_bias(self, parameters: "ContentParameters", context: "AttentionContext") -> "ContentBias":
        """Return the function u·k + (q + v)·W R of queries, keys and their distances."""
        import jax.numpy as jnp

        biases = parameters.layer
        if self.shared_biases:
            biases = parameters.stack
        distance = parameters.layer.distance
        key_bias = biases.key_bias[...]
        distance_bias = biases.distance_bias[...]

        def bias(pairs: "ContentPairs") -> Float[Array, "b h l m"]:
            dtype = pairs.query.dtype
            group = pairs.query.shape[2] // pairs.key.shape[2]
            key = jnp.repeat(pairs.key, group, axis=2)
            u = key_bias[pairs.heads].astype(dtype)
            of_key = jnp.einsum("hk,bmhk->bhm", u, key, preferred_element_type=jnp.float32)
            offsets = PairOffsets.between(pairs.queries, pairs.keys)
            encoded = distance(sinusoids(-offsets.offsets, distance.inputs[0][1])[None])[0]
            query = pairs.query + distance_bias[pairs.heads].astype(dtype)
            encoded = encoded[:, pairs.heads]
            of_offset = jnp.einsum("blhk,phk->bhlp", query, encoded, preferred_element_type=jnp.float32)
            return of_key[:, :, None] + offsets.at_pairs(of_offset)

        return bias

    def model_problems(self, model: "ModelConfig") -> Iterator[str]:
        """Yield a width that has no pairs of sine and cosine."""
        if model.embed % 2:
            yield f"positions transformer_xl need an even embed, not {model.embed}"


def _biases(model: "ModelConfig", rngs: "nnx.Rngs") -> "dict[str, nnx.Module | nnx.Param]":
    """Return u and v, which begin as random as the matrices, as in the authors' code."""
    import jax
    import jax.numpy as jnp

    from t5x_lite.models.layers import weight

    std = model.init.matrix_std(model, fan_in=model.embed)
    biases: dict[str, nnx.Module | nnx.Param] = {}
    for name in ("key_bias", "distance_bias"):
        value = std * jax.random.normal(rngs.params(), (model.heads, model.head_dim), jnp.float32)
        biases[name] = weight(value, ("heads", "head_dim"))
    return biases
