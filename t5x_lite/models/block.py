"""Block: one layer of a Transformer."""

from collections.abc import Callable
from dataclasses import dataclass

import jax
from flax import nnx
from jaxtyping import Array, Float, PRNGKeyArray

from t5x_lite.models.attention.cache import CacheSlice, KVCache, update_cache
from t5x_lite.models.attention.context import AttentionContext, TokenPositions
from t5x_lite.models.attention.kinds import Dense, TransientGlobal
from t5x_lite.models.attention.latent import MultiHeadLatentAttention
from t5x_lite.models.attention.layer import Attention
from t5x_lite.models.attention.memory import attend_with_memory
from t5x_lite.models.attention.transient_global import TransientGlobalAttention
from t5x_lite.models.attention.two_stream import attend_in_two_streams
from t5x_lite.models.config import ModelConfig
from t5x_lite.models.experts.config import MoE
from t5x_lite.models.experts.layer import MixtureOfExperts
from t5x_lite.models.feedforward.config import NoFeedForward
from t5x_lite.models.feedforward.layer import FeedForward
from t5x_lite.models.layer_config import LayerConfig
from t5x_lite.models.layers import Linear, Norm, dropout
from t5x_lite.models.mixers import LatentAttention, StateMixer
from t5x_lite.models.mixers.module import MixerModule, StateSlice
from t5x_lite.models.normalization import NoNorm

Sublayer = Callable[[Float[Array, "b l d"]], Float[Array, "b l d"]]


@dataclass(frozen=True)
class Residual:
    """The residual connection around a sublayer, and the place of the sublayer's norm.

    Attributes:
        norms_input: the sublayer reads normalised states.
        norms_sum: the norm is that of the sum.
        norms_output: the norm is that of the sublayer's output.
        adds_input: the states are added to the output.
    """

    norms_input: bool = False
    norms_sum: bool = False
    norms_output: bool = False
    adds_input: bool = True

    def read(self, x: Float[Array, "b l d"], norm: Norm) -> Float[Array, "b l d"]:
        """Return the input of the sublayer."""
        return norm(x) if self.norms_input else x

    def write(self, x: Float[Array, "b l d"], y: Float[Array, "b l d"], norm: Norm) -> Float[Array, "b l d"]:
        """Return the states after the sublayer, whose output is `y`."""
        if self.norms_output:
            y = norm(y)
        if self.adds_input:
            y = x + y
        return norm(y) if self.norms_sum else y


RESIDUALS = {
    "pre": Residual(norms_input=True),
    "post": Residual(norms_sum=True),
    "sublayer": Residual(norms_output=True),
    "sandwich": Residual(norms_input=True),
}
"""Ways to combine a sublayer, its norm and the residual stream, by `model.norm_place`."""
WITHOUT_RESIDUAL = Residual(norms_input=True, adds_input=False)


def _identity(y: Float[Array, "b l d"]) -> Float[Array, "b l d"]:
    """Return the output of a sublayer that is added to the states together with that of the other one."""
    return y


def _output_norm(config: ModelConfig) -> Norm | None:
    """Return a norm for a sublayer's output; None where its input alone has one."""
    if config.norm_place != "sandwich":
        return None
    return Norm(config.norm, ("embed", config.embed))


def self_attention(
    attention: Attention | MultiHeadLatentAttention,
    y: Float[Array, "b l d"],
    context: AttentionContext,
    cache: CacheSlice | StateSlice | None,
    key: PRNGKeyArray | None,
) -> tuple[Float[Array, "b l d"], CacheSlice | StateSlice | None]:
    """Attend to the tokens of a row, and to those in a cache once their own keys are in it, or in a memory."""
    if context.query_stream is not None:
        return attend_in_two_streams(attention, y, context, key), cache
    if isinstance(cache, StateSlice):
        return attend_with_memory(attention, y, context, cache, key)
    source = attention.keys_values(y, context)
    if cache is not None:
        source, context, cache = update_cache(cache, source, context)
    return attention(y, source, context, key), cache


