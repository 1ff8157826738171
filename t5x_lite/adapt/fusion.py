"""Several trained adapters in one model, and what chooses among them (AdapterFusion: Pfeiffer et al. 2021)."""

import re
from typing import Any, Literal

from t5x_lite.adapt.method import Method, ModelPair, NamedArrays, Surgeon
from t5x_lite.models.components import Activation
from t5x_lite.models.config import ModelConfig
from t5x_lite.schema import Config, Int, Strings, setting

ADAPTER = re.compile(r"\.adapters\.feedforward\.adapters\.(\d+)\.")


class Kind(Config):
    """Size of one adapter."""

    width: Int = setting(48, "channels of the bottleneck", ge=1)
    activation: Activation = setting("relu", "inside it")


class Fusion(Method):
    """Adapters of `pfeiffer` runs on the same base, frozen; what weighs them for each token trains, with the head."""

    adapters: Strings = setting(..., "run directories of adapters that `pfeiffer` has trained on this base")
    route: Literal["attention", "soft", "hard", "fixed"] = setting(
        "attention",
        "how a token chooses: attention, a router's softmax, its largest alone, or `chosen`",
    )
    chosen: Int = setting(0, "which adapter `fixed` takes, from 0", ge=0)
    kind: Kind = setting(Kind(), "size of the adapters, as they were trained")

    @property
    def sources(self) -> tuple[str, ...]:
        return self.adapters

    def check(self, model: ModelConfig) -> None:
        if not self.adapters or self.chosen >= len(self.adapters):
            raise ValueError(f"adapt.method fusion.chosen {self.chosen} of {len(self.adapters)} adapters is not there")

    def surgery(self, surgeon: Surgeon) -> None:
        kinds = [(self.kind.width, self.kind.activation)] * len(self.adapters)
        surgeon.fusions(("feedforward",), kinds, self.route, self.chosen)

    def trains(self, name: str, model: ModelConfig) -> bool | int:
        return ".adapters." in name and not ADAPTER.search(name)

    def weights(self, old: NamedArrays, fresh: NamedArrays, models: ModelPair, xp: Any) -> dict[str, Any]:
        """As `Method.weights`; those of adapter n are named `n:…` in `old`."""
        made = super().weights(old, fresh, models, xp)
        for name in fresh:
            found = ADAPTER.search(name)
            if found:
                source = f"{found[1]}:{name.replace(found[0], '.adapters.feedforward.')}"
                made.pop(name, None)
                made |= {name: old[source]} if source in old else {}
        return made
