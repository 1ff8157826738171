"""LoRA: a product of two thin matrices beside each chosen one (Hu et al. 2022)."""

import math
import re
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, ClassVar

from jaxtyping import Float

from t5x_lite.adapt.method import AdaptationMethod, NamedArrays, pattern_problems, without_added
from t5x_lite.arrays import Array
from t5x_lite.models.config import ModelConfig
from t5x_lite.schema import Int, setting

if TYPE_CHECKING:
    from flax import nnx

    from t5x_lite.models.layers import Linear, SortedRows
    from t5x_lite.models.surgery import Adapter, Parameters, Surgeon

DEFAULT_TARGETS = r"attention\.(query|value)$"


class LoRA(AdaptationMethod):
    """product(x) + alpha/rank · up(down(dropout(x))), `up` zero at first (§4.1). The thin matrices train.

    So do the parameters of the adapted model that `trainable` names.
    """

    freezes_base: ClassVar[bool] = True

    rank: Int = setting(
        8, "rank of the product: channels between the two matrices", ge=1, source="Hu et al. 2022, Table 9"
    )
    alpha: float = setting(16.0, "the product is scaled by alpha / rank", gt=0)
    dropout: float = setting(0.0, "share of the inputs of the product zeroed in training", ge=0, lt=1)
    targets: str = setting(
        DEFAULT_TARGETS,
        "regular expression searched in the dotted names of linear layers (query, key, value, out; up, gate, down); "
        "those that match are adapted",
        source="Hu et al. 2022, §4.2",
    )
    trainable: str = setting(
        "",
        "regular expression searched in the dotted names of the other parameters; those that match train in full, "
        "such as tokens, or tokens|norm",
        source="LongLoRA, Chen et al. 2024, §3.3",
    )

    @property
    def keeps_base(self) -> bool:
        """Return whether no parameter of the first model trains."""
        return not self.trainable

    def problems(self) -> Iterator[str]:
        yield from pattern_problems("targets", self.targets)
        yield from pattern_problems("trainable", self.trainable)

    def first_trained_repeat(self, name: str, model: ModelConfig) -> int | None:
        """Train the parameters that `trainable` names too."""
        if self.trainable and re.search(self.trainable, name):
            return 0
        return super().first_trained_repeat(name, model)

    def surgery(self, surgeon: "Surgeon") -> None:
        """Add a pair of thin matrices to every target."""
        from t5x_lite.models.layers import Linear

        if self.trainable:
            surgeon.require_parameter(self.trainable)
        config = surgeon.config

        def create(linear: "Linear", rngs: "nnx.Rngs") -> "Parameters":
            rank = ("rank", self.rank)
            fan_in = math.prod(size for _, size in linear.inputs)
            scale = fan_in**-0.5 / config.init.matrix_std(config, fan_in)
            experts = linear.experts
            down = Linear(config, linear.inputs, [rank], scale=scale, bias=False, experts=experts, rngs=rngs)
            up = Linear(config, [rank], linear.outputs, scale=0.0, bias=False, experts=experts, rngs=rngs)
            return {"down": down, "up": up}

        surgeon.adapt_linears(self, self.targets, create)

    def adapt_linear(
        self,
        adapter: "Adapter",
        product: "Callable[[Array, SortedRows | None], Array]",
        x: Float[Array, "..."],
        sorted_rows: "SortedRows | None",
    ) -> Float[Array, "..."]:
        """Add the product of the thin matrices."""
        from t5x_lite.models.layers import dropout

        inner = adapter.down(dropout(x, self.dropout, adapter.dropout_key), sorted_rows)
        return product(x, sorted_rows) + (self.alpha / self.rank) * adapter.up(inner, sorted_rows)

    def merged_weights(self, weights: NamedArrays) -> dict[str, Array] | None:
        """Add the products to the weights: a plain model with equal logits."""
        merged = without_added(weights)
        for name, down in weights.items():
            layer, is_down, _ = name.partition(".adapter.down.weight")
            if is_down:
                up = weights[f"{layer}.adapter.up.weight"]
                stacked = int(".layers." in name) + int(".experts." in name)
                product = _product_over_rank(down, up, stacked)
                merged[f"{layer}.weight"] = merged[f"{layer}.weight"] + (self.alpha / self.rank) * product
        return merged


def _product_over_rank(
    down: Float[Array, "*stacked_and_inputs r"], up: Float[Array, "*stacked_r_and_outputs"], stacked: int
) -> Float[Array, "..."]:
    """Return the product of `[*stacked, *inputs, r]` and `[*stacked, r, *outputs]` over the rank."""
    import jax.numpy as jnp

    rank = down.shape[-1]
    stack_shape = down.shape[:stacked]
    inputs = down.shape[stacked:-1]
    outputs = up.shape[stacked + 1 :]
    product = jnp.matmul(down.reshape(*stack_shape, -1, rank), up.reshape(*stack_shape, rank, -1))
    return product.reshape(*stack_shape, *inputs, *outputs)
