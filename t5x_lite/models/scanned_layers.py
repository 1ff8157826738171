"""ScannedLayers: repeats of a pattern of layers, whose weights are stacked in memory and scanned."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int, PRNGKeyArray, PyTree

from t5x_lite.models.attention.cache import CacheSlice, KVCache, empty_cache
from t5x_lite.models.attention.context import AttentionContext
from t5x_lite.models.block import Block, EncoderOutput
from t5x_lite.models.config import ModelConfig
from t5x_lite.models.experts.activity import RouterActivity
from t5x_lite.models.layer_config import LayerConfig
from t5x_lite.models.mixers import SelfAttention, StateMixer
from t5x_lite.models.mixers.mixer import MixerState
from t5x_lite.models.mixers.module import StateSlice, empty_state
from t5x_lite.models.pipeline import run_pipeline
from t5x_lite.models.remat import name_layer_output, rematerialised
from t5x_lite.models.row_inputs import RowInputs
from t5x_lite.models.sharding import num_shards, target_platform

LayerActivity: TypeAlias = dict[str, RouterActivity]
"""Sums over the choices of the routers of one period, by the number of the layer in the pattern."""
LayerCache: TypeAlias = KVCache | MixerState
"""The state of decoding of one layer: keys and values, or that of another mixer."""


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


class ScannedLayers(nnx.Module):
    """Repeats of a period of layers. Weights have a leading axis over the repeats, which are scanned.

    Attributes:
        config: the model.
        period: the settings of the layers that repeat.
        repeats: number of times that they do.
        passes: number of repeats that follow each other with the same weights.
        layers: the layers of a period, by number; each weight has an axis of `repeats / passes` in front.
    """

    def __init__(
        self,
        config: ModelConfig,
        period: tuple[LayerConfig, ...],
        repeats: int,
        passes: int = 1,
        *,
        has_cross: bool = False,
        rngs: nnx.Rngs,
    ) -> None:
        self.config = config
        self.period = period
        self.repeats = repeats
        self.passes = passes

        def create_period(key: PRNGKeyArray) -> nnx.Dict:
            period_rngs = nnx.Rngs(params=key)
            blocks = {}
            for number, layer in enumerate(period):
                blocks[str(number)] = Block(config, layer, has_cross=has_cross, rngs=period_rngs)
            return nnx.Dict(blocks)

        self.layers = nnx.vmap(create_period)(jax.random.split(rngs.params(), repeats // passes))

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
        return jax.tree.map(repeat, layers)


def _layer_of(layers: LayerCache, layer: Int[Array, ""]) -> CacheSlice | StateSlice:
    if isinstance(layers, KVCache):
        return CacheSlice(layers, layer)
    return StateSlice(layers, layer)