def _create_attention(config: ModelConfig, layer: LayerConfig, rngs: nnx.Rngs) -> Attention | MultiHeadLatentAttention:
    if isinstance(layer.mixer, LatentAttention):
        return MultiHeadLatentAttention(config, layer.mixer, layer.attention, positions=layer.positions, rngs=rngs)
    if isinstance(layer.attention, TransientGlobal):
        return TransientGlobalAttention(config, layer.attention, rngs=rngs)
    return Attention(config, layer.attention, positions=layer.positions, rngs=rngs)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class EncoderOutput:
    """The input of cross-attention: an encoder's states and their positions.

    In decoding `states` are None: each layer has their keys and values.
    """

    positions: TokenPositions
    states: Float[Array, "b m d"] | None = None


class Block(nnx.Module):
    """A sequence mixer, cross-attention after an encoder, a feed-forward, each with a norm and a residual connection.

    With sandwich norms each sublayer has two: before it, and on its output (Ding et al. 2021, §2.2; Gemma 2). Parallel
    sublayers have the same input, the residual stream, and perhaps the same norm of it (Black et al. 2022, §2.1).

    Attributes:
        attention: the mixer, if it is self-attention; else None, and `mixer` is.
        attention_norm: the norm of the mixer, of whatever kind that is.
        adapters: modules that an adaptation method has added after sublayers, by the name of the sublayer
            (`attention`, `feedforward`); None in a plain model.
    """

    def __init__(self, config: ModelConfig, layer: LayerConfig, *, has_cross: bool, rngs: nnx.Rngs) -> None:
        embed = ("embed", config.embed)
        has_residual = config.residual and layer.residual
        self.residual = RESIDUALS[config.norm_place] if has_residual else WITHOUT_RESIDUAL
        self.dropout = config.dropout
        self.dropout_axis = 1 if config.variational_dropout else None
        self.is_parallel = config.sublayers != "sequential"
        self.attention_norm = Norm(config.norm if layer.norm else NoNorm(), embed)
        if isinstance(layer.mixer, StateMixer):
            self.attention: Attention | MultiHeadLatentAttention | None = None
            self.mixer: MixerModule | None = MixerModule(config, layer.mixer, rngs=rngs)
        else:
            self.attention = _create_attention(config, layer, rngs)
            self.mixer = None
        settings = config.feedforward_of(layer)
        self.feedforward: MixtureOfExperts | FeedForward | None
        if config.sublayers == "parallel_shared_norm" or isinstance(settings, NoFeedForward):
            self.feedforward_norm: Norm | None = None
        else:
            self.feedforward_norm = Norm(config.norm, embed)
        if isinstance(settings, NoFeedForward):
            self.feedforward = None
        elif isinstance(settings, MoE):
            self.feedforward = MixtureOfExperts(config, settings, rngs=rngs)
        else:
            self.feedforward = FeedForward(config, settings, config.mlp, rngs=rngs)
        self.has_experts = isinstance(settings, MoE)
        self.adapters: nnx.Dict | None = nnx.data(None)
        self.attention_output_norm = _output_norm(config)
        self.feedforward_output_norm = None if self.feedforward is None else _output_norm(config)
        if has_cross:
            self.cross_norm: Norm | None = Norm(config.norm, embed)
            self.cross_output_norm = _output_norm(config)
            self.cross_attention: Attention | None = Attention(config, Dense(), is_cross=True, rngs=rngs)
        else:
            self.cross_norm = None
            self.cross_output_norm = None
            self.cross_attention = None

    def __call__(
        self,
        x: Float[Array, "b l d"],
        context: AttentionContext,
        encoder_output: EncoderOutput | None = None,
        cache: CacheSlice | StateSlice | None = None,
        cross_kv: KVCache | None = None,
        key: PRNGKeyArray | None = None,
    ) -> tuple[Float[Array, "b l d"], CacheSlice | StateSlice | None]:
        """Apply the layer.

        Args:
            x: states of the tokens.
            context: which tokens they attend to: of their row, or of the cache once their own keys are in it.
            encoder_output: what cross-attention attends to.
            cache: keys and values of earlier tokens, or the state of another mixer after them, in decoding; or the
                memory of attention.
            cross_kv: keys and values of the encoder's output, stored heads-first, where they are known.
            key: turns dropout on.

        Returns:
            The states after the layer, and the updated cache.
        """
        keys: list[PRNGKeyArray | None] = [None] * 6
        if key is not None:
            keys = list(jax.random.split(key, 6))
            self._seed_adapters(jax.random.fold_in(key, 6))
        updated_cache = cache

        def mix(y: Float[Array, "b l d"]) -> Float[Array, "b l d"]:
            nonlocal updated_cache
            if self.attention is not None:
                y, updated_cache = self_attention(self.attention, y, context, cache, keys[0])
            else:
                assert self.mixer is not None
                assert not isinstance(cache, CacheSlice)
                y, updated_cache = self.mixer(y, context.queries.segment_ids, cache, keys[0])
            if self.attention_output_norm is not None:
                y = self.attention_output_norm(y)
            return self._drop(y, keys[1])

        def cross_attention(y: Float[Array, "b l d"]) -> Float[Array, "b l d"]:
            assert self.cross_attention is not None
            assert encoder_output is not None
            cross_context = AttentionContext(context.queries, encoder_output.positions, causal=False)
            if cross_kv is not None:
                source = cross_kv.swap_length_and_heads()
            else:
                assert encoder_output.states is not None
                source = self.cross_attention.keys_values(encoder_output.states, cross_context)
            y = self.cross_attention(y, source, cross_context, keys[2])
            if self.cross_output_norm is not None:
                y = self.cross_output_norm(y)
            return self._drop(y, keys[3])

        def feed_forward(y: Float[Array, "b l d"]) -> Float[Array, "b l d"]:
            if isinstance(self.feedforward, MixtureOfExperts):
                y = self.feedforward(y, context.queries.segment_ids > 0, keys[4])
            elif self.feedforward is not None:
                y = self.feedforward(y, keys[4])
            if self.feedforward_output_norm is not None:
                y = self.feedforward_output_norm(y)
            return self._drop(y, keys[5])

        if self.is_parallel:
            x = self._apply_in_parallel(x, mix, feed_forward)
            return x, updated_cache
        x = self._apply("attention", x, self.attention_norm, mix)
        if self.cross_norm is not None:
            x = self._apply("cross_attention", x, self.cross_norm, cross_attention)
        if self.feedforward_norm is not None:
            x = self._apply("feedforward", x, self.feedforward_norm, feed_forward)
        return x, updated_cache

    def _apply(self, name: str, x: Float[Array, "b l d"], norm: Norm, sublayer: Sublayer) -> Float[Array, "b l d"]:
        """Return the states after a sublayer, its adapter and its norm."""

        def write(y: Float[Array, "b l d"]) -> Float[Array, "b l d"]:
            return self.residual.write(x, y, norm)

        return self._adapt(name, sublayer(self.residual.read(x, norm)), write)

    def _apply_in_parallel(
        self, x: Float[Array, "b l d"], mix: Sublayer, feed_forward: Sublayer
    ) -> Float[Array, "b l d"]:
        """Add the outputs of both sublayers, computed from the same input."""
        mixer_input = self.attention_norm(x)
        mixed = self._adapt("attention", mix(mixer_input), _identity)
        if self.feedforward is None:
            return x + mixed
        feedforward_input = mixer_input
        if self.feedforward_norm is not None:
            feedforward_input = self.feedforward_norm(x)
        return x + mixed + self._adapt("feedforward", feed_forward(feedforward_input), _identity)

    def _seed_adapters(self, key: PRNGKeyArray) -> None:
        """Give the adapters of linear layers keys for dropout, for one call."""
        linears = [module for _, module in nnx.iter_modules(self) if isinstance(module, Linear)]
        for number, linear in enumerate(linears):
            if linear.adapter is not None:
                linear.adapter.dropout_key = jax.random.fold_in(key, number)

    def _drop(self, y: Float[Array, "b l d"], key: PRNGKeyArray | None) -> Float[Array, "b l d"]:
        return dropout(y, self.dropout, key, shared_axis=self.dropout_axis)

    def _adapt(self, sublayer: str, y: Float[Array, "b l d"], write: Sublayer) -> Float[Array, "b l d"]:
        """Return `write` of a sublayer's output, or what an adapter makes of both."""
        if self.adapters is None or sublayer not in self.adapters:
            return write(y)
        return self.adapters[sublayer](y, write)
