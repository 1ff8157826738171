"""(IA)³: learned factors on keys, values and the feed-forward's inner channels (Liu et al. 2022, §3.3)."""

from typing import Any, ClassVar

from t5x_lite.adapt.method import Method, Surgeon, Weights, is_added


class IA3(Method):
    """The factors train, from 1. `merged` multiplies them into the weights."""

    light: ClassVar[bool] = True

    def surgery(self, surgeon: Surgeon) -> None:
        surgeon.rescale(r"attention\.(key|value)$")
        surgeon.rescale(r"feedforward\.(experts\.)?down$", inputs=True)

    def merged(self, weights: Weights, xp: Any) -> dict[str, Any]:
        plain = {name: value for name, value in weights.items() if not is_added(name)}
        for name, factor in weights.items():
            layer, found, _ = name.partition(".adapter.factor")
            if not found:
                continue
            matrix = plain[f"{layer}.weight"]
            if layer.endswith(".down"):
                # Rows of the matrix: [layers, (experts,) mlp, embed].
                lead = factor.reshape(factor.shape[0], *[1] * (matrix.ndim - 3), -1, 1)
                plain[f"{layer}.weight"] = matrix * lead
                continue
            plain[f"{layer}.weight"] = matrix * factor[:, None]
            if f"{layer}.bias" in plain:
                plain[f"{layer}.bias"] = plain[f"{layer}.bias"] * factor
        return plain
