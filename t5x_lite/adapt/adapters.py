"""Bottleneck adapters after the sublayers of every block (Houlsby et al. 2019; Pfeiffer et al. 2021)."""

from typing import TYPE_CHECKING, ClassVar

from jaxtyping import Float

from t5x_lite.adapt.method import AdaptationMethod
from t5x_lite.arrays import Array
from t5x_lite.models.config import ModelConfig
from t5x_lite.models.feedforward.config import Activation
from t5x_lite.schema import Int, setting

if TYPE_CHECKING:
    from flax import nnx

    from t5x_lite.models.surgery import Adapter, Parameters, Surgeon


class Pfeiffer(AdaptationMethod):
    """An adapter after the feed-forward alone; nothing else trains (Pfeiffer et al. 2021, §3.1 and appendix A).

    An adapter is x + up(activation(down(x))), `up` zero at first.
    """

    freezes_base: ClassVar[bool] = True
    SUBLAYERS: ClassVar[tuple[str, ...]] = ("feedforward",)

    width: Int = setting(48, "channels of the bottleneck", ge=1, source="reduction factor 16 of a width of 768")
    activation: Activation = setting("relu", "activation of the bottleneck")

    def surgery(self, surgeon: "Surgeon") -> None:
        """Add an adapter after the sublayers."""

        def create(rngs: "nnx.Rngs") -> "Parameters":
            return bottleneck_parameters(surgeon.config, self.width, rngs)

        surgeon.adapt_sublayers(self, self.SUBLAYERS, create)

    def adapt_sublayer(self, adapter: "Adapter", x: Float[Array, "b l d"]) -> Float[Array, "b l d"]:
        """Add the output of the bottleneck."""
        return apply_bottleneck(adapter, x, self.activation)


class Houlsby(Pfeiffer):
    """An adapter after attention and one after the feed-forward; they and all norms train (§2.1)."""

    SUBLAYERS: ClassVar[tuple[str, ...]] = ("attention", "feedforward")

    width: Int = setting(64, "channels of the bottleneck", ge=1, source="Houlsby et al. 2019, §3.2: 8 to 256")
    activation: Activation = setting("gelu", "activation of the bottleneck")

    def first_trained_repeat(self, name: str, model: ModelConfig) -> int | None:
        """Train norms too."""
        if "norm." in name:
            return 0
        return super().first_trained_repeat(name, model)


def bottleneck_parameters(config: ModelConfig, width: int, rngs: "nnx.Rngs") -> "Parameters":
    """Return the two matrices of a bottleneck, the second zero."""
    from t5x_lite.models.layers import Linear

    embed = ("embed", config.embed)
    inner = ("bottleneck", width)
    return {
        "down": Linear(config, [embed], [inner], bias=True, rngs=rngs),
        "up": Linear(config, [inner], [embed], bias=True, scale=0.0, rngs=rngs),
    }


def apply_bottleneck(adapter: "Adapter", x: Float[Array, "b l d"], activation: Activation) -> Float[Array, "b l d"]:
    """Return x + up(activation(down(x)))."""
    from t5x_lite.models.layers import ACTIVATIONS

    return x + adapter.up(ACTIVATIONS[activation](adapter.down(x)))
