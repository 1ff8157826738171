"""Stack: all layers of an encoder or decoder, with what they share: positions, the final norm, and carried states."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int, PRNGKeyArray

from t5x_lite.models.attention.cache import KVCache
from t5x_lite.models.attention.context import AttentionContext, TokenPositions, offsets
from t5x_lite.models.attention.kinds import TransientGlobal
from t5x_lite.models.block import EncoderOutput
from t5x_lite.models.config import ModelConfig
from t5x_lite.models.layers import Norm
from t5x_lite.models.positions.module import Positions
from t5x_lite.models.scanned_layers import LayerCache, ScannedLayers

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


class Stack(ScannedLayers):
    """`layers` layers: those of `model.first`, and repeats of the pattern.

    With `shared_layers` the weights of a repeat serve all repeats of its group, of `shared_groups`. With `shared_with`,
    all weights but those of cross-attention are the other stack's.

    Attributes:
        first: the layers of `model.first`, which do not repeat; None where there are none.
        causal: tokens attend to earlier ones alone.
        positions: position encodings that all layers share.
        global_positions: positions of the queries relative to global tokens; None without those.
        final_norm: normalises the output; None where the layers' norms are after the sublayers.
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
        shared_with: "Stack | None" = None,
        rngs: nnx.Rngs,
    ) -> None:
        self.causal = causal
        if config.first:
            self.first: ScannedLayers | None = ScannedLayers(config, config.first, repeats=1, rngs=rngs)
        else:
            self.first = None
        repeats = config.count_repeats(layers)
        passes = repeats // config.shared_groups if config.shared_layers else 1
        super().__init__(config, config.period, repeats, passes, has_cross=has_cross, rngs=rngs)
        self.positions = Positions(config, "stack", rngs)
        if any(isinstance(layer.attention, TransientGlobal) for layer in config.period):
            self.global_positions: Positions | None = Positions(config, "stack", rngs)
        else:
            self.global_positions = None
        if config.norm_place != "post":
            self.final_norm: Norm | None = Norm(config.norm, ("embed", config.embed))
        else:
            self.final_norm = None
        self.mix: Any = nnx.data(None)
        self.carried_states: list[LayerCache] | None = nnx.data(None)
        if shared_with is not None:
            self.positions = shared_with.positions
            self.final_norm = shared_with.final_norm
            for number in self.layers:
                for name in SHARED_MODULES:
                    setattr(self.layers[number], name, getattr(shared_with.layers[number], name))

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

    def empty_cache(self, batch: int, length: int) -> list[LayerCache]:
        """Return a cache with room for `length` tokens, or an empty state, in every layer."""
        first = [] if self.first is None else self.first.empty_cache(batch, length)
        return [*first, *super().empty_cache(batch, length)]
