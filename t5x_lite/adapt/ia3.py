"""(IA)³: learned factors on keys, values and the feed-forward's inner channels (Liu et al. 2022, §3.3)."""

from typing import Any, ClassVar

from t5x_lite.adapt.method import Method, NamedArrays, Surgeon, is_added_parameter


class IA3(Method):
    """The factors train, from 1. `merged` multiplies them into the weights."""

    light: ClassVar[bool] = True

    def surgery(self, surgeon: Surgeon) -> None:
        surgeon.rescale(r"attention\.(key|value)$")
        surgeon.rescale(r"feedforward\.(experts\.)?down$", inputs=True)

    def merged(self, weights: NamedArrays, xp: Any) -> dict[str, Any]:
        plain = {name: value for name, value in weights.items() if not is_added_parameter(name)}
        for name, factor in weights.items():
            layer, found, _ = name.partition(".adapter.factor")
            weight, bias = f"{layer}.weight", f"{layer}.bias"
            if found and layer.endswith(".down"):
                # Rows of the matrix: [layers, (experts,) mlp, embed].
                lead = factor.reshape(factor.shape[0], *[1] * (plain[weight].ndim - 3), -1, 1)
                plain[weight] = plain[weight] * lead
            elif found:
                plain[weight] = plain[weight] * factor[:, None]
                if bias in plain:
                    plain[bias] = plain[bias] * factor
        return plain
