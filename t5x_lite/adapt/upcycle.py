"""Sparse upcycling: a dense run becomes a Mixture-of-Experts one (Komatsuzaki et al. 2023, §2)."""

from typing import Any

from t5x_lite.adapt.method import Method, ModelPair, NamedArrays
from t5x_lite.models.config import ModelConfig

EXPERTS = ".feedforward.experts."


class Upcycle(Method):
    """Every expert begins as a copy of the feed-forward that it replaces; routers are new; the rest is taken as it is.

    The first model computes what the dense one did, wherever a token's experts have room: the weights of their equal
    outputs sum to one.
    """

    def check(self, model: ModelConfig) -> None:
        if not model.mixtures:
            raise ValueError("adapt.method upcycle: this model has no experts")
        for moe in model.mixtures:
            if not moe.router.sum_to_one:
                raise ValueError(
                    "adapt.method upcycle: the weights of this router do not sum to one, so that the model would not "
                    "begin as the dense one; take gshard, top_k or deepseek"
                )
            if moe.shared or (moe.mlp or model.width_of_mlp) != model.width_of_mlp:
                raise ValueError("adapt.method upcycle: experts must be as wide as the dense layer, and none shared")

    def weights(self, old: NamedArrays, fresh: NamedArrays, models: ModelPair, xp: Any) -> dict[str, Any]:
        """Copies for experts, new routers, the old weights for all else."""
        made = {}
        for name, new in fresh.items():
            if name.endswith((".feedforward.router.weight", ".feedforward.bias")):
                made[name] = new
                continue
            source = _restacked(name.replace(EXPERTS, ".feedforward."), old, models, xp)
            if source is not None and EXPERTS in name:
                source = xp.repeat(source[:, None], new.shape[1], axis=1)
            if source is not None:
                made[name] = source
        return made


def _restacked(name: str, old: NamedArrays, models: ModelPair, xp: Any) -> Any:
    """An array of the layers at one place of a pattern, out of a stack whose pattern may have another length."""
    old_period, period = len(models.old.pattern), len(models.new.pattern)
    stack, inside, rest = name.partition(".layers.")
    if not inside or period == old_period:
        return old.get(name)
    place, _, leaf = rest.partition(".")
    held = [old[source] for n in range(old_period) if (source := f"{stack}.layers.{n}.{leaf}") in old]
    if len(held) < old_period:
        return None
    layers = range(int(place), old_period * held[0].shape[0], period)
    return xp.stack([held[layer % old_period][layer // old_period] for layer in layers])
