"""Stack: the layers of a Transformer, as repeats of a pattern whose weights are stacked in memory and scanned."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int, PRNGKeyArray, PyTree

from t5x_lite.models.attention.cache import CacheSlice, KVCache, empty_cache
from t5x_lite.models.attention.context import AttentionContext, TokenPositions, offsets
from t5x_lite.models.attention.kinds import TransientGlobal
from t5x_lite.models.block import Block, EncoderOutput
from t5x_lite.models.config import ModelConfig
from t5x_lite.models.experts.activity import RouterActivity
from t5x_lite.models.layer_config import LayerConfig
from t5x_lite.models.layers import Norm
from t5x_lite.models.mixers import SelfAttention, StateMixer
from t5x_lite.models.mixers.mixer import MixerState
from t5x_lite.models.mixers.module import StateSlice, empty_state
from t5x_lite.models.pipeline import run_pipeline
from t5x_lite.models.positions.module import Positions
from t5x_lite.models.remat import name_layer_output, rematerialised
from t5x_lite.models.row_inputs import RowInputs
from t5x_lite.models.sharding import num_shards, target_platform

LayerActivity: TypeAlias = dict[str, RouterActivity]
"""Sums over the choices of the routers of one period, by the number of the layer in the pattern."""
LayerCache: TypeAlias = KVCache | MixerState
"""The state of decoding of one layer: keys and values, or that of another mixer."""
SHARED_MODULES = (
    "attention_norm",
    "attention",
    "mixer",
    "attention_output_norm",
    "feedforward_norm",
    "feedforward",
    "feedforward_output_norm",
)
"""The modules of a block that two stacks share under `model.shared_stacks`."""


@dataclass(frozen=True)
class LayerInputs:
    """Inputs of the layers of one period other than the states, with an axis over repeats before they are scanned.

    Attributes:
        repeat: number of the repeat; None without a cache.
        cross_kv: keys and values of the encoder's output of every layer of the period.
        keys: dropout keys of every layer of the period.
    """

    repeat: Int[Array, "*r"] | None = None
    cross_kv: list[KVCache] | None = None
    keys: PRNGKeyArray | None = None


jax.tree_util.register_dataclass(LayerInputs)

Carry: TypeAlias = tuple[Float[Array, "b l d"], list[LayerCache] | None]
"""The states, and the caches of one period's layers for all repeats."""
PeriodBody = Callable[[Carry, Any, LayerInputs], tuple[Carry, tuple[LayerActivity, Any]]]
"""A function that applies the blocks of one period."""


