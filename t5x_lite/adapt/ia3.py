"""(IA)³: learned factors on keys, values and the feed-forward's inner channels (Liu et al. 2022, §3.3)."""

from collections.abc import Callable
from typing import TYPE_CHECKING, ClassVar

from jaxtyping import Float

from t5x_lite.adapt.method import AdaptationMethod, NamedArrays, without_added
from t5x_lite.arrays import Array

if TYPE_CHECKING:
    from flax import nnx

    from t5x_lite.models.layers import Linear, SortedRows
    from t5x_lite.models.surgery import Adapter, Parameters, Surgeon

SCALED_OUTPUTS = r"attention\.(key|value)$"
"""Layers whose outputs are scaled."""
SCALED_INPUTS = r"feedforward\.(experts\.|shared\.)?down$"
"""Layers whose inputs are scaled."""


class IA3(AdaptationMethod):
    """A factor for each channel, 1 at first. The factors train."""

    freezes_base: ClassVar[bool] = True

    def surgery(self, surgeon: "Surgeon") -> None:
        """Add factors to keys, values and the second matrix of the feed-forward."""
        import jax.numpy as jnp

        from t5x_lite.models.layers import weight

        def create(linear: "Linear", rngs: "nnx.Rngs") -> "Parameters":
            axes = linear.inputs if _scales_inputs(linear) else linear.outputs
            factor = jnp.ones([size for _, size in axes], jnp.float32)
            return {"factor": weight(factor, tuple(name for name, _ in axes))}

        surgeon.adapt_linears(self, SCALED_OUTPUTS, create)
        surgeon.adapt_linears(self, SCALED_INPUTS, create)

    def adapt_linear(
        self,
        adapter: "Adapter",
        product: "Callable[[Array, SortedRows | None], Array]",
        x: Float[Array, "..."],
        sorted_rows: "SortedRows | None",
    ) -> Float[Array, "..."]:
        """Scale the inputs of the feed-forward's second matrix, or the outputs of keys and values."""
        factor = adapter.factor[...]
        if adapter.factor.axes.names == ("mlp",):
            return product(x * factor.astype(x.dtype), sorted_rows)
        y = product(x, sorted_rows)
        return y * factor.astype(y.dtype)

    def merged_weights(self, weights: NamedArrays) -> dict[str, Array] | None:
        """Multiply the factors into the weights."""
        merged = without_added(weights)
        for name, factor in weights.items():
            layer, is_factor, _ = name.partition(".adapter.factor")
            if not is_factor:
                continue
            weight = f"{layer}.weight"
            bias = f"{layer}.bias"
            if layer.endswith(".down"):
                # Rows of the matrix: [layers, (experts,) mlp, embed].
                experts = [1] * (merged[weight].ndim - 3)
                merged[weight] = merged[weight] * factor.reshape(factor.shape[0], *experts, -1, 1)
            else:
                merged[weight] = merged[weight] * factor[:, None]
                if bias in merged:
                    merged[bias] = merged[bias] * factor
        return merged


def _scales_inputs(linear: "Linear") -> bool:
    return [name for name, _ in linear.inputs] == ["mlp"]
