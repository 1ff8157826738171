"""Routers: which experts each token is sent to, and what is measured of that: losses, loads, biases that move."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from flax.traverse_util import flatten_dict, unflatten_dict
from jaxtyping import Array, Float, Int, PRNGKeyArray

from t5x_lite.models.config import ModelConfig, MoE
from t5x_lite.models.experts.config import DeepSeek, GShard, Router, Switch, TopK

LISTED = 128
"""Experts up to which the load of each is a metric of its own."""
ROUTER_TERM = "router"
"""Name of the routers' term of the loss; its sums are a `Routing`."""
ROUTER_TERM_WEIGHTS: Mapping[str, None] = {ROUTER_TERM: None}
"""Declares, as `Objective.term_weights` does for other terms, how the term is normalised: it has no weights, because it
is a mean over each microbatch already, and microbatches are averaged."""


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Seen:
    """What a router did, as sums over the real tokens of each row.

    `counted` and `probability` (`[b, e]`) are what the balance loss is made of; `sent` (`[b, e]`) are all choices,
    `dropped` (`[b]`) those that found no room; `log_z` sums log²Σexp of the logits; `tokens` counts.
    """

    counted: Float[Array, "b e"]
    probability: Float[Array, "b e"]
    sent: Float[Array, "b e"]
    dropped: Float[Array, "b"]
    log_z: Float[Array, "b"]
    tokens: Float[Array, "b"]


def route_tokens(
    router: Router, logits: Float[Array, "b l e"], bias: Float[Array, "e"] | None, key: PRNGKeyArray | None
) -> tuple[Int[Array, "b l k"], Float[Array, "b l k"], Float[Array, "b l e"]]:
    """Experts of each token, the weights of their outputs, and the probabilities that the balance loss is about.

    An expert that is none (a second one that was not drawn) has a number past the last. A key means training.
    """
    probability = jax.nn.softmax(logits, axis=-1)
    match router:
        case Switch():
            weights, experts = highest(probability, 1)
        case GShard():
            weights, experts = highest(probability, 2)
            weights = weights / weights.sum(-1, keepdims=True)
            if key is not None:
                drawn = jax.random.uniform(key, weights.shape[:-1]) < 2 * weights[..., 1]
                experts = experts.at[..., 1].set(jnp.where(drawn, experts[..., 1], logits.shape[-1]))
        case TopK(k=k):
            scores, experts = highest(logits, k)
            weights = jax.nn.softmax(scores, axis=-1)
        case DeepSeek(k=k):
            assert bias is not None
            scores = jax.nn.sigmoid(logits)
            experts = highest(scores + jax.lax.stop_gradient(bias), k)[1]
            weights = jnp.take_along_axis(scores, experts, axis=-1)
            weights = weights / weights.sum(-1, keepdims=True)
            probability = scores / scores.sum(-1, keepdims=True)
        case _:
            raise TypeError(router)
    return experts, weights, probability


