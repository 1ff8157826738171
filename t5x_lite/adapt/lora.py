"""LoRA: a product of two thin matrices beside each chosen one (Hu et al. 2022)."""

from typing import Any, ClassVar

from t5x_lite.adapt.method import Method, NamedArrays, Surgeon, is_added_parameter
from t5x_lite.schema import Int, setting


class LoRA(Method):
    """The thin matrices train. `merged` adds their product to the weights: a plain model with equal logits."""

    light: ClassVar[bool] = True

    rank: Int = setting(8, "channels between the two", ge=1, source="Hu et al. 2022, Table 9")
    alpha: float = setting(16.0, "the product is scaled by alpha / rank", gt=0)
    dropout: float = setting(0.0, "share of the inputs of the product zeroed in training", ge=0, lt=1)
    targets: str = setting(
        r"attention\.(query|value)$", "regular expression found in the names of the layers that get one, as in config "
        "and checkpoint: query, key, value, out; up, gate, down", source="Hu et al. 2022, §4.2",
    )  # fmt: skip

    def surgery(self, surgeon: Surgeon) -> None:
        surgeon.low_rank(self.targets, self.rank, self.alpha, self.dropout)

    def merged(self, weights: NamedArrays, xp: Any) -> dict[str, Any]:
        plain = {name: value for name, value in weights.items() if not is_added_parameter(name)}
        for name in weights:
            layer, found, _ = name.partition(".adapter.down.weight")
            if found:
                down, up = weights[name], weights[f"{layer}.adapter.up.weight"]
                stacked = (".layers." in name) + (".experts." in name)
                product = (self.alpha / self.rank) * _product(down, up, stacked, xp)
                plain[f"{layer}.weight"] = plain[f"{layer}.weight"] + product
        return plain


def _product(down: Any, up: Any, stacked: int, xp: Any) -> Any:
    """Of `down` and `up` over the rank: `[*stacked, *inputs, r]` and `[*stacked, r, *outputs]`."""
    rank = down.shape[-1]
    lead, inputs, outputs = down.shape[:stacked], down.shape[stacked:-1], up.shape[stacked + 1 :]
    flat = xp.matmul(down.reshape(*lead, -1, rank), up.reshape(*lead, rank, -1))
    return flat.reshape(*lead, *inputs, *outputs)
