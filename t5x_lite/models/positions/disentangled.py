"""DeBERTa's disentangled attention: scores of contents with relative positions (He et al. 2021, §3.1)."""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated, Literal

import numpy as np
from jaxtyping import Float, Int
from pydantic import Strict

from t5x_lite.arrays import Array
from t5x_lite.models.positions.encoding import Place, PositionEncoding
from t5x_lite.models.positions.relative_shift import PairOffsets
from t5x_lite.schema import Int as Integer
from t5x_lite.schema import setting

if TYPE_CHECKING:
    from flax import nnx

    from t5x_lite.models.attention.context import AttentionContext, ContentBias, ContentPairs
    from t5x_lite.models.config import ModelConfig
    from t5x_lite.models.positions.module import ContentParameters

Term = Literal["c2p", "p2c"]
"""Content to position, the score of a query with the vector of a distance; and position to content, of a key."""
PROJECTIONS: dict[Term, str] = {"c2p": "key", "p2c": "query"}
"""The projection of the vectors of distances in each term."""


class Disentangled(PositionEncoding):
    """Scores of queries and keys with projected vectors of their distance, added to those with each other.

    The table of vectors is one for all layers; the projections are of each layer. With t terms the scores are scaled by
    1/sqrt((1 + t) · head_dim) (equation 4). Transformers drops out elements of the table in training; none are here.
    """

    distance: Integer = setting(
        512, "distance k from which on all are alike", unit="tokens", ge=2, source="He et al. 2021, equation 3"
    )
    buckets: Integer = setting(
        0, "buckets of distances in each direction, half of them single ones; 0: each its own", ge=0, source="v2's code"
    )
    terms: Annotated[tuple[Term, ...], Strict(False)] = setting(
        ("c2p", "p2c"), "scores beside those of queries with keys", min_length=1, max_length=2
    )
    shared_projections: bool = setting(
        False, "project vectors of distances as queries and keys", source="v2's code: share_att_key"
    )
    norm: bool = setting(False, "normalise the vectors of distances", source="v2's code: norm_rel_ebd")

    def problems(self) -> Iterator[str]:
        """Yield buckets that cannot widen up to `distance`, and a term that is named twice."""
        if self.buckets and not 4 <= self.buckets < 2 * (self.distance - 1):
            yield f"disentangled: buckets must be 0, or from 4 to {2 * self.distance - 3}, found {self.buckets}"
        if len(set(self.terms)) < len(self.terms):
            yield f"disentangled: terms names {self.terms[0]} twice"

    @property
    def place(self) -> Place:
        """Return `layer`: each has projections."""
        return "layer"

    @property
    def reads_content(self) -> bool:
        """The score of a distance depends on the query or the key."""
        return True

    @property
    def bias_products(self) -> float:
        """Return the number of terms, each of which is a product with the vector of a distance."""
        return len(self.terms)

    @property
    def score_scale(self) -> float:
        """Return 1/sqrt(1 + t) for t terms."""
        return (1 + len(self.terms)) ** -0.5

    def init_stack_parameters(self, model: "ModelConfig", rngs: "nnx.Rngs") -> dict[str, "nnx.Module | nnx.Param"]:
        """Return the table of vectors, and their norm."""
        from t5x_lite.models.layers import Embed, Norm

        rows = 2 * (self.buckets or self.distance)
        parameters: dict[str, nnx.Module | nnx.Param] = {
            "table": Embed(model, rows, model.embed, axis="position", rngs=rngs)
        }
        if self.norm:
            parameters["norm"] = Norm(model.norm, ("embed", model.embed))
        return parameters

    def init_parameters(self, model: "ModelConfig", rngs: "nnx.Rngs") -> dict[str, "nnx.Module | nnx.Param"]:
        """Return the projections of a layer, which have biases where those of its queries and keys do."""
        from t5x_lite.models.layers import Linear

        if self.shared_projections:
            return {}
        bias = model.query_key_value_bias
        biases = {"key": bias if model.key_bias is None else model.key_bias, "query": bias}
        embed = ("embed", model.embed)
        outputs = [("heads", model.heads), ("head_dim", model.head_dim)]
        projections: dict[str, nnx.Module | nnx.Param] = {}
        for term in self.terms:
            name = PROJECTIONS[term]
            projections[name] = Linear(model, [embed], outputs, bias=biases[name], rngs=rngs)
        return projections

    def content_bias(self, parameters: "ContentParameters", context: "AttentionContext") -> "ContentBias":
        """Return the sum of the terms as a function of queries, keys and their distances."""
        import jax.numpy as jnp

        table = parameters.stack.table
        vectors = table.rows.astype(table.dtype)
        if self.norm:
            vectors = parameters.stack.norm(vectors)
        projections = parameters if self.shared_projections else parameters.layer
        projected = {}
        for term, projection in PROJECTIONS.items():
            if term in self.terms:
                projected[term] = getattr(projections, projection)(vectors[None])[0]

        def scores_of(
            term: Term, x: Float[Array, "b l h k"], offsets: PairOffsets, distances: Int[Array, "p"], heads: slice
        ) -> Float[Array, "b h l m"]:
            # Many distances share a row, whose gradient is summed in float32.
            rows = projected[term].astype(jnp.float32)
            of_distances = rows[self.rows_at(distances)][:, heads].astype(x.dtype)
            products = jnp.einsum("blhk,phk->bhlp", x, of_distances, preferred_element_type=jnp.float32)
            return offsets.at_pairs(products)

        def bias(pairs: "ContentPairs") -> Float[Array, "b h l m"]:
            scores = []
            if "c2p" in self.terms:
                offsets = PairOffsets.between(pairs.queries, pairs.keys)
                scores.append(scores_of("c2p", pairs.query, offsets, -offsets.offsets, pairs.heads))
            if "p2c" in self.terms:
                offsets = PairOffsets.between(pairs.keys, pairs.queries)
                of_keys = scores_of("p2c", pairs.key, offsets, offsets.offsets, pairs.heads)
                scores.append(jnp.swapaxes(of_keys, 2, 3))
            return sum(scores[1:], scores[0])

        return bias

    def rows_at(self, distance: Int[Array, "p"]) -> Int[Array, "p"]:
        """Return the row of the table for each distance, query minus key."""
        import jax.numpy as jnp

        rows = distance_rows(self.distance, self.buckets)
        return jnp.asarray(rows)[jnp.clip(distance, -self.distance, self.distance) + self.distance]

    def model_problems(self, model: "ModelConfig") -> Iterator[str]:
        """Yield what queries and keys have that vectors of distances do not."""
        if not model.is_encoder_only:
            yield f"positions disentangled are for encoders, not a model of family {model.family}"
        if model.kv_heads != model.heads:
            yield f"positions disentangled have keys for every head: kv_heads is {model.kv_heads}, heads {model.heads}"
        if model.query_key_norm != "none":
            yield f"query_key_norm: {model.query_key_norm} is not for positions disentangled"


def distance_rows(distance: int, buckets: int) -> Int[np.ndarray, "2*distance+1"]:
    """Return the rows of the table for the distances -k to k, query minus key.

    Without buckets each has its row, and k that of k - 1 (He et al. 2021, equation 3). With buckets, half of those of
    a direction are single distances; the others widen logarithmically up to k - 1 (the code of DeBERTa v2).
    """
    distances = np.arange(-distance, distance + 1)
    places = distances
    count = distance
    if buckets:
        count = buckets
        half = buckets // 2
        away = np.maximum(np.abs(distances), half)
        octaves = np.log(away / half) / np.log((distance - 1) / half)
        far = half + np.ceil(octaves * (half - 1)).astype(np.int64)
        places = np.where(away == half, distances, np.sign(distances) * far)
    return np.clip(places + count, 0, 2 * count - 1)
