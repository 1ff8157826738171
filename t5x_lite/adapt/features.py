"""Feature extraction: a frozen model's hidden states are features for a head (Devlin et al. 2019, §5.3)."""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Literal

from t5x_lite.adapt.head import Head
from t5x_lite.adapt.method import NamedArrays
from t5x_lite.arrays import Array
from t5x_lite.models.config import ModelConfig
from t5x_lite.schema import Int, setting

if TYPE_CHECKING:
    from t5x_lite.models.surgery import Surgeon


class Features(Head):
    """As `head`, on a mixture of the top layers' states. The objective's `pool` selects the tokens."""

    layers: Int = setting(
        4,
        "top layers whose states are mixed; one more than the model has takes the input of the first layer too",
        ge=2,
        source="Devlin et al. 2019, Table 7",
    )
    mix: Literal["mean", "softmax"] = setting(
        "mean",
        "the states' mean, or their sum with a learnt factor and learnt weights, which a softmax makes shares",
        source="Peters et al. 2018, eq. 1",
    )

    weight_penalty: float = setting(
        0.0,
        "factor on the square of the weights behind the shares, added to the loss; a large one keeps the mean",
        ge=0,
        source="Peters et al. 2018, §3.3: λ",
    )

    def problems(self) -> Iterator[str]:
        if self.weight_penalty and self.mix != "softmax":
            yield f"weight_penalty is for the learnt weights of mix: softmax, not for mix: {self.mix}"

    def penalty(self, weights: NamedArrays) -> Array | None:
        """Return λ·Σ w² over the weights of the layers."""
        if not self.weight_penalty:
            return None
        (mixed,) = [array for name, array in weights.items() if name.endswith(".mix.weights")]
        return self.weight_penalty * (mixed**2).sum()

    def check(self, model: ModelConfig) -> None:
        """Raise ValueError for a task without a head, or more layers than the model has."""
        super().check(model)
        if self.layers > model.layers + 1:
            raise ValueError(
                f"adapt.method features.layers {self.layers} is more than the model's {model.layers} and 1"
            )

    def check_stages(self, pipeline: int) -> None:
        """Raise ValueError for several stages, of which each has only the outputs of its layers."""
        if pipeline > 1:
            raise ValueError(
                f"mesh.pipeline {pipeline}: adapt.method=features mixes the outputs of layers, which stages do not "
                "have together; leave mesh.pipeline 1"
            )

    def merged_weights(self, weights: NamedArrays) -> dict[str, Array] | None:
        """Return None: the head of a plain model reads the last layer's states, not a mixture."""
        return None

    def surgery(self, surgeon: "Surgeon") -> None:
        """Mix the outputs of the top layers."""
        from t5x_lite.models.layer_mix import LayerMean, ScalarMix

        mixtures = {"mean": LayerMean, "softmax": ScalarMix}
        surgeon.mix_layers(mixtures[self.mix](self.layers))