class Stack(nnx.Module):
    """`layers` layers as repeats of the pattern. Weights have a leading axis over the repeats, which are scanned.

    With `shared_layers` that axis has one entry for each of `shared_groups`. With `like`, all weights but those of
    cross-attention are the other stack's.

    Attributes:
        first: the layers of `model.first`, as a stack whose period they are; None where there are none.
        config: the model.
        causal: tokens attend to earlier ones alone.
        period: the settings of the layers that repeat.
        repeats: number of times that they do.
        layers: the layers of a period, by number; each weight has the repeats as its first axis.
        positions: position encodings that all layers share.
        final_norm: normalises the output; None where the layers' norms are after the sublayers.
        passes: number of repeats that follow each other with the same weights.
        global_positions: positions of the queries relative to global tokens; None without those.
        mix: combines the input of the first layer and the outputs of all layers, `[layers + 1, batch, length, embed]`,
            to what takes the place of the last output; set by an adaptation method. None in a plain model.
        carried_states: the states of the mixers after the batch before, where rows continue those of that batch; after
            a call those after this one. None where every row begins with empty states.
    """

    def __init__(
        self,
        config: ModelConfig,
        layers: int,
        *,
        causal: bool,
        has_cross: bool = False,
        like: "Stack | None" = None,
        period: tuple[LayerConfig, ...] | None = None,
        rngs: nnx.Rngs,
    ) -> None:
        self.config = config
        self.causal = causal
        is_first = period is not None
        self.period = period or config.period
        self.repeats = 1 if is_first else config.count_repeats(layers)
        if config.first and not is_first:
            self.first: Stack | None = Stack(config, layers, causal=causal, period=config.first, rngs=rngs)
        else:
            self.first = None
        self.passes = 1
        if config.shared_layers:
            self.passes = self.repeats // config.shared_groups

        def create_period(key: PRNGKeyArray) -> nnx.Dict:
            period_rngs = nnx.Rngs(params=key)
            blocks = {}
            for number, layer in enumerate(self.period):
                blocks[str(number)] = Block(config, layer, has_cross=has_cross, rngs=period_rngs)
            return nnx.Dict(blocks)

        stored_repeats = self.repeats // self.passes
        self.layers = nnx.vmap(create_period)(jax.random.split(rngs.params(), stored_repeats))
        if not is_first:
            self.positions = Positions(config, "stack", rngs)
        has_global_tokens = any(isinstance(layer.attention, TransientGlobal) for layer in self.period)
        if has_global_tokens and not is_first:
            self.global_positions: Positions | None = Positions(config, "stack", rngs)
        else:
            self.global_positions = None
        if config.norm_place != "post" and not is_first:
            self.final_norm: Norm | None = Norm(config.norm, ("embed", config.embed))
        else:
            self.final_norm = None
        self.mix: Any = nnx.data(None)
        self.carried_states: list[LayerCache] | None = nnx.data(None)
        if like is not None:
            self.positions = like.positions
            self.final_norm = like.final_norm
            for number in self.layers:
                for name in SHARED_MODULES:
                    setattr(self.layers[number], name, getattr(like.layers[number], name))

    def attention_context(
        self, queries: TokenPositions, keys: TokenPositions, positions: Int[Array, "b l"], *, self_attention: bool
    ) -> AttentionContext:
        """Return the context of queries at `positions` that attend to keys."""
        offset_bias = self.positions.offset_bias(causal=self.causal)
        bias = None
        if offset_bias is not None:
            # Once for all layers that compute the whole matrix of scores.
            bias = offset_bias(offsets(queries, keys))
        global_bias = None
        if self.global_positions is not None:
            global_bias = self.global_positions.offset_bias(causal=self.causal)
        return AttentionContext(
            queries=queries,
            keys=keys,
            causal=self.causal,
            self_attention=self_attention,
            positions=positions,
            rotate=self.positions.rotate,
            offset_bias=offset_bias,
            bias=bias,
            stack_positions=self.positions,
            global_bias=global_bias,
        )

    def __call__(
        self,
        x: Float[Array, "b l d"],
        context: AttentionContext,
        encoder_output: EncoderOutput | None = None,
        cache: list[LayerCache] | None = None,
        cross_kv: list[KVCache] | None = None,
        key: PRNGKeyArray | None = None,
    ) -> tuple[Float[Array, "b l d"], list[LayerCache] | None]:
        """Apply all layers; see `Block.__call__`.

        Caches have one entry for each of the first layers and of the pattern, with an axis over the repeats.
        """
        is_carried = cache is None and self.carried_states is not None
        if is_carried:
            cache = self.carried_states
        outputs = [x[None]]
        first_cache: list[LayerCache] | None = None
        if self.first is not None:
            count = len(self.first.period)
            first_key = None
            if key is not None:
                key, first_key = jax.random.split(key)
            if cache is not None:
                first_cache = cache[:count]
                cache = cache[count:]
            x, first_cache, first_outputs = self.first.apply_layers(
                x, context, encoder_output, first_cache, key=first_key, collects=self.mix is not None
            )
            if first_outputs is not None:
                outputs.append(first_outputs)
        x, cache, layer_outputs = self.apply_layers(
            x, context, encoder_output, cache, cross_kv, key=key, collects=self.mix is not None
        )
        if layer_outputs is not None:
            x = self.mix(jnp.concatenate([*outputs, layer_outputs]))
        if first_cache is not None and cache is not None:
            cache = [*first_cache, *cache]
        if self.final_norm is not None:
            x = self.final_norm(x)
        if is_carried:
            self.carried_states = nnx.data(cache)
            return x, None
        return x, cache

    def apply_layers(
        self,
        x: Float[Array, "b l d"],
        context: AttentionContext,
        encoder_output: EncoderOutput | None = None,
        cache: list[LayerCache] | None = None,
        cross_kv: list[KVCache] | None = None,
        *,
        key: PRNGKeyArray | None = None,
        collects: bool = False,
    ) -> tuple[Float[Array, "b l d"], list[LayerCache] | None, Float[Array, "layers b l d"] | None]:
        """Apply the repeats of the period.

        Returns:
            The states, the updated cache, and the outputs of all of these layers if `collects` is true.
        """
        keys = None
        if key is not None:
            keys = jax.random.split(key, (self.repeats, len(self.period)))
        layer_outputs = None
        # The stages of a pipeline do not have the outputs of all layers together.
        if num_shards("layers") > 1 and cache is None and not collects:
            x, activity = self._run_pipelined(x, context, encoder_output, keys)
        else:
            inputs = LayerInputs(cross_kv=cross_kv, keys=keys)
            if cache is not None:
                inputs = replace(inputs, repeat=jnp.arange(self.repeats))
            body = self._period_body(context, encoder_output, collects=collects)
            # On a CPU, slicing one layer out of stacked weights copies it; unrolled layers are read in place.
            unrolled = cache is not None and target_platform() == "cpu"
            (x, cache), (activity, layer_outputs) = self._scan(body, (x, cache), inputs, unrolled=unrolled)
        if activity:
            self.activity = nnx.Intermediate(activity)
        if layer_outputs is not None:
            layer_outputs = layer_outputs.reshape(-1, *x.shape)
        return x, cache, layer_outputs

    def _period_body(
        self, context: AttentionContext, encoder_output: EncoderOutput | None, *, collects: bool = False
    ) -> PeriodBody:
        """Return a function that applies the blocks of one period."""
        period = len(self.period)

        def apply_period(
            carry: Carry, blocks: nnx.Dict, inputs: LayerInputs
        ) -> tuple[Carry, tuple[LayerActivity, Array | None]]:
            x, caches = carry
            updated_caches = []
            outputs = []
            activity = {}
            for n in range(period):
                cache = None
                if caches is not None:
                    assert inputs.repeat is not None
                    cache = _layer_of(caches[n], inputs.repeat)
                cross_kv = None if inputs.cross_kv is None else inputs.cross_kv[n]
                key = None if inputs.keys is None else inputs.keys[n]
                block = blocks[str(n)]
                x, cache = block(x, context, encoder_output, cache, cross_kv, key)
                x = name_layer_output(x)
                outputs.append(x)
                if cache is not None:
                    updated_caches.append(cache.layers)
                elif block.has_experts:
                    activity[str(n)] = block.feedforward.activity.get_value()
            layer_outputs = None
            if collects:
                layer_outputs = jnp.stack(outputs)
            return (x, updated_caches or None), (activity, layer_outputs)

        return apply_period

    def _scan(
        self,
        body: Callable[[Any, Any, Any], tuple[Any, Any]],
        carry: PyTree,
        inputs: PyTree,
        weights: PyTree | None = None,
        *,
        unrolled: bool = False,
    ) -> tuple[PyTree, PyTree]:
        """Apply `body(carry, blocks of one period, inputs of one repeat)` to every repeat, or to those of `weights`."""
        graph, all_weights = nnx.split(self.layers)
        if weights is None:
            weights = all_weights
        groups = len(jax.tree.leaves(weights)[0])
        passes = self.passes

        def apply_repeat(carry: PyTree, scanned: tuple[PyTree, PyTree]) -> tuple[PyTree, PyTree]:
            period_weights, period_inputs = scanned
            return body(carry, nnx.merge(graph, period_weights), period_inputs)

        def apply_group(carry: PyTree, scanned: tuple[PyTree, PyTree]) -> tuple[PyTree, PyTree]:
            group_weights, group_inputs = scanned

            def apply_pass(carry: PyTree, pass_inputs: PyTree) -> tuple[PyTree, PyTree]:
                return apply_repeat(carry, (group_weights, pass_inputs))

            apply_with_remat = rematerialised(apply_pass, self.config.remat)
            unroll = passes if unrolled else self.config.unroll or passes
            return jax.lax.scan(apply_with_remat, carry, group_inputs, length=passes, unroll=unroll)

        if passes == 1:
            unroll = groups if unrolled else self.config.unroll or groups
            body_with_remat = rematerialised(apply_repeat, self.config.remat)
            return jax.lax.scan(body_with_remat, carry, (weights, inputs), length=groups, unroll=unroll)
        grouped_inputs = jax.tree.map(lambda array: array.reshape(groups, passes, *array.shape[1:]), inputs)
        is_inlined = unrolled or groups == 1 or self.config.unroll == 0
        outer_unroll = groups if is_inlined else 1
        carry, outputs = jax.lax.scan(apply_group, carry, (weights, grouped_inputs), length=groups, unroll=outer_unroll)
        return carry, jax.tree.map(lambda array: array.reshape(groups * passes, *array.shape[2:]), outputs)

    def _run_pipelined(
        self,
        x: Float[Array, "b l d"],
        context: AttentionContext,
        encoder_output: EncoderOutput | None,
        keys: PRNGKeyArray | None,
    ) -> tuple[Float[Array, "b l d"], LayerActivity]:
        """Apply the layers in stages over the mesh axis `pipeline`; see `pipeline.run_pipeline`."""

        def run_stage(
            weights: PyTree, x: Float[Array, "b l d"], rows: RowInputs, keys: PRNGKeyArray | None
        ) -> tuple[Float[Array, "b l d"], LayerActivity]:
            body = self._period_body(*rows.select_rows(context, encoder_output))
            (x, _), (activity, _) = self._scan(body, (x, None), LayerInputs(keys=keys), weights)
            return x, activity

        weights = nnx.split(self.layers)[1]
        rows = RowInputs.of(context, encoder_output)
        return run_pipeline(run_stage, weights, x, rows, keys, self.config.pipeline_microbatches)

    def encoder_keys_values(self, encoder_output: EncoderOutput) -> list[KVCache]:
        """Return each layer's keys and values of an encoder's output, computed once for all tokens that are decoded."""
        context = AttentionContext(encoder_output.positions, encoder_output.positions, causal=False)

        def period_keys_values(carry: None, blocks: nnx.Dict, inputs: None) -> tuple[None, list[KVCache]]:
            caches = []
            for n in range(len(self.period)):
                cache = blocks[str(n)].cross_attention.keys_values(encoder_output.states, context)
                caches.append(cache.swap_length_and_heads())
            return None, caches

        _, caches = self._scan(period_keys_values, None, None)
        return caches

    def empty_cache(self, batch: int, length: int) -> list[LayerCache]:
        """Return a cache with room for `length` tokens, or an empty state, in every layer."""

        def repeat(array: Array) -> Array:
            return jnp.broadcast_to(array, (self.repeats, *array.shape))

        layers: list[LayerCache] = []
        for layer in self.period:
            if isinstance(layer.mixer, StateMixer):
                layers.append(empty_state(self.config, layer.mixer, batch))
            else:
                assert isinstance(layer.mixer, SelfAttention)
                sizes = layer.mixer.cache_sizes(self.config)
                layers.append(empty_cache(self.config, sizes, layer.attention, batch, length))
        first = [] if self.first is None else self.first.empty_cache(batch, length)
        return [*first, *jax.tree.map(repeat, layers)]


def _layer_of(layers: LayerCache, layer: Int[Array, ""]) -> CacheSlice | StateSlice:
    if isinstance(layers, KVCache):
        return CacheSlice(layers, layer)
    return StateSlice(layers, layer)
