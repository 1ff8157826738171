"""Relative positions of Transformer-XL (Dai et al. 2019, §3.3), and segments of XLNet (Yang et al. 2019, §2.5)."""

from collections.abc import Iterator, Sequence
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
    from t5x_lite.models.positions.module import ContentParameters, Positions


class TransformerXL(PositionEncoding):
    """Scores (q + u)·k + (q + v)·W R of sines and cosines R of the distance, before they are scaled (§3.3).

    W is a matrix of each layer; u and v are vectors of each head, of each layer or of all layers.
    """

    shared_biases: bool = setting(
        False, "one u and one v of each head for all layers; false: one a layer", source="untie_r of the authors' code"
    )
    segments: bool = setting(
        False,
        "also (q + w)·s, where s is one of two vectors of each head: for tokens of one type, and of two types",
        source="XLNet: Yang et al. 2019, §2.5",
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

    @property
    def _bias_names(self) -> tuple[str, ...]:
        """Return the names of u, v and w."""
        if self.segments:
            return ("key_bias", "distance_bias", "segment_bias")
        return ("key_bias", "distance_bias")

    def init_parameters(self, model: "ModelConfig", rngs: "nnx.Rngs") -> dict[str, "nnx.Module | nnx.Param"]:
        """Return W, `[embed, heads, head_dim]`, s, `[2, heads, head_dim]`, and the layer's u, v and w."""
        from t5x_lite.models.layers import Linear

        outputs = [("heads", model.heads), ("head_dim", model.head_dim)]
        distance = Linear(model, [("embed", model.embed)], outputs, bias=False, rngs=rngs)
        parameters: dict[str, nnx.Module | nnx.Param] = {"distance": distance}
        if self.segments:
            parameters["segments"] = _random_weight(model, (("types", 2), *outputs), rngs)
        if not self.shared_biases:
            for name in self._bias_names:
                parameters[name] = _random_weight(model, outputs, rngs)
        return parameters

    def init_stack_parameters(self, model: "ModelConfig", rngs: "nnx.Rngs") -> dict[str, "nnx.Module | nnx.Param"]:
        """Return u, v and w where all layers share them."""
        parameters: dict[str, nnx.Module | nnx.Param] = {}
        if self.shared_biases:
            for name in self._bias_names:
                parameters[name] = _random_weight(model, (("heads", model.heads), ("head_dim", model.head_dim)), rngs)
        return parameters

    def content_bias(self, parameters: "ContentParameters", context: "AttentionContext") -> "ContentBias":
        """Return the function u·k + (q + v)·W R + (q + w)·s of queries, keys, their distances and types."""
        import jax.numpy as jnp

        layer = parameters.layer
        biases = parameters.stack if self.shared_biases else layer

        def bias(pairs: "ContentPairs") -> Float[Array, "b h l m"]:
            dtype = pairs.query.dtype
            group = pairs.query.shape[2] // pairs.key.shape[2]
            key = jnp.repeat(pairs.key, group, axis=2)
            u = biases.key_bias[pairs.heads].astype(dtype)
            of_key = jnp.einsum("hk,bmhk->bhm", u, key, preferred_element_type=jnp.float32)
            offsets = PairOffsets.between(pairs.queries, pairs.keys)
            encoded = layer.distance(sinusoids(-offsets.offsets, layer.distance.inputs[0][1])[None])[0]
            query = pairs.query + biases.distance_bias[pairs.heads].astype(dtype)
            encoded = encoded[:, pairs.heads]
            of_offset = jnp.einsum("blhk,phk->bhlp", query, encoded, preferred_element_type=jnp.float32)
            scores = of_key[:, :, None] + offsets.at_pairs(of_offset)
            if self.segments:
                scores = scores + _segment_scores(layer, biases, pairs)
            return scores

        return bias

    def model_problems(self, model: "ModelConfig") -> Iterator[str]:
        """Yield a width that has no pairs of sine and cosine, and segments of a model that has no types of tokens."""
        if model.embed % 2:
            yield f"positions transformer_xl need an even embed, not {model.embed}"
        if self.segments and model.family != "encoder":
            yield "positions.transformer_xl.segments are for an encoder: the tokens of others have no types"


def _segment_scores(layer: "Positions", biases: "Positions", pairs: "ContentPairs") -> Float[Array, "b h l m"] | float:
    """Return (q + w)·s of the vector for equal or for different types; 0 where all are equal, which changes nothing."""
    import jax.numpy as jnp

    if pairs.queries.types is None or pairs.keys.types is None:
        return 0.0

    dtype = pairs.query.dtype
    query = pairs.query + biases.segment_bias[pairs.heads].astype(dtype)
    vectors = layer.segments[:, pairs.heads].astype(dtype)
    same, other = jnp.einsum("blhk,shk->sbhl", query, vectors, preferred_element_type=jnp.float32)
    is_same = pairs.queries.types[:, None, :, None] == pairs.keys.types[:, None, None, :]
    return jnp.where(is_same, same[..., None], other[..., None])


def _random_weight(model: "ModelConfig", axes: Sequence[tuple[str, int]], rngs: "nnx.Rngs") -> "nnx.Param":
    """Return vectors that begin as random as the matrices, as in the authors' code."""
    import jax
    import jax.numpy as jnp

    from t5x_lite.models.layers import weight

    std = model.init.matrix_std(model, fan_in=model.embed)
    shape = [size for _, size in axes]
    return weight(std * jax.random.normal(rngs.params(), shape, jnp.float32), tuple(name for name, _ in axes))
