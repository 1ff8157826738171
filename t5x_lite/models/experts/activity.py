"""The activity of routers on a batch: sums from which their losses and metrics are computed."""

import math
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, PyTree

from t5x_lite.models.config import ModelConfig
from t5x_lite.models.experts.config import MoE
from t5x_lite.models.experts.router import Router
from t5x_lite.trees import flatten_names, unflatten_names

MAX_LISTED_EXPERTS = 128
"""Experts up to which the load of each one is a metric."""
ROUTER_TERM = "router"
"""Name of the routers' term of the loss; its sums are a `RouterLoss`."""
ROUTER_TERM_WEIGHTS: Mapping[str, None] = {ROUTER_TERM: None}
"""Declares, as `Objective.term_weights` does for other terms, how the term is normalised: it has no weights, because it
is a mean over each microbatch already, and microbatches are averaged."""


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class RouterActivity:
    """The activity of a layer's router, as sums over the tokens of each row, padding excluded.

    Attributes:
        counted: choices of each expert that the balance loss counts.
        probability: probabilities of each expert.
        sent: all choices of each expert.
        dropped: choices beyond the capacity of their experts.
        squared_log_z: (log Σ exp logits)² (Zoph et al. 2022, equation 5).
        tokens: number of tokens.
    """

    counted: Float[Array, "*layers b e"]
    probability: Float[Array, "*layers b e"]
    sent: Float[Array, "*layers b e"]
    dropped: Float[Array, "*layers b"]
    squared_log_z: Float[Array, "*layers b"]
    tokens: Float[Array, "*layers b"]


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class RouterLoss:
    """The term `router` of a loss, of all routers of a model. Those of parts of a batch add up.

    Attributes:
        total: what is minimised.
        balance, z_loss: the two losses without their factors.
        dropped: share of the choices that found no room.
        loads: choices of each expert by layer, `[repeats, e]`, by the path of the layer's parameters.
        weight: number of parts that were added.
        bias_update_rates: how far a step moves the biases of a router, by path.
    """

    total: Float[Array, ""]
    balance: Float[Array, ""]
    z_loss: Float[Array, ""]
    dropped: Float[Array, ""]
    loads: Mapping[str, Float[Array, "r e"]]
    weight: Float[Array, ""]
    bias_update_rates: Mapping[str, float] = field(default_factory=dict, metadata={"static": True})

    def __add__(self, other: "RouterLoss") -> "RouterLoss":
        return jax.tree.map(jnp.add, self, other)

    def means(self, name: str) -> dict[str, Array]:
        """Return the metrics of the routers.

        These are the losses and the share of dropped choices; the entropy of the experts' loads over log(experts) and
        their maximum over the mean, both 1 in balance and averaged over layers; and the load of each expert.
        """
        loads = jnp.concatenate([load / load.sum(-1, keepdims=True) for load in self.loads.values()])
        experts = loads.shape[-1]
        entropy = -jnp.sum(jax.scipy.special.xlogy(loads, loads), axis=-1) / max(math.log(experts), 1e-9)
        metrics = {
            "router_balance_loss": self.balance / self.weight,
            "router_z_loss": self.z_loss / self.weight,
            "dropped_tokens": self.dropped / self.weight,
            "expert_load_entropy": entropy.mean(),
            "expert_load_max": experts * loads.max(-1).mean(),
        }
        if experts <= MAX_LISTED_EXPERTS:
            metrics["expert_load"] = loads.mean(0)
        return metrics

    def update_biases(self, params: PyTree) -> PyTree:
        """Return parameters with the routers' biases moved against the load (DeepSeek-V3, §2.1.2)."""
        flat = flatten_names(params)
        for path, rate in self.bias_update_rates.items():
            name = f"{path}.bias"
            if name in flat:  # not among those that train where it is frozen
                load = self.loads[path][-len(flat[name]) :]  # of the last layers, where the others are frozen
                flat[name] += rate * jnp.sign(load.mean(-1, keepdims=True) - load)
        return unflatten_names(flat)


def update_router_biases(params: PyTree, terms: Mapping[str, Any]) -> PyTree:
    """Return parameters with the biases of routers moved against the load of a batch; without routers as they are.

    Args:
        params: the parameters.
        terms: the terms of the loss of the batch.
    """
    if ROUTER_TERM not in terms:
        return params
    return terms[ROUTER_TERM].update_biases(params)


def router_loss(model: nnx.Module, config: ModelConfig) -> RouterLoss | None:
    """Return the loss of the routers of a model since the last call; None for a model without any."""
    stacks = _recorded_activity(model)
    if not stacks:
        return None
    total = jnp.zeros((), jnp.float32)
    balance = jnp.zeros((), jnp.float32)
    z_loss = jnp.zeros((), jnp.float32)
    dropped = []
    loads = {}
    bias_update_rates = {}
    for stack, layers in stacks.items():
        layers_of_router: dict[Router, list[RouterActivity]] = defaultdict(list)
        for number, activity in layers.items():
            moe = config.feedforward_of(config.period[int(number)])
            assert isinstance(moe, MoE)
            layers_of_router[moe.router].append(activity)
            path = f"{stack}.layers.{number}.feedforward"
            load = activity.sent.sum(1)
            if config.shared_layers:
                load = load.reshape(config.shared_groups, -1, load.shape[-1]).sum(1)
            loads[path] = load
            dropped.append(activity.dropped.sum() / jnp.maximum(activity.sent.sum(), 1))
            if moe.router.bias_update_rate is not None:
                bias_update_rates[path] = moe.router.bias_update_rate
        for router, activities in layers_of_router.items():
            activity = jax.tree.map(_concatenate, *activities)
            router_balance = router.balance_loss(activity)
            router_z_loss = jnp.sum(activity.squared_log_z.sum(1) / jnp.maximum(activity.tokens.sum(1), 1))
            total = total + router.balance * router_balance + router.z_loss * router_z_loss
            balance = balance + router_balance
            z_loss = z_loss + router_z_loss
    return RouterLoss(
        total=total,
        balance=balance,
        z_loss=z_loss,
        dropped=jnp.stack(dropped).mean(),
        loads=loads,
        weight=jnp.ones((), jnp.float32),
        bias_update_rates=bias_update_rates,
    )


def _concatenate(*arrays: Array) -> Array:
    return jnp.concatenate(arrays)


def _recorded_activity(model: nnx.Module) -> dict[str, dict[str, RouterActivity]]:
    """Return the activity that the stacks of a model have recorded, by path and layer, and remove it from them."""
    recorded = {}
    for path, value in nnx.to_flat_state(nnx.pop(model, nnx.Intermediate)):
        stack = ".".join(str(part) for part in path[:-1])
        recorded[stack] = value.get_value() if hasattr(value, "get_value") else value
    return recorded
