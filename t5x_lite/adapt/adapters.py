"""Bottleneck adapters after the sublayers of every block (Houlsby et al. 2019; Pfeiffer et al. 2021)."""

from collections.abc import Iterator
from functools import partial
from typing import TYPE_CHECKING, ClassVar

from jaxtyping import Float

from t5x_lite.adapt.method import AdaptationMethod, WriteOutput
from t5x_lite.arrays import Array
from t5x_lite.models.config import ModelConfig
from t5x_lite.models.feedforward.config import Activation
from t5x_lite.schema import Config, Int, setting

if TYPE_CHECKING:
    from flax import nnx

    from t5x_lite.models.surgery import Adapter, Parameters, Surgeon


class Bottleneck(Config):
    """The sizes of an adapter and its place between the output y of a sublayer and the residual stream.

    An adapter is r + up(activation(down(x))). By default x and r are y, which the residual connection and the norm of
    the sublayer follow. The other fields and their names are AdapterHub's; `pfeiffer` there has `original_ln_before`.
    """

    width: Int = setting(48, "channels of the bottleneck", ge=1, source="reduction factor 16 of a width of 768")
    activation: Activation = setting("relu", "activation of the bottleneck")
    original_ln_before: bool = setting(
        False, "x is the sum of y and the residual stream, after its norm if model.norm_place is post"
    )
    original_ln_after: bool = setting(True, "the residual connection and the norm follow the adapter")
    residual_before_ln: bool = setting(True, "r is y; false takes x")

    def problems(self) -> Iterator[str]:
        is_connected = self.original_ln_before and not self.residual_before_ln
        if not self.original_ln_after and not is_connected:
            yield (
                "original_ln_after: false takes the residual stream from x: it needs original_ln_before: true and "
                "residual_before_ln: false"
            )

    def check_sublayers(self, model: ModelConfig) -> None:
        """Raise ValueError for a model in whose blocks no sum of a sublayer and the residual stream exists."""
        if self.original_ln_before and model.sublayers != "sequential":
            raise ValueError(
                f"adapt.method original_ln_before needs model.sublayers=sequential, found {model.sublayers}"
            )

    def split(
        self, y: Float[Array, "b l d"], write: WriteOutput
    ) -> tuple[Float[Array, "b l d"], Float[Array, "b l d"]]:
        """Return the input x of the bottleneck and the residual r."""
        x = write(y) if self.original_ln_before else y
        return x, y if self.residual_before_ln else x

    def finish(self, adapted: Float[Array, "b l d"], write: WriteOutput) -> Float[Array, "b l d"]:
        """Return the states after the sublayer, from the sum of r and the bottleneck's output."""
        return write(adapted) if self.original_ln_after else adapted

    def parameters(self, config: ModelConfig, rngs: "nnx.Rngs") -> "Parameters":
        """Return the two matrices, the second zero."""
        from t5x_lite.models.layers import Linear

        embed = ("embed", config.embed)
        inner = ("bottleneck", self.width)
        return {
            "down": Linear(config, [embed], [inner], bias=True, rngs=rngs),
            "up": Linear(config, [inner], [embed], bias=True, scale=0.0, rngs=rngs),
        }

    def output(self, adapter: "Adapter", x: Float[Array, "b l d"]) -> Float[Array, "b l d"]:
        """Return up(activation(down(x)))."""
        from t5x_lite.models.layers import ACTIVATIONS

        return adapter.up(ACTIVATIONS[self.activation](adapter.down(x)))


class Pfeiffer(Bottleneck, AdaptationMethod):
    """An adapter after the feed-forward alone; nothing else trains (Pfeiffer et al. 2021, §3.1 and appendix A)."""

    freezes_base: ClassVar[bool] = True
    SUBLAYERS: ClassVar[tuple[str, ...]] = ("feedforward",)

    def check(self, model: ModelConfig) -> None:
        """Raise ValueError for a model with parallel sublayers, where the adapter's input does not exist."""
        self.check_sublayers(model)

    def surgery(self, surgeon: "Surgeon") -> None:
        """Add an adapter after the sublayers."""
        surgeon.adapt_sublayers(self, self.SUBLAYERS, partial(self.parameters, surgeon.config))

    def adapt_sublayer(self, adapter: "Adapter", y: Float[Array, "b l d"], write: WriteOutput) -> Float[Array, "b l d"]:
        """Add the output of the bottleneck."""
        x, residual = self.split(y, write)
        return self.finish(residual + self.output(adapter, x), write)


class Houlsby(Pfeiffer):
    """An adapter after attention and one after the feed-forward; they and all norms train (§2.1)."""

    SUBLAYERS: ClassVar[tuple[str, ...]] = ("attention", "feedforward")

    width: Int = setting(64, "channels of the bottleneck", ge=1, source="Houlsby et al. 2019, §3.2: 8 to 256")
    activation: Activation = setting("gelu", "activation of the bottleneck")

    @property
    def keeps_base(self) -> bool:
        """Return False: norms of the first model train."""
        return False

    def first_trained_repeat(self, name: str, model: ModelConfig) -> int | None:
        """Train norms too."""
        if "norm." in name:
            return 0
        return super().first_trained_repeat(name, model)
