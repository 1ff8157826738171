"""A Mixture-of-Experts layer: its router, its experts, and the way of the tokens to them and back.

Letters are those of `layers.py` and `dispatch.py`.
"""

import math
from functools import partial

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from t5x_lite.models.config import ModelConfig
from t5x_lite.models.experts.activity import RouterActivity
from t5x_lite.models.experts.config import Capacity, MoE
from t5x_lite.models.experts.dispatch import (
    dispatch_and_combine,
    dropless_dispatch,
    sort_by_expert,
    sorting_kernel,
)
from t5x_lite.models.experts.sorted_dispatch import dispatch_sorted
from t5x_lite.models.feedforward.layer import FeedForward
from t5x_lite.models.layers import ExpertAxis, Linear, Weight, weight
from t5x_lite.models.remat import name_exchanged_rows
from t5x_lite.models.sharding import constrain, num_shards, target_platform


class MixtureOfExperts(nnx.Module):
    """Experts side by side, of which each token uses those that a router chooses; some may serve every token."""

    def __init__(self, config: ModelConfig, moe: MoE, *, rngs: nnx.Rngs) -> None:
        expert = moe.expert or config.dense_feedforward
        width = moe.mlp or config.mlp
        experts = ExpertAxis(moe.experts, min(moe.router.mean_choices / moe.experts, 1.0))
        self.moe = moe
        embed = ("embed", config.embed)
        has_bias = moe.router.has_logit_bias
        self.router = Linear(config, [embed], [("router", moe.experts)], bias=has_bias, dtype="float32", rngs=rngs)
        if moe.router.has_bias:
            self.bias: Weight | None = weight(jnp.zeros(moe.experts, jnp.float32), ("router",))
        else:
            self.bias = None
        self.experts = FeedForward(config, expert, width, experts=experts, rngs=rngs)
        if moe.shared:
            self.shared: FeedForward | None = FeedForward(config, expert, width * moe.shared, rngs=rngs)
        else:
            self.shared = None
        if moe.shared_gate:
            self.shared_gate: Linear | None = Linear(config, [embed], [("router", 1)], bias=False, rngs=rngs)
        else:
            self.shared_gate = None

    def __call__(
        self, x: Float[Array, "b l d"], is_token: Bool[Array, "b l"], key: PRNGKeyArray | None
    ) -> Float[Array, "b l d"]:
        """Return the weighted sum of the outputs of each token's experts; 0 for a token that finds no room.

        Padding, where `is_token` is False, chooses no expert. A key turns on dropout and the router's noise.
        """
        router_key = dropout_key = choice_key = None
        if key is not None:
            router_key, dropout_key, choice_key = jax.random.split(key, 3)
        router = self.moe.router
        if sorting_kernel(self.moe.dispatch, target_platform()) is None:
            x = constrain(x, "batch", None, None)  # the tokens of a row queue together
        logits = self.router(router.perturb(x, router_key))
        if router.experts_choose_tokens:
            out, activity = self._experts_choose(x, logits, is_token, dropout_key)
        else:
            out, activity = self._tokens_choose(x, logits, is_token, choice_key, dropout_key)
        self.activity = nnx.Intermediate(activity)
        if self.shared is not None:
            out = out + self._run_shared(self.shared, x, dropout_key)
        return out

    def _run_shared(
        self, shared: FeedForward, x: Float[Array, "b l d"], key: PRNGKeyArray | None
    ) -> Float[Array, "b l d"]:
        """Return the output of the experts that every token uses."""
        out = shared(x, key)
        if self.shared_gate is not None:
            out = out * jax.nn.sigmoid(self.shared_gate(x))
        return out

    def _tokens_choose(
        self,
        x: Float[Array, "b l d"],
        logits: Float[Array, "b l e"],
        is_token: Bool[Array, "b l"],
        choice_key: PRNGKeyArray | None,
        dropout_key: PRNGKeyArray | None,
    ) -> tuple[Float[Array, "b l d"], RouterActivity]:
        router = self.moe.router
        count = self.moe.experts
        bias = None
        if self.bias is not None:
            bias = self.bias[...]
        assignment = router.choose_experts(logits, bias, choice_key)
        experts = jnp.where(is_token[..., None], assignment.experts, count)
        out, served = self._dispatch(x, experts, assignment.weights, dropout_key)
        sent = _count_choices(experts, count)
        activity = RouterActivity(
            counted=_count_choices(router.balanced_choices(experts), count),
            probability=jnp.sum(jnp.where(is_token[..., None], assignment.probability, 0), axis=1),
            sent=sent,
            dropped=sent.sum(1) - served,
            squared_log_z=_sum_squared_log_z(logits, is_token),
            tokens=is_token.sum(1, dtype=jnp.float32),
        )
        return out, activity

    def _experts_choose(
        self,
        x: Float[Array, "b l d"],
        logits: Float[Array, "b l e"],
        is_token: Bool[Array, "b l"],
        dropout_key: PRNGKeyArray | None,
    ) -> tuple[Float[Array, "b l d"], RouterActivity]:
        b, l, d = x.shape
        weights, tokens, probability = self.moe.router.choose_tokens(logits, is_token)
        row = jnp.arange(b)[:, None, None]
        outputs = self._run_experts(x[row, tokens], dropout_key)
        out = jnp.zeros((b, l, d), jnp.float32).at[row, tokens].add(weights[..., None] * outputs).astype(x.dtype)
        sent = (weights > 0).sum(2, dtype=jnp.float32)
        is_served = jnp.zeros((b, l)).at[row, tokens].max((weights > 0).astype(jnp.float32))
        token_count = is_token.sum(1, dtype=jnp.float32)
        activity = RouterActivity(
            counted=sent,
            probability=jnp.sum(jnp.where(is_token[..., None], probability, 0), axis=1),
            sent=sent,
            # A token that no expert took counts as many choices as the others have on average.
            dropped=(token_count - is_served.sum(1)) * sent.sum(1) / jnp.maximum(token_count, 1),
            squared_log_z=_sum_squared_log_z(logits, is_token),
            tokens=token_count,
        )
        return out, activity

    def _dispatch(
        self,
        x: Float[Array, "b l d"],
        experts: Int[Array, "b l k"],
        weights: Float[Array, "b l k"],
        key: PRNGKeyArray | None,
    ) -> tuple[Float[Array, "b l d"], Float[Array, "b"]]:
        """Return the weighted outputs of the experts, and how many choices of each row were served."""
        b, l, d = x.shape
        dispatch = self.moe.dispatch
        count = self.moe.experts
        run_experts = partial(self._run_experts, key=key)
        if isinstance(dispatch, Capacity):
            return self._dispatch_with_capacity(x, experts, weights, dispatch, key)
        served = jnp.sum(experts < count, axis=(1, 2), dtype=jnp.float32)
        kernel = sorting_kernel(dispatch, target_platform())
        if kernel is not None:
            return dispatch_sorted(self.experts, count, kernel, dispatch.buffer, x, experts, weights, key), served
        groups = math.gcd(num_shards("batch"), b)
        x, experts, weights = _in_groups(groups, x, experts, weights)
        out = dropless_dispatch(x, experts, weights, count, dispatch.buffer, run_experts)
        return out.reshape(b, l, d), served

    def _dispatch_with_capacity(
        self,
        x: Float[Array, "b l d"],
        experts: Int[Array, "b l k"],
        weights: Float[Array, "b l k"],
        dispatch: Capacity,
        key: PRNGKeyArray | None,
    ) -> tuple[Float[Array, "b l d"], Float[Array, "b"]]:
        b, l, d = x.shape
        k = experts.shape[-1]
        count = self.moe.experts
        groups = b if dispatch.group == "row" else 1
        x, experts, weights = _in_groups(groups, x, experts, weights)
        capacity = dispatch.tokens_per_expert(x.shape[1], k, count, training=key is not None)
        choices = sort_by_expert(experts, count)
        out = dispatch_and_combine(x, weights, choices, 0, capacity, partial(self._run_experts, key=key))
        is_served = (choices.expert < count) & (choices.position_in_expert < capacity)
        is_served = is_served.reshape(groups, k, b // groups, l)
        return out.reshape(b, l, d), jnp.sum(is_served, axis=(1, 3), dtype=jnp.float32).reshape(b)

    def _run_experts(self, x: Float[Array, "g e c d"], key: PRNGKeyArray | None) -> Float[Array, "g e c d"]:
        """Apply every expert to its buffers; on a mesh they travel to its devices and back (all-to-all)."""
        # Gradients come back to their rows before they are gathered.
        x = constrain(x, "batch", None, None, None)
        x = constrain(jnp.swapaxes(x, 0, 1), "experts", "groups", "length", None)
        y = constrain(self.experts(_name_if_exchanged(x), key), "experts", "groups", "length", None)
        return _name_if_exchanged(constrain(jnp.swapaxes(y, 0, 1), "batch", None, None, None))


def _name_if_exchanged(buffers: Float[Array, "..."]) -> Float[Array, "..."]:
    """Mark buffers that have come from other devices for the policies of rematerialisation."""
    return name_exchanged_rows(buffers) if num_shards("experts") > 1 else buffers


def _in_groups(groups: int, *arrays: Array) -> list[Array]:
    """Return arrays `[b, l, …]` as `[groups, tokens, …]`."""
    return [array.reshape(groups, -1, array.shape[-1]) for array in arrays]


def _count_choices(experts: Int[Array, "b l k"], count: int) -> Float[Array, "b e"]:
    return jnp.sum(experts[..., None] == jnp.arange(count), axis=(1, 2), dtype=jnp.float32)


def _sum_squared_log_z(logits: Float[Array, "b l e"], is_token: Bool[Array, "b l"]) -> Float[Array, "b"]:
    """Return the sum over tokens of (log Σ exp logits)² (Zoph et al. 2022, equation 5)."""
    return jnp.sum(jnp.where(is_token, jax.nn.logsumexp(logits, axis=-1) ** 2, 0), axis=1)
