"""Sparse upcycling: a dense run becomes a Mixture-of-Experts one (Komatsuzaki et al. 2023, §2)."""

import math
from dataclasses import replace
from typing import ClassVar

from t5x_lite.adapt.method import AdaptationMethod, ModelPair, NamedArrays
from t5x_lite.arrays import Array
from t5x_lite.models.config import ModelConfig
from t5x_lite.models.experts.config import MoE
from t5x_lite.models.feedforward.config import GLU, MLP
from t5x_lite.models.layer_path import parse_layer_path

EXPERTS = ".feedforward.experts."


def _settings_of_function(feedforward: MLP | GLU) -> dict[str, object]:
    """Return the settings of a feed-forward that its outputs depend on in evaluation."""
    return feedforward.model_dump(exclude={"dropout"}, exclude_none=True)


class Upcycle(AdaptationMethod):
    """Every expert begins as a copy of the feed-forward that it replaces; routers are new; other weights are kept.

    The first model computes what the dense one did, wherever a token's experts have room: the weights of their equal
    outputs sum to one.
    """

    changed_settings: ClassVar[tuple[str, ...]] = ("feedforward", "pattern")

    def check(self, model: ModelConfig) -> None:
        """Raise ValueError for a model that would not begin as the dense one."""
        if not model.mixtures:
            raise ValueError("adapt.method upcycle: this model has no experts")
        if model.first:
            raise ValueError("adapt.method upcycle is for models without layers of model.first")
        for moe in model.mixtures:
            if not moe.router.weights_sum_to_one:
                raise ValueError(
                    "adapt.method upcycle: the weights of this router do not sum to one, so that the model would not "
                    "begin as the dense one; take gshard, top_k or deepseek"
                )
            if moe.shared or (moe.mlp or model.mlp) != model.mlp:
                raise ValueError("adapt.method upcycle: experts must be as wide as the dense layer, and none shared")

    def check_models(self, models: ModelPair) -> None:
        """Raise ValueError for experts that compute something else than the layers that they are copies of."""
        for number in range(math.lcm(len(models.old.period), len(models.new.period))):
            dense = models.old.feedforward_of(models.old.period[number % len(models.old.period)])
            moe = models.new.feedforward_of(models.new.period[number % len(models.new.period)])
            if not isinstance(moe, MoE) or not isinstance(dense, MLP | GLU):
                continue
            expert = moe.expert or models.new.dense_feedforward
            settings = _settings_of_function(dense)
            if type(expert) is not type(dense) or _settings_of_function(expert) != settings:
                kind = "glu" if dense.is_gated else "mlp"
                listed = ", ".join(f"{name}: {value}" for name, value in settings.items())
                raise ValueError(
                    "adapt.method upcycle: the experts compute another function than its feed-forward; set their "
                    f"`expert` to {{{kind}: {{{listed}}}}}"
                )

    def initial_weights(self, old: NamedArrays, fresh: NamedArrays, models: ModelPair) -> dict[str, Array]:
        """Return copies for experts, new routers, and the old weights for everything else."""
        import jax.numpy as jnp

        weights = {}
        for name, new in fresh.items():
            if ".feedforward.router." in name or name.endswith(".feedforward.bias"):
                weights[name] = new
                continue
            source = _restacked(name.replace(EXPERTS, ".feedforward."), old, models)
            if source is None:
                continue
            if EXPERTS in name:
                source = jnp.repeat(source[:, None], new.shape[1], axis=1)
            weights[name] = source
        return weights


def _restacked(name: str, old: NamedArrays, models: ModelPair) -> Array | None:
    """Return an array of the layers at one place of a pattern, from a stack whose pattern may have another length."""
    import jax.numpy as jnp

    old_period = len(models.old.period)
    period = len(models.new.period)
    path = parse_layer_path(name)
    if path is None or period == old_period:
        return old.get(name)
    stacks = []
    for index in range(old_period):
        source = replace(path, index=index).name
        if source not in old:
            return None
        stacks.append(old[source])
    layers = range(path.index, old_period * stacks[0].shape[0], period)
    return jnp.stack([stacks[layer % old_period][layer // old_period] for layer in layers])