def highest(x: Float[Array, "... e"], k: int) -> tuple[Float[Array, "... k"], Int[Array, "... k"]]:
    """`lax.top_k`, which XLA does not divide over a mesh: each device would choose for the whole batch."""
    values, places, left = [], [], x
    for _ in range(k):
        place = jnp.argmax(left, axis=-1)
        here = jnp.arange(x.shape[-1]) == place[..., None]
        values.append(jnp.sum(jnp.where(here, x, 0), axis=-1))
        places.append(place)
        left = jnp.where(here, -jnp.inf, left)
    return jnp.stack(values, axis=-1), jnp.stack(places, axis=-1)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Routing:
    """What the routers of a model did with a batch: the term `router` of its loss. Parts of a batch add up.

    `total` is what is minimised; `balance` and `z_loss` are without their factors; `loads` are the choices of each
    expert by layer (`[repeats, e]`), named by the path of the layer's weights.
    """

    total: Float[Array, ""]
    balance: Float[Array, ""]
    z_loss: Float[Array, ""]
    dropped: Float[Array, ""]
    loads: Mapping[str, Float[Array, "r e"]]
    weight: Float[Array, ""]
    updates: Mapping[str, float] = field(default_factory=dict, metadata={"static": True})

    def __add__(self, other: "Routing") -> "Routing":
        return jax.tree.map(jnp.add, self, other)

    def means(self, name: str) -> dict[str, Array]:
        """Losses and the share of dropped choices; entropy of an expert's load (1 is balanced, over log experts) and
        its maximum (1 is balanced), both the mean over layers; and the load of each expert.
        """
        loads = jnp.concatenate([load / load.sum(-1, keepdims=True) for load in self.loads.values()])
        count = loads.shape[-1]
        entropy = -jnp.sum(jax.scipy.special.xlogy(loads, loads), axis=-1) / max(math.log(count), 1e-9)
        return {
            "router_balance_loss": self.balance / self.weight,
            "router_z_loss": self.z_loss / self.weight,
            "dropped_tokens": self.dropped / self.weight,
            "expert_load_entropy": entropy.mean(),
            "expert_load_max": count * loads.max(-1).mean(),
        } | ({"expert_load": loads.mean(0)} if count <= LISTED else {})

    def rebalanced(self, params: Any) -> Any:
        """Parameters with the biases of DeepSeek's routers moved against the load."""
        flat = flatten_dict(params, sep=".")
        for path, step in self.updates.items():
            if f"{path}.bias" in flat:  # else it is frozen
                load = self.loads[path]
                flat[f"{path}.bias"] += step * jnp.sign(load.mean(-1, keepdims=True) - load)
        return unflatten_dict(flat, sep=".")


def routing(model: nnx.Module, config: ModelConfig) -> Routing | None:
    """What the routers have done since the last call; None for a model without any."""
    sown = {
        ".".join(map(str, path[:-1])): seen.get_value() if hasattr(seen, "get_value") else seen
        for path, seen in nnx.to_flat_state(nnx.pop(model, nnx.Intermediate))
    }
    total = balance = z_loss = jnp.zeros((), jnp.float32)
    dropped, loads, updates = [], {}, {}
    for stack, layers in sown.items():
        routers: dict[Router, list[Seen]] = {}
        for number, seen in layers.items():
            moe = config.feedforward_of(config.pattern[int(number)])
            assert isinstance(moe, MoE)
            routers.setdefault(moe.router, []).append(seen)
            path = f"{stack}.layers.{number}.feedforward"
            loads[path] = seen.sent.sum(1).sum(0, keepdims=True) if config.shared_layers else seen.sent.sum(1)
            dropped.append(seen.dropped.sum() / jnp.maximum(seen.sent.sum(), 1))
            if isinstance(moe.router, DeepSeek):
                updates[path] = moe.router.update
        for router, several in routers.items():
            seen = jax.tree.map(lambda *parts: jnp.concatenate(parts), *several)
            own, z = balance_of(router, seen), jnp.sum(seen.log_z.sum(1) / jnp.maximum(seen.tokens.sum(1), 1))
            total = total + router.balance * own + router.z_loss * z
            balance, z_loss = balance + own, z_loss + z
    if not sown:
        return None
    share = jnp.stack(dropped).mean()
    return Routing(total, balance, z_loss, share, loads, jnp.ones((), jnp.float32), updates)


def balance_of(router: Router, seen: Seen) -> Float[Array, ""]:
    """The load-balance loss of the layers of a stack, without its factor; see `Router`."""
    count = seen.sent.shape[-1]
    axes = {"row": (), "batch": (1,), "model": (0, 1)}[router.over]
    counted, probability = (x.sum(axes, keepdims=True) for x in (seen.counted, seen.probability))
    tokens = seen.tokens.sum(axes, keepdims=True)
    # A row that is all padding has no say.
    shares, means = (x / jnp.maximum(tokens, 1)[..., None] for x in (counted, probability))
    each = count * jnp.sum(shares * means, axis=-1)
    if isinstance(router, DeepSeek):
        each = each / router.k
    return jnp.sum(each.sum(1) / jnp.maximum((tokens > 0).sum(1), 1))
