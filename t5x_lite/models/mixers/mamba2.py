"""Mamba-2: a selective state space with a scalar decay per head, in chunks (Dao & Gu 2024)."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from jaxtyping import Bool, Float

from t5x_lite.arrays import Array
from t5x_lite.models.mixers.mixer import MixerState, StateMixer
from t5x_lite.schema import Int, setting

if TYPE_CHECKING:
    from flax import nnx
    from jaxtyping import PRNGKeyArray

    from t5x_lite.models.config import ModelConfig
    from t5x_lite.models.mixers.module import MixerModule

INITIAL_RATES = (1.0, 16.0)
"""Range of the initial decay rates (Dao & Gu 2024, code: A_init_range)."""


@dataclass(frozen=True)
class StateSpaceInputs:
    """The inputs of a state space. Letters: h heads, k channels of a head, n groups of heads, s channels of a state.

    Attributes:
        value: what enters the state, X·Δ.
        log_decay: logarithm of the share of the state that remains, A·Δ.
        key: the direction in which it enters, B; alike for all heads of a group.
        query: the direction that is read, C.
        continues: see `StateMixer.mix`.
    """

    value: Float[Array, "b l h k"]
    log_decay: Float[Array, "b l h"]
    key: Float[Array, "b l n s"]
    query: Float[Array, "b l n s"]
    continues: Bool[Array, "b l"]


class Mamba2(StateMixer):
    """S = exp(A·Δ)·S + Δ·x Bᵀ and y = S C + D·x, gated and normalised (Dao & Gu 2024, §7.1, figure 6)."""

    has_bias: ClassVar[bool] = True

    expand: Int = setting(2, "channels of all heads, in multiples of `model.embed`", ge=1)
    head_dim: Int = setting(64, "channels of a head", ge=1)
    state: Int = setting(128, "channels of the state, for each channel of a head", ge=1)
    groups: Int = setting(1, "groups of heads that share B and C", ge=1)
    taps: Int = setting(4, "tokens that the convolutions read", ge=1)
    chunk: Int = setting(256, "tokens between which work is a matrix product", unit="tokens", ge=1)
    epsilon: float = setting(1e-5, "added to the mean square of the gated output", gt=0)

    def heads(self, model: "ModelConfig") -> int:
        """Return the number of heads."""
        return self.expand * model.embed // self.head_dim

    def init_parameters(self, model: "ModelConfig", rngs: "nnx.Rngs") -> "dict[str, nnx.Module | nnx.Param]":
        """Return the maps into the state space, their convolutions, A, Δ's bias, D, the norm's scale and the output."""
        import jax.numpy as jnp

        from t5x_lite.models.layers import Linear, weight
        from t5x_lite.models.mixers.convolution import CausalConvolution
        from t5x_lite.models.mixers.scalar_decay import initial_log_rate, initial_step_bias

        heads = self.heads(model)
        embed = ("embed", model.embed)
        channels = [("heads", heads), ("head_dim", self.head_dim)]
        states = [("kv_heads", self.groups), ("state", self.state)]
        step_bias = initial_step_bias(heads, rngs)
        log_rate = initial_log_rate(heads, INITIAL_RATES, rngs)
        return {
            "gate": Linear(model, [embed], channels, rngs=rngs),
            "value": Linear(model, [embed], channels, rngs=rngs),
            "key": Linear(model, [embed], states, rngs=rngs),
            "query": Linear(model, [embed], states, rngs=rngs),
            "step": Linear(model, [embed], [("heads", heads)], bias=False, rngs=rngs),
            "step_bias": weight(step_bias, ("heads",)),
            "value_convolution": CausalConvolution(self.taps, channels, rngs),
            "key_convolution": CausalConvolution(self.taps, states, rngs),
            "query_convolution": CausalConvolution(self.taps, states, rngs),
            "log_rate": weight(log_rate, ("heads",)),
            "skip": weight(jnp.ones(heads, jnp.float32), ("heads",)),
            "scale": weight(jnp.ones((heads, self.head_dim), jnp.float32), ("heads", "head_dim")),
            "out": Linear(model, channels, [embed], residual=True, rngs=rngs),
        }

    def empty_state(self, model: "ModelConfig", batch: int) -> MixerState:
        """Return zeros for the state space and for the inputs of the convolutions."""
        import jax.numpy as jnp

        heads = self.heads(model)
        history = self.taps - 1
        return {
            "state": jnp.zeros((batch, heads, self.head_dim, self.state), jnp.float32),
            "values": jnp.zeros((batch, history, heads, self.head_dim), model.compute),
            "keys": jnp.zeros((batch, history, self.groups, self.state), model.compute),
            "queries": jnp.zeros((batch, history, self.groups, self.state), model.compute),
        }

    def mix(
        self,
        parameters: "MixerModule",
        x: Float[Array, "b l d"],
        continues: Bool[Array, "b l"],
        state: MixerState,
        key: "PRNGKeyArray | None",
    ) -> tuple[Float[Array, "b l d"], MixerState]:
        """Convolve, run the state space in chunks, and gate and normalise what it returns."""
        import jax
        import jax.numpy as jnp

        value, values = parameters.value_convolution(parameters.value(x), continues, state["values"])
        in_key, keys = parameters.key_convolution(parameters.key(x), continues, state["keys"])
        query, queries = parameters.query_convolution(parameters.query(x), continues, state["queries"])
        step = jax.nn.softplus(parameters.step(x).astype(jnp.float32) + parameters.step_bias[...])
        value = jax.nn.silu(value).astype(jnp.float32)
        inputs = StateSpaceInputs(
            value=value * step[..., None],
            log_decay=-jnp.exp(parameters.log_rate[...]) * step,
            key=jax.nn.silu(in_key).astype(jnp.float32),
            query=jax.nn.silu(query).astype(jnp.float32),
            continues=continues,
        )
        y, space = state_space(inputs, state["state"], self.chunk)
        y = y + parameters.skip[...][:, None] * value
        y = self._normalise(y * jax.nn.silu(parameters.gate(x).astype(jnp.float32))) * parameters.scale[...]
        new_state = {"state": space, "values": values, "keys": keys, "queries": queries}
        return parameters.out(y.astype(x.dtype)), new_state

    def _normalise(self, y: Float[Array, "b l h k"]) -> Float[Array, "b l h k"]:
        """Divide the channels of each group by the root of their mean square."""
        import jax
        import jax.numpy as jnp

        grouped = y.reshape(*y.shape[:2], self.groups, -1)
        mean_square = jnp.square(grouped).mean(-1, keepdims=True)
        return (grouped * jax.lax.rsqrt(mean_square + self.epsilon)).reshape(y.shape)

    def scan_flops(self, model: "ModelConfig") -> float:
        """Return the FLOPs of the chunks' scores and values, half of them masked, of their states and the filters."""
        channels = self.heads(model) * self.head_dim
        states = self.groups * self.state
        in_chunk = self.chunk * (states + channels)
        between_chunks = 4.0 * channels * self.state
        return in_chunk + between_chunks + 2.0 * self.taps * (channels + 2 * states)

    def model_problems(self, model: "ModelConfig") -> Iterator[str]:
        """Yield heads that do not divide the width, and groups that do not divide the heads."""
        if self.expand * model.embed % self.head_dim:
            yield f"mamba2: {self.expand} · embed {model.embed} is not a multiple of head_dim {self.head_dim}"
        elif self.heads(model) % self.groups:
            yield f"mamba2: {self.heads(model)} heads are not a multiple of {self.groups} groups"


