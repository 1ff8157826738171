"""Block: one layer. Stack: the repeating pattern of layers, stacked in memory and scanned."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from t5x_lite.models import positions
from t5x_lite.models.attention.context import AttentionContext, TokenPositions
from t5x_lite.models.attention.kinds import Dense
from t5x_lite.models.attention.layer import Attention, CacheSlice, KVCache, empty_cache, update_cache
from t5x_lite.models.components import LayerConfig, MoE
from t5x_lite.models.config import ModelConfig, RematPolicy
from t5x_lite.models.experts.layer import MixtureOfExperts
from t5x_lite.models.feedforward import PERCEPTRONS
from t5x_lite.models.layers import Linear, Norm, dropout
from t5x_lite.models.sharding import constrain, platform, shards

RESIDUAL = "residual"
"""What a layer gives to the next: the name by which `remat=offload` knows it."""

Sublayer = Callable[[Array], Array]

RESIDUALS: dict[str, Callable[[Array, Norm, Sublayer], Array]] = {
    "pre": lambda x, norm, sublayer: x + sublayer(norm(x)),
    "post": lambda x, norm, sublayer: norm(x + sublayer(x)),
    "sublayer": lambda x, norm, sublayer: x + norm(sublayer(x)),
}


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class EncoderOutput:
    """What cross-attention looks at: an encoder's states, and where they stand.

    In decoding `states` are None and each layer is given its keys and values of them.
    """

    places: TokenPositions
    states: Float[Array, "b m d"] | None = None


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class RowInputs:
    """What the rows of a batch bring to every layer: it can be taken for some of them."""

    segment_ids: Int[Array, "b l"]
    prefix: Bool[Array, "b l"] | None
    at: Int[Array, "b l"] | None
    of_memory: Int[Array, "b m"] | None
    states: Float[Array, "b m d"] | None

    @classmethod
    def of(cls, view: AttentionContext, memory: EncoderOutput | None) -> "RowInputs":
        """Those of a row that looks at itself, and at a memory."""
        beside = (None, None) if memory is None else (memory.places.segment_ids, memory.states)
        return cls(view.queries.segment_ids, view.queries.prefix, view.at, *beside)

    def taken(
        self, view: AttentionContext, memory: EncoderOutput | None
    ) -> tuple[AttentionContext, EncoderOutput | None]:
        """What layers look at in these rows alone."""
        places = replace(view.queries, segment_ids=self.segment_ids, prefix=self.prefix)
        view = replace(view, queries=places, keys=places, at=self.at)
        if memory is None or self.of_memory is None:
            return view, None
        return view, EncoderOutput(replace(memory.places, segment_ids=self.of_memory), self.states)


class Block(nnx.Module):
    """Self-attention, cross-attention in a decoder that has a memory, and feed-forward: each residual and normed."""

    def __init__(self, config: ModelConfig, layer: LayerConfig, *, cross: bool, rngs: nnx.Rngs) -> None:
        feedforward = config.feedforward_of(layer)
        embed = ("embed", config.embed)
        self.residual, self.dropout = config.norm_place, config.dropout
        self.attention_norm = Norm(config.norm, embed)
        self.attention = Attention(config, layer.attention, rngs=rngs)
        self.feedforward_norm = Norm(config.norm, embed)
        self.experts = isinstance(feedforward, MoE)
        self.feedforward: Any = (
            MixtureOfExperts(config, feedforward, rngs=rngs)
            if isinstance(feedforward, MoE)
            else PERCEPTRONS[type(feedforward)](config, feedforward, config.width_of_mlp, rngs=rngs)
        )
        self.adapters: Any = nnx.data(None)
        self.cross_norm = Norm(config.norm, embed) if cross else None
        self.cross_attention = Attention(config, Dense(), cross=True, rngs=rngs) if cross else None

    def __call__(
        self,
        x: Float[Array, "b l d"],
        view: AttentionContext,
        memory: EncoderOutput | None = None,
        cache: CacheSlice | None = None,
        remembered: KVCache | None = None,
        key: PRNGKeyArray | None = None,
    ) -> tuple[Float[Array, "b l d"], CacheSlice | None]:
        """One layer.

        Args:
            x: states of the tokens.
            view: what they may see of each other, or of the cache after their keys are written into it.
            memory: what cross-attention looks at.
            cache: keys and values of earlier tokens; comes back with the new ones.
            remembered: this layer's keys and values of the memory, `turned`, where they are known.
            key: turns dropout on.
        """
        residual = RESIDUALS[self.residual]
        keys = dict.fromkeys(range(6)) if key is None else dict(enumerate(jax.random.split(key, 6)))
        if key is not None:
            self._seed_adapters(jax.random.fold_in(key, 6))

        def attend(y: Array) -> Array:
            nonlocal cache
            own, seen = self.attention.keys_values(y, view), view
            if cache is not None:
                own, seen, cache = update_cache(cache, own, view)
            return self._adapted("attention", dropout(self.attention(y, own, seen, keys[0]), self.dropout, keys[1]))

        def look(y: Array) -> Array:
            assert memory is not None
            assert self.cross_attention is not None
            across = AttentionContext(view.queries, memory.places, causal=False)
            if remembered is None:
                assert memory.states is not None
                source = self.cross_attention.keys_values(memory.states, across)
            else:
                source = remembered.turned()
            return dropout(self.cross_attention(y, source, across, keys[2]), self.dropout, keys[3])

        x = residual(x, self.attention_norm, attend)
        if self.cross_attention is not None and self.cross_norm is not None:
            x = residual(x, self.cross_norm, look)

        def think(y: Array) -> Array:
            real = (view.queries.segment_ids > 0,) if self.experts else ()
            return self._adapted("feedforward", dropout(self.feedforward(y, *real, keys[4]), self.dropout, keys[5]))

        x = residual(x, self.feedforward_norm, think)
        return x, cache

    def _seed_adapters(self, key: PRNGKeyArray) -> None:
        linears = (module for _, module in nnx.iter_modules(self) if isinstance(module, Linear))
        for number, linear in enumerate(linears):
            if linear.adapter is not None:
                linear.adapter.key = jax.random.fold_in(key, number)

    def _adapted(self, place: str, y: Array) -> Array:
        return self.adapters[place](y) if self.adapters is not None and place in self.adapters else y


class Stack(nnx.Module):
    """`layers` layers as repeats of the pattern. Weights have a leading axis over repeats, which are one `lax.scan`.

    With `shared_layers` that axis has length one and all repeats use it; with `like`, all but cross-attention are the
    other stack's own weights. With an `average` n above 1, set from outside, the states are the mean of those that the
    last n layers make.
    """

    def __init__(
        self,
        config: ModelConfig,
        layers: int,
        *,
        causal: bool,
        cross: bool = False,
        like: "Stack | None" = None,
        rngs: nnx.Rngs,
    ) -> None:
        self.config, self.causal = config, causal
        self.repeats = layers // len(config.pattern)

        def period(key: PRNGKeyArray) -> nnx.Dict:
            own = nnx.Rngs(params=key)
            blocks = (Block(config, layer, cross=cross, rngs=own) for layer in config.pattern)
            return nnx.Dict({str(n): block for n, block in enumerate(blocks)})

        self.layers = nnx.vmap(period)(jax.random.split(rngs.params(), 1 if config.shared_layers else self.repeats))
        self.positions = positions.attended(config, rngs, layer=False)
        self.final_norm = None if config.norm_place == "post" else Norm(config.norm, ("embed", config.embed))
        self.average = 1
        if like is not None:
            self.positions, self.final_norm = like.positions, like.final_norm
            for number in self.layers:
                for name in ("attention_norm", "attention", "feedforward_norm", "feedforward"):
                    setattr(self.layers[number], name, getattr(like.layers[number], name))

    def view(self, queries: TokenPositions, keys: TokenPositions, at: Int[Array, "b l"]) -> AttentionContext:
        """What queries at positions `at` may see of the keys."""
        bias = of = self.positions.bias(causal=self.causal)
        if of is not None:
            whole = of(queries.index, keys.index)  # once for all layers that compute the whole square

            def bias(query: Array, key: Array) -> Array:
                return whole if query is queries.index and key is keys.index else of(query, key)

        by_offset = self.positions.offset_bias(causal=self.causal)
        return AttentionContext(queries, keys, self.causal, at, self.positions.rotate, bias, by_offset)

    def __call__(
        self,
        x: Float[Array, "b l d"],
        view: AttentionContext,
        memory: EncoderOutput | None = None,
        cache: list[KVCache] | None = None,
        remembered: list[KVCache] | None = None,
        key: PRNGKeyArray | None = None,
    ) -> tuple[Float[Array, "b l d"], list[KVCache] | None]:
        """All layers; see `Block.__call__`. Caches hold one entry a layer of the pattern, stacked over the repeats."""
        period = len(self.config.pattern)
        keys = None if key is None else jax.random.split(key, (self.repeats, period))

        def period_of(view: AttentionContext, memory: EncoderOutput | None) -> Callable[..., tuple[Array, Any]]:
            def one_period(carry: Any, blocks: Any, scanned: tuple[Any, Any, Any]) -> tuple[Any, Any]:
                (x, cache), (number, remembered, keys) = carry, scanned
                caches, states = [], []
                for n in range(period):
                    slot = None if cache is None else CacheSlice(cache[n], number)
                    own = [None if part is None else part[n] for part in (remembered, keys)]
                    x, slot = blocks[str(n)](x, view, memory, slot, *own)
                    x = checkpoint_name(x, RESIDUAL)
                    caches.append(None if slot is None else slot.layers)
                    states.append(x)
                seen = {n: block.feedforward.seen.get_value() for n, block in blocks.items() if block.experts}
                made = jnp.stack(states) if self.average > 1 else None
                return (x, None if cache is None else caches), ({} if cache is not None else seen, made)

            return one_period

        if shards("layers") > 1 and cache is None:
            x, seen = self._pipelined(
                lambda rows: period_of(*rows.taken(view, memory)), x, RowInputs.of(view, memory), keys
            )
        else:
            numbers = None if cache is None else jnp.arange(self.repeats)
            # Of a stack on a CPU a layer's weights are a copy; of layers that came apart they are read where they are.
            apart = cache is not None and platform() == "cpu"
            scanned = (numbers, remembered, keys)
            (x, cache), (seen, made) = self._scan(period_of(view, memory), (x, cache), scanned, unrolled=apart)
            if made is not None:
                x = made.reshape(-1, *x.shape)[-self.average :].mean(0)
        if seen:
            self.seen = nnx.Intermediate(seen)
        return (x if self.final_norm is None else self.final_norm(x)), cache

    def _scan(
        self,
        body: Callable[..., tuple[Any, Any]],
        carry: Any,
        scanned: Any,
        weights: Any = None,
        unrolled: bool = False,
    ) -> tuple[Any, Any]:
        """`body(carry, blocks of one period, part of scanned)` for every repeat, or those that `weights` are of."""
        graph, all_weights = nnx.split(self.layers)
        shared = self.config.shared_layers
        weights = all_weights if weights is None else weights

        def one(carry: Any, parts: tuple[Any, Any]) -> tuple[Any, Any]:
            own = jax.tree.map(lambda w: w[0], weights) if shared else parts[0]
            return body(carry, nnx.merge(graph, own), parts[1])

        length = self.repeats if shared else len(jax.tree.leaves(weights)[0])
        return jax.lax.scan(
            _rematerialised(one, self.config.remat),
            carry,
            (None if shared else weights, scanned),
            length=length,
            unroll=length if unrolled else self.config.unroll or length,
        )

    def _pipelined(
        self, body_of: Callable[..., Any], x: Float[Array, "b l d"], rows: RowInputs, keys: Any
    ) -> tuple[Float[Array, "b l d"], Any]:
        """The layers in stages over the mesh axis `pipeline`, which parts of the batch pass one behind the other.

        At every tick all stages work, on parts that follow each other (Huang et al. 2019, §2.3).

        The bubble is (stages - 1) / (parts + stages - 1) of the ticks. Gradients come from transposing the loop.
        """
        stages = shards("layers")
        batch = x.shape[0]
        parts = pipeline_parts(self.config, batch, stages)

        def cut(x: Array) -> Array:
            """`[parts, batch / parts, …]`, dealt out so that every shard of the batch keeps its own rows."""
            dealt = jnp.moveaxis(x.reshape(batch // parts, parts, *x.shape[1:]), 1, 0)
            axes = ["residual_length", None] if x.ndim == 3 else [None] * (x.ndim - 1)
            return constrain(dealt, None, "batch", *axes)

        def together(x: Array) -> Array:
            return jnp.moveaxis(x, 0, 1).reshape(batch, *x.shape[2:])

        def staged(x: Array) -> Array:
            return x.reshape(stages, -1, *x.shape[1:])

        x, rest = cut(x), jax.tree.map(cut, rows)
        weights = jax.tree.map(staged, nnx.split(self.layers)[1])
        keys = None if keys is None else staged(keys)

        def laid(states: Array) -> Array:
            return constrain(states, "layers", "batch", "residual_length", None)

        def stage(weights: Any, x: Array, own: RowInputs, keys: Any, part: Array) -> tuple[Array, Any]:
            drawn = None if keys is None else jax.vmap(jax.vmap(lambda k: jax.random.fold_in(k, part)))(keys)
            (x, _), (seen, _) = self._scan(body_of(own), (x, None), (None, None, drawn), weights)
            return x, seen

        def tick(states: Array, number: Array) -> tuple[Array, Any]:
            entering = constrain(x[jnp.minimum(number, parts - 1)], "batch", "residual_length", None)
            first = (jnp.arange(stages) == 0)[:, None, None, None]
            states = laid(jnp.where(first, entering[None], jnp.roll(states, 1, axis=0)))
            part = jnp.clip(number - jnp.arange(stages), 0, parts - 1)
            own = jax.tree.map(lambda a: a[part], rest)
            states, seen = jax.vmap(stage, spmd_axis_name="pipeline")(weights, states, own, keys, part)
            states = laid(states)
            return states, (constrain(states[-1], "batch", "residual_length", None), seen)

        empty = laid(jnp.zeros((stages, *x.shape[1:]), x.dtype))
        _, (left, seen) = jax.lax.scan(tick, empty, jnp.arange(parts + stages - 1))

        def of_rows(a: Array) -> Array:
            """What stages saw of their parts, by tick, stage, layer of the stage and row, as `[layers, batch, …]`."""
            own = jnp.stack([a[n : n + parts, n] for n in range(stages)])  # stage, part, layer, row
            by_layer = jnp.moveaxis(own, 1, 3)  # stage, layer, row, part
            return by_layer.reshape(self.repeats, batch, *a.shape[4:])

        return together(left[stages - 1 :]), jax.tree.map(of_rows, seen)

    def remember(self, memory: EncoderOutput) -> list[KVCache]:
        """Each layer's keys and values of a memory: made once, used for every token that is decoded."""

        def one_period(_: None, blocks: Any, __: None) -> tuple[None, list[KVCache]]:
            view = AttentionContext(memory.places, memory.places, causal=False)
            layers = [blocks[str(n)].cross_attention for n in range(len(self.config.pattern))]
            return None, [layer.keys_values(memory.states, view).turned() for layer in layers]

        return self._scan(one_period, None, None)[1]

    def empty_cache(self, batch: int, length: int) -> list[KVCache]:
        """A cache for `length` tokens of every layer."""
        layers = [empty_cache(self.config, layer.attention, batch, length) for layer in self.config.pattern]
        return jax.tree.map(lambda a: jnp.broadcast_to(a, (self.repeats, *a.shape)), layers)


