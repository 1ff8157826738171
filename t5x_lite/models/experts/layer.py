"""The layer of a Mixture-of-Experts: its router, its experts, and the tokens' way there and back.

Letters are those of `layers.py` and `dispatch.py`.
"""

import math
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from t5x_lite.models.config import ModelConfig, MoE
from t5x_lite.models.experts.config import Capacity, DeepSeek, Dropless, ExpertChoice, GShard, Switch
from t5x_lite.models.experts.dispatch import (
    PRODUCTS,
    dispatch_and_combine,
    dropless_dispatch,
    dropless_kernel,
    rows,
    sort_by_expert,
    weighted,
)
from t5x_lite.models.experts.routing import Seen, route_tokens
from t5x_lite.models.feedforward import PERCEPTRONS
from t5x_lite.models.layers import Experts, Groups, Linear, Weight, weight
from t5x_lite.models.sharding import constrain, platform, shards, spec

TILE = 128
"""Rows that megablox multiplies at a time."""


class MixtureOfExperts(nnx.Module):
    """Experts side by side, of which each token passes those that a router chooses; some may serve every token."""

    def __init__(self, config: ModelConfig, moe: MoE, *, rngs: nnx.Rngs) -> None:
        kind, width = moe.expert or config.dense_feedforward, moe.mlp or config.width_of_mlp
        make, embed = PERCEPTRONS[type(kind)], ("embed", config.embed)
        experts = Experts(moe.experts, min(moe.router.choices / moe.experts, 1.0))
        self.moe = moe
        self.router = Linear(config, [embed], [("router", moe.experts)], bias=False, dtype="float32", rngs=rngs)
        biased = isinstance(moe.router, DeepSeek)
        self.bias = weight(jnp.zeros(moe.experts, jnp.float32), ("router",)) if biased else None
        self.experts = make(config, kind, width, experts=experts, rngs=rngs)
        self.shared = make(config, kind, width * moe.shared, rngs=rngs) if moe.shared else None

    def __call__(
        self, x: Float[Array, "b l d"], real: Bool[Array, "b l"], key: PRNGKeyArray | None
    ) -> Float[Array, "b l d"]:
        """The weighted sum of the outputs of a token's experts, 0 for those without room; padding chooses none."""
        keys = [None] * 3 if key is None else jax.random.split(key, 3)
        router, count = self.moe.router, self.moe.experts
        x = constrain(x, "batch", None, None)  # a row's tokens queue together
        logits = self.router(_jittered(x, router.jitter, keys[0]) if isinstance(router, Switch) else x)
        if isinstance(router, ExpertChoice):
            out, probability, sent, dropped = self._by_experts(x, logits, real, router, keys[1])
            counted = sent
        else:
            bias = None if self.bias is None else self.bias[...]
            experts, weights, probability = route_tokens(router, logits, bias, keys[2])
            experts = jnp.where(real[..., None], experts, count)
            out, kept = self._dispatched(x, experts, weights, keys[1])
            sent = _counts(experts, count)
            dropped = sent.sum(1) - kept
            counted = _counts(experts[..., :1], count) if isinstance(router, GShard) else sent
        seen = Seen(
            counted,
            jnp.sum(jnp.where(real[..., None], probability, 0), axis=1),
            sent,
            dropped,
            jnp.sum(jnp.where(real, jax.nn.logsumexp(logits, axis=-1) ** 2, 0), axis=1),
            real.sum(1, dtype=jnp.float32),
        )
        self.seen = nnx.Intermediate(seen)
        return out if self.shared is None else out + self.shared(x, keys[1])

    def _dispatched(
        self, x: Float[Array, "b l d"], experts: Int[Array, "b l k"], weights: Float[Array, "b l k"], key: Any
    ) -> tuple[Float[Array, "b l d"], Float[Array, "b"]]:
        """What comes back from the experts, and how many choices of each row reached one."""
        b, l, d = x.shape
        k, count, dispatch = experts.shape[-1], self.moe.experts, self.moe.dispatch
        run = partial(self._in_buffers, key=key)
        if isinstance(dispatch, Dropless):
            kept = jnp.sum(experts < count, axis=(1, 2), dtype=jnp.float32)
            if dropless_kernel(dispatch, platform()) != "buffer":
                return self._ragged(x, experts, weights, key), kept
            groups = math.gcd(shards("batch"), b)
        else:
            groups = b if dispatch.group == "row" else 1
        x, experts, weights = (a.reshape(groups, -1, a.shape[-1]) for a in (x, experts, weights))
        if isinstance(dispatch, Dropless):
            return dropless_dispatch(x, experts, weights, count, dispatch.buffer, run).reshape(b, l, d), kept
        room = _room(dispatch, x.shape[1], k, count, training=key is not None)
        queue = sort_by_expert(experts, count)
        out = dispatch_and_combine(x, weights, queue, 0, room, run)
        served = ((queue.expert < count) & (queue.place < room)).reshape(groups, k, b // groups, l)
        return out.reshape(b, l, d), jnp.sum(served, axis=(1, 3), dtype=jnp.float32).reshape(b)

    def _in_buffers(self, x: Float[Array, "g e c d"], key: PRNGKeyArray | None) -> Float[Array, "g e c d"]:
        """Every expert on its buffers; on a mesh they travel to its devices and back (all-to-all)."""
        x = constrain(x, "batch", None, None, None)  # gradients come back to their rows before they are gathered
        x = constrain(jnp.swapaxes(x, 0, 1), "experts", "groups", "length", None)
        y = constrain(self.experts(x, key), "experts", "groups", "length", None)
        return constrain(jnp.swapaxes(y, 0, 1), "batch", None, None, None)

    def _ragged(
        self, x: Float[Array, "b l d"], experts: Int[Array, "b l k"], weights: Float[Array, "b l k"], key: Any
    ) -> Float[Array, "b l d"]:
        """Tokens sorted by expert, multiplied in groups: each device its own rows with all experts."""
        dispatch, count = self.moe.dispatch, self.moe.experts
        assert isinstance(dispatch, Dropless)
        product = PRODUCTS[dropless_kernel(dispatch, platform())]
        graph, params = nnx.split(self.experts)

        def own(params: Any, key: Any, x: Array, experts: Array, weights: Array) -> Array:
            flat, module = x.reshape(1, -1, x.shape[-1]), nnx.merge(graph, params)
            queue = sort_by_expert(experts.reshape(1, -1, experts.shape[-1]), count)
            n = queue.order.shape[1]
            more = -n % TILE
            token = jnp.pad(queue.order % flat.shape[1], ((0, 0), (0, more)), constant_values=flat.shape[1])
            rank = jnp.moveaxis(queue.rank.reshape(1, -1, flat.shape[1]), 1, 2)
            sorted_rows = rows(flat, token, rank)[0]
            expert = jnp.pad(jnp.take(queue.expert[0], queue.order[0]), (0, more), constant_values=count)
            groups = Groups(queue.counts[0], jnp.minimum(expert, count - 1), product)
            y = jnp.where((expert < count)[:, None], module(sorted_rows, key, groups), 0)
            origin = jnp.pad(queue.order, ((0, 0), (0, more)), constant_values=n)[..., None]
            back = rows(y[None], queue.rank, origin).reshape(1, -1, *flat.shape[1:])
            return weighted(back, weights.reshape(1, -1, weights.shape[-1])).reshape(x.shape)

        mesh = jax.sharding.get_abstract_mesh()
        if mesh.empty or mesh.size == 1:
            return own(params, key, x, experts, weights)
        by_row = spec(mesh.shape, ("batch", "length", None), x.shape)
        arrays, structure = jax.tree.flatten(params)
        of_experts = jax.tree.leaves(params, is_leaf=lambda leaf: isinstance(leaf, Weight))
        cut = [spec(mesh.shape, weight.axes.names, weight.shape) for weight in of_experts]

        def gathered(arrays: list[Array], *rest: Any) -> Array:
            """Experts' weights are gathered here, and their gradients summed into parts: never whole outside."""
            whole = [_gathered(array.astype(x.dtype), parts) for array, parts in zip(arrays, cut, strict=True)]
            return own(jax.tree.unflatten(structure, whole), *rest)

        in_specs = (cut, jax.sharding.PartitionSpec(), *[by_row] * 3)
        local = jax.shard_map(gathered, in_specs=in_specs, out_specs=by_row, check_vma=False)
        return local(arrays, key, x, experts, weights)

    def _by_experts(
        self,
        x: Float[Array, "b l d"],
        logits: Float[Array, "b l e"],
        real: Bool[Array, "b l"],
        router: ExpertChoice,
        key: Any,
    ) -> tuple[Float[Array, "b l d"], Float[Array, "b l e"], Float[Array, "b e"], Float[Array, "b"]]:
        """Each expert takes the tokens of a row with the highest probability for it (Zhou et al. 2022, §3.2).

        Also that probability, how many tokens each expert took, and how many no expert took, as `Seen` counts them.
        """
        b, l, d = x.shape
        room = min(math.ceil(router.average * l / self.moe.experts), l)
        probability = jnp.where(real[..., None], jax.nn.softmax(logits, axis=-1), 0)
        weights, tokens = jax.lax.top_k(jnp.swapaxes(probability, 1, 2), room)
        row = jnp.arange(b)[:, None, None]
        y = self._in_buffers(x[row, tokens], key)
        out = jnp.zeros((b, l, d), jnp.float32).at[row, tokens].add(weights[..., None] * y).astype(x.dtype)
        taken = (weights > 0).sum(2, dtype=jnp.float32)
        reached = jnp.zeros((b, l)).at[row, tokens].max((weights > 0).astype(jnp.float32))
        count = real.sum(1, dtype=jnp.float32)
        # A token that no expert took counts as so many choices as the others have on average.
        dropped = (count - reached.sum(1)) * taken.sum(1) / jnp.maximum(count, 1)
        return out, probability, taken, dropped


def _gathered(array: Array, parts: jax.sharding.PartitionSpec) -> Array:
    """The whole of an array of which each device has a part."""
    for axis, over in enumerate(parts):
        array = jax.lax.all_gather(array, over, axis=axis, tiled=True) if over else array
    return array


def _jittered(x: Array, jitter: float, key: PRNGKeyArray | None) -> Array:
    if key is None or jitter == 0:
        return x
    return x * jax.random.uniform(key, x.shape, jnp.float32, 1 - jitter, 1 + jitter)


def _counts(experts: Int[Array, "b l k"], count: int) -> Float[Array, "b e"]:
    return jnp.sum(experts[..., None] == jnp.arange(count), axis=(1, 2), dtype=jnp.float32)


def _room(dispatch: Capacity, tokens: int, choices: int, experts: int, *, training: bool) -> int:
    """Places of each expert for a group."""
    factor = dispatch.factor if training or dispatch.eval_factor is None else dispatch.eval_factor
    return min(dispatch.tokens or math.ceil(factor * tokens * choices / experts), tokens)