def state_space(
    inputs: StateSpaceInputs, state: Float[Array, "b h k s"], chunk: int
) -> tuple[Float[Array, "b l h k"], Float[Array, "b h k s"]]:
    """Return what is read from a state space at every token, and the state after the last (Dao & Gu 2024, §6).

    Within a chunk the output is a masked product of queries, keys and values; a state passes from chunk to chunk.
    """
    import jax
    import jax.numpy as jnp

    from t5x_lite.models.mixers.chunks import split_chunks

    batch, length, heads, _ = inputs.value.shape
    groups = inputs.key.shape[2]
    chunk = min(chunk, length)
    documents = jnp.cumsum(~inputs.continues, axis=1)

    def by_group(array: Array) -> Array:
        """Return an array over heads with an axis over groups before that over the heads of a group."""
        return array.reshape(*array.shape[:2], groups, heads // groups, *array.shape[3:])

    is_past = jnp.tril(jnp.ones((chunk, chunk), bool))

    def run_chunk(carry: tuple[Array, Array], chunk_inputs: tuple[Array, ...]) -> tuple[tuple[Array, Array], Array]:
        state, last_document = carry
        value, log_decay, key, query, document = chunk_inputs
        total = jnp.cumsum(log_decay, axis=1)
        is_visible = is_past & (document[:, :, None] == document[:, None, :])
        log_weights = total[:, :, None] - total[:, None, :]
        weights = jnp.exp(jnp.where(is_visible[..., None], log_weights, -jnp.inf))
        weights = weights.reshape(*weights.shape[:3], groups, -1)
        scores = jnp.einsum("blns,bmns->blmn", query, key)[..., None] * weights
        y = jnp.einsum("blmnh,bmnhk->blnhk", scores, by_group(value))
        from_state = jnp.exp(total) * (document == last_document[:, None])[..., None]
        states = state.reshape(batch, groups, -1, *state.shape[2:])
        y = y + jnp.einsum("blns,bnhks->blnhk", query, states) * by_group(from_state)[..., None]
        end = document[:, -1:]
        to_state = jnp.exp(total[:, -1:] - total) * (document == end)[..., None]
        entering = jnp.einsum("bmnhk,bmns->bnhks", by_group(value * to_state[..., None]), key)
        state = state * from_state[:, -1][..., None, None] + entering.reshape(state.shape)
        return (state, end[:, 0]), y.reshape(value.shape)

    arrays = (inputs.value, inputs.log_decay, inputs.key, inputs.query)
    chunks = tuple(split_chunks(array, chunk) for array in arrays)
    no_document = jnp.zeros(batch, documents.dtype)
    document_chunks = split_chunks(documents, chunk, mode="edge")
    (state, _), y = jax.lax.scan(run_chunk, (state, no_document), (*chunks, document_chunks))
    y = jnp.moveaxis(y, 0, 1).reshape(batch, -1, *inputs.value.shape[2:])
    return y[:, :length], state