def pipeline_parts(config: ModelConfig, rows: int, stages: int) -> int:
    """Into how many parts the rows of a batch go through the stages of a pipeline.

    Raises:
        ValueError: `model.pipeline_microbatches` does not divide the rows of a device.
    """
    own, wanted = max(rows // shards("batch"), 1), config.pipeline_microbatches
    if wanted is None:
        return max(n for n in range(1, 4 * stages + 1) if own % n == 0)
    if own % wanted:
        raise ValueError(
            f"model.pipeline_microbatches {wanted} does not divide the {own} rows that a device has of a batch"
        )
    return wanted


KERNELS = ("pallas_call", "dot_product_attention_fwd_wrapper")
"""Fused attention as JAX's primitives: Pallas kernels, and cuDNN's."""


def _products_and_kernels(primitive: Any, *values: Any, **parameters: Any) -> bool:
    """What `remat=dots` keeps: results of products and of fused attention, which is products too."""
    return primitive.name in KERNELS or jax.checkpoint_policies.dots_saveable(primitive, *values, **parameters)


def _rematerialised(body: Callable[..., Any], policy: RematPolicy) -> Callable[..., Any]:
    """`body` with the share of its activations that `policy` names recomputed in the backward pass."""
    policies = jax.checkpoint_policies
    if policy == "none":
        return body
    kept = {
        "full": policies.nothing_saveable,
        "dots": _products_and_kernels,
        "dots_no_batch": policies.dots_with_no_batch_dims_saveable,
        "offload": policies.save_and_offload_only_these_names(
            names_which_can_be_saved=[],
            names_which_can_be_offloaded=[RESIDUAL],
            offload_src="device",
            offload_dst="pinned_host",
        ),
    }
    return jax.checkpoint(body, policy=kept[policy], prevent_cse=False)
