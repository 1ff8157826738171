"""T5's relative positions (Raffel et al. 2020, §2.1)."""

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING

from jaxtyping import Float, Int

from t5x_lite.arrays import Array
from t5x_lite.models.positions.encoding import Place, PositionEncoding
from t5x_lite.schema import Int as Integer
from t5x_lite.schema import setting

if TYPE_CHECKING:
    from flax import nnx

    from t5x_lite.models.config import ModelConfig
    from t5x_lite.models.positions.module import Positions


class Relative(PositionEncoding):
    """A trained number for each head and bucket of distance, added to the scores."""

    buckets: Integer = setting(32, "buckets; half of them for each direction in an encoder", ge=4)
    distance: Integer = setting(128, "distance from which on all fall into the last bucket", unit="tokens", ge=2)
    shared: bool = setting(True, "one table for all layers of a stack; false: one a layer", source="umT5: Chung 2023")

    def model_problems(self, model: "ModelConfig") -> Iterator[str]:
        """Yield a distance that the buckets of single distances reach already."""
        exact = self.buckets // 4 if model.family in {"encoder", "electra"} else self.buckets // 2
        if self.distance <= exact:
            yield (
                f"positions.relative: distance {self.distance} must be more than {exact}, as many as have one "
                f"of the {self.buckets} buckets each"
            )

    @property
    def place(self) -> Place:
        """Return where the table is: in the stack or in each layer."""
        if self.shared:
            return "stack"
        return "layer"

    @property
    def adds_bias(self) -> bool:
        """The table is a bias of the scores."""
        return True

    def init_parameters(self, model: "ModelConfig", rngs: "nnx.Rngs") -> dict[str, "nnx.Module | nnx.Param"]:
        """Return the table, `[buckets, heads]`."""
        import jax
        import jax.numpy as jnp

        from t5x_lite.models.layers import weight

        std = model.init.matrix_std(model, fan_in=model.embed)
        table = std * jax.random.normal(rngs.params(), (self.buckets, model.heads), jnp.float32)
        return {"table": weight(table, ("buckets", "heads"), is_table=True)}

    def offset_bias(self, parameters: "Positions", offset: Int[Array, "..."], *, causal: bool) -> Float[Array, "h ..."]:
        """Return the table's entry for the bucket of each offset."""
        import jax
        import jax.numpy as jnp

        table = parameters.table[...]
        buckets = relative_bucket(offset, self.buckets, self.distance, bidirectional=not causal)
        # A product with zeros and ones: the gradient of a lookup is a scatter, which TPUs are slow at.
        one_hot = jax.nn.one_hot(buckets, self.buckets, dtype=table.dtype)
        return jnp.einsum("...r,rh->h...", one_hot, table, precision=jax.lax.Precision.HIGHEST)


def relative_bucket(
    offset: Int[Array, "..."], buckets: int, distance: int, *, bidirectional: bool
) -> Int[Array, "..."]:
    """Return the bucket of each offset, key minus query (Raffel et al. 2020, §2.1, and T5's code).

    In both directions, keys after the query have the upper half of the buckets. Half of the buckets of a direction are
    single distances; the others widen logarithmically up to `distance`, the logarithm truncated in float32.
    """
    import jax.numpy as jnp

    first = jnp.zeros_like(offset)
    if bidirectional:
        buckets //= 2
        first = buckets * (offset > 0)
        away = jnp.abs(offset)
    else:
        away = jnp.maximum(-offset, 0)
    exact = buckets // 2
    octaves = jnp.log(jnp.maximum(away, 1).astype(jnp.float32) / exact) / math.log(distance / exact)
    far = exact + (octaves * (buckets - exact)).astype(jnp.int32)
    return first + jnp.where(away < exact, away, jnp.minimum(far, buckets - 1))
