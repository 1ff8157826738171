"""Gated DeltaNet: the delta rule on a state that decays, in chunks by the WY representation (Yang et al. 2025).

Letters: n key heads, r heads of values for each key head, h = n·r, k channels of a key, j channels of a value,
c chunks, l and m tokens of a row or of a chunk.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from jaxtyping import Bool, Float, Int

from t5x_lite.arrays import Array
from t5x_lite.models.mixers.mixer import MixerState, StateMixer
from t5x_lite.schema import Int as IntSetting
from t5x_lite.schema import setting

if TYPE_CHECKING:
    from flax import nnx
    from jaxtyping import PRNGKeyArray

    from t5x_lite.models.config import ModelConfig
    from t5x_lite.models.mixers.module import MixerModule

INITIAL_RATES = (0.01, 16.0)
"""Range of the initial decay rates (transformers: qwen3_next; Yang et al. 2025, code, begins at 0)."""
LENGTH_EPSILON = 1e-6
"""Added to the squared length by which queries and keys are divided (Yang et al. 2025, code: l2norm)."""


@dataclass(frozen=True)
class DeltaRuleInputs:
    """The inputs of the gated delta rule, S = α·S·(I - β·k kᵀ) + β·v kᵀ and y = S q.

    Attributes:
        query: the direction that is read, q.
        key: the direction that is written, k, of length 1.
        value: what the state is to return for the key, v.
        log_decay: logarithm of the share of the state that remains, α.
        strength: share of the way from what the state returns for the key to the value, β.
        continues: see `StateMixer.mix`.
    """

    query: Float[Array, "b l n k"]
    key: Float[Array, "b l n k"]
    value: Float[Array, "b l h j"]
    log_decay: Float[Array, "b l h"]
    strength: Float[Array, "b l h"]
    continues: Bool[Array, "b l"]


class Chunks(NamedTuple):
    """The operands of the recurrence over chunks.

    Attributes:
        query, key: those of the tokens.
        value: what the tokens write if the state before the chunk is empty, U of the WY representation.
        erased_key: the directions in which they take from it what that state returns, W.
        scores: products of queries and keys, decayed; zero for later tokens and other documents.
        from_state: share of the state before the chunk that is left at a token.
        to_state: share of what a token writes that is left after the chunk.
    """

    query: Float[Array, "c b n l k"]
    key: Float[Array, "c b n l k"]
    value: Float[Array, "c b n r l j"]
    erased_key: Float[Array, "c b n r l k"]
    scores: Float[Array, "c b n r l m"]
    from_state: Float[Array, "c b n r l"]
    to_state: Float[Array, "c b n r l"]


class GatedDeltaNet(StateMixer):
    """The gated delta rule behind short convolutions, normalised and gated (Yang et al. 2025, §3).

    The state of a head maps keys to values. A token replaces a share β of what the state returns for its key by its
    value; before that, a share α of the state is kept.
    """

    heads: IntSetting | None = setting(None, "heads of values; null takes `model.heads`", ge=1)
    key_heads: IntSetting | None = setting(None, "heads of queries and keys; null takes `heads`", ge=1)
    key_dim: IntSetting | None = setting(None, "width of a query and a key; null takes `model.head_dim`", ge=1)
    value_dim: IntSetting | None = setting(None, "width of a value; null takes twice `key_dim`", ge=1)
    taps: IntSetting = setting(4, "tokens that the convolutions read", ge=1)
    chunk: IntSetting = setting(64, "tokens between which work is a matrix product", unit="tokens", ge=1)
    epsilon: float = setting(1e-6, "added to the mean square of a head's output", gt=0)

    def sizes(self, model: "ModelConfig") -> tuple[int, int, int, int]:
        """Return the numbers of heads of keys and of values, and the widths of a key and of a value."""
        heads = self.heads or model.heads
        key_dim = self.key_dim or model.head_dim
        return self.key_heads or heads, heads, key_dim, self.value_dim or 2 * key_dim

    def resolve(self, model: "ModelConfig") -> "GatedDeltaNet":
        """Return the mixer with its numbers of heads and their widths."""
        key_heads, heads, key_dim, value_dim = self.sizes(model)
        update = {"heads": heads, "key_heads": key_heads, "key_dim": key_dim, "value_dim": value_dim}
        return self.model_copy(update=update)

    def init_parameters(self, model: "ModelConfig", rngs: "nnx.Rngs") -> "dict[str, nnx.Module | nnx.Param]":
        """Return the maps into the delta rule, their convolutions, the decay, the norm and the output."""
        from t5x_lite.models.layers import Linear, Norm, weight
        from t5x_lite.models.mixers.convolution import CausalConvolution
        from t5x_lite.models.mixers.scalar_decay import initial_log_rate, initial_step_bias
        from t5x_lite.models.normalization import RMSNorm

        key_heads, heads, key_dim, value_dim = self.sizes(model)
        embed = ("embed", model.embed)
        keys = [("kv_heads", key_heads), ("head_dim", key_dim)]
        values = [("heads", heads), ("head_dim", value_dim)]

        def project(outputs: list[tuple[str, int]]) -> Linear:
            return Linear(model, [embed], outputs, bias=False, rngs=rngs)

        return {
            "query": project(keys),
            "key": project(keys),
            "value": project(values),
            "gate": project(values),
            "step": project([("heads", heads)]),
            "strength": project([("heads", heads)]),
            "query_convolution": CausalConvolution(self.taps, keys, rngs, bias=False),
            "key_convolution": CausalConvolution(self.taps, keys, rngs, bias=False),
            "value_convolution": CausalConvolution(self.taps, values, rngs, bias=False),
            "step_bias": weight(initial_step_bias(heads, rngs), ("heads",)),
            "log_rate": weight(initial_log_rate(heads, INITIAL_RATES, rngs), ("heads",)),
            "norm": Norm(RMSNorm(epsilon=self.epsilon), ("head_dim", value_dim)),
            "out": Linear(model, values, [embed], bias=False, residual=True, rngs=rngs),
        }

    def empty_state(self, model: "ModelConfig", batch: int) -> MixerState:
        """Return zeros for the state of the delta rule and for the inputs of the convolutions."""
        import jax.numpy as jnp

        key_heads, heads, key_dim, value_dim = self.sizes(model)
        history = self.taps - 1
        return {
            "state": jnp.zeros((batch, heads, value_dim, key_dim), jnp.float32),
            "queries": jnp.zeros((batch, history, key_heads, key_dim), model.compute),
            "keys": jnp.zeros((batch, history, key_heads, key_dim), model.compute),
            "values": jnp.zeros((batch, history, heads, value_dim), model.compute),
        }

    def mix(
        self,
        parameters: "MixerModule",
        x: Float[Array, "b l d"],
        continues: Bool[Array, "b l"],
        state: MixerState,
        key: "PRNGKeyArray | None",
    ) -> tuple[Float[Array, "b l d"], MixerState]:
        """Convolve, run the delta rule in chunks, and normalise and gate what it returns."""
        import jax
        import jax.numpy as jnp

        query, queries = parameters.query_convolution(parameters.query(x), continues, state["queries"])
        written_key, keys = parameters.key_convolution(parameters.key(x), continues, state["keys"])
        value, values = parameters.value_convolution(parameters.value(x), continues, state["values"])
        step = jax.nn.softplus(parameters.step(x).astype(jnp.float32) + parameters.step_bias[...])
        inputs = DeltaRuleInputs(
            query=_of_unit_length(jax.nn.silu(query)) * query.shape[-1] ** -0.5,
            key=_of_unit_length(jax.nn.silu(written_key)),
            value=jax.nn.silu(value).astype(jnp.float32),
            log_decay=-jnp.exp(parameters.log_rate[...]) * step,
            strength=jax.nn.sigmoid(parameters.strength(x).astype(jnp.float32)),
            continues=continues,
        )
        y, memory = gated_delta_rule(inputs, state["state"], self.chunk)
        y = parameters.norm(y) * jax.nn.silu(parameters.gate(x).astype(jnp.float32))
        new_state = {"state": memory, "queries": queries, "keys": keys, "values": values}
        return parameters.out(y.astype(x.dtype)), new_state

    def scan_flops(self, model: "ModelConfig") -> float:
        """Return the FLOPs of the chunks' products, half of them masked, of their states and of the filters."""
        key_heads, heads, key_dim, value_dim = self.sizes(model)
        scores = 2 * key_heads * key_dim
        solution = heads * (key_dim + value_dim)
        in_chunk = self.chunk * (scores + solution + heads * value_dim)
        between_chunks = 6.0 * heads * key_dim * value_dim
        return in_chunk + between_chunks + 2.0 * self.taps * (2 * key_heads * key_dim + heads * value_dim)

    def model_problems(self, model: "ModelConfig") -> Iterator[str]:
        """Yield heads of values that the heads of keys do not divide."""
        key_heads, heads, _, _ = self.sizes(model)
        if heads % key_heads:
            yield f"gated_deltanet: {heads} heads of values are not a multiple of {key_heads} heads of keys"


def _of_unit_length(x: Float[Array, "b l n k"]) -> Float[Array, "b l n k"]:
    """Divide queries or keys by their lengths."""
    import jax
    import jax.numpy as jnp

    x = x.astype(jnp.float32)
    return x * jax.lax.rsqrt(jnp.square(x).sum(-1, keepdims=True) + LENGTH_EPSILON)


def gated_delta_rule(
    inputs: DeltaRuleInputs, state: Float[Array, "b h j k"], chunk: int
) -> tuple[Float[Array, "b l h j"], Float[Array, "b h j k"]]:
    """Return what is read from the state at every token, and the state after the last (Yang et al. 2025, §3.3).

    A chunk of one token, as in decoding, is the step of the definition.
    """
    import jax
    import jax.numpy as jnp

    batch, length, heads, value_dim = inputs.value.shape
    key_heads = inputs.key.shape[2]
    chunks = _solve_chunks(inputs, min(chunk, length))

    def run_chunk(state: Array, chunk: Chunks) -> tuple[Array, Array]:
        written = chunk.value - jnp.einsum("bnrlk,bnrjk->bnrlj", chunk.erased_key, state)
        read = jnp.einsum("bnlk,bnrjk->bnrlj", chunk.query, state) * chunk.from_state[..., None]
        y = read + jnp.einsum("bnrlm,bnrmj->bnrlj", chunk.scores, written)
        entering = jnp.einsum("bnrmj,bnmk->bnrjk", written * chunk.to_state[..., None], chunk.key)
        return state * chunk.from_state[..., -1, None, None] + entering, y

    grouped = state.reshape(batch, key_heads, heads // key_heads, *state.shape[2:])
    grouped, y = jax.lax.scan(run_chunk, grouped, chunks)
    y = jnp.moveaxis(y, (1, 0, 4), (0, 1, 2)).reshape(batch, -1, heads, value_dim)
    return y[:, :length], grouped.reshape(state.shape)


def _solve_chunks(inputs: DeltaRuleInputs, chunk: int) -> Chunks:
    """Return all chunks, within each of which tokens overwrite what those before them have written."""
    import jax
    import jax.numpy as jnp

    from t5x_lite.models.mixers.chunks import split_chunks

    heads = inputs.value.shape[2]
    key_heads = inputs.key.shape[2]

    def by_head(array: Array) -> Array:
        """Return an array `[b, l, h, …]` as `[c, b, n, r, l, …]`."""
        split = split_chunks(array, chunk)
        split = split.reshape(*split.shape[:3], key_heads, heads // key_heads, *split.shape[4:])
        return jnp.moveaxis(split, 2, 4)

    query = jnp.moveaxis(split_chunks(inputs.query, chunk), 2, 3)
    key = jnp.moveaxis(split_chunks(inputs.key, chunk), 2, 3)
    total = jnp.cumsum(by_head(inputs.log_decay), axis=-1)
    strength = by_head(inputs.strength)[..., None]

    document = split_chunks(jnp.cumsum(~inputs.continues, axis=1), chunk, mode="edge")
    is_visible = jnp.tril(document[..., :, None] == document[..., None, :])[:, :, None, None]
    decay = jnp.exp(jnp.where(is_visible, total[..., :, None] - total[..., None, :], -jnp.inf))
    from_state = jnp.exp(total) * _continues_chunk_before(document)
    to_state = jnp.exp(total[..., -1:] - total) * (document == document[..., -1:])[:, :, None, None]

    key_products = jnp.einsum("cbnlk,cbnmk->cbnlm", key, key)[:, :, :, None]
    query_products = jnp.einsum("cbnlk,cbnmk->cbnlm", query, key)[:, :, :, None]
    erased_key = from_state[..., None] * key[:, :, :, None]
    right_side = strength * jnp.concatenate([by_head(inputs.value), erased_key], axis=-1)
    solution = jax.lax.linalg.triangular_solve(
        strength * key_products * decay, right_side, left_side=True, lower=True, unit_diagonal=True
    )
    value, erased_key = jnp.split(solution, [inputs.value.shape[-1]], axis=-1)
    return Chunks(query, key, value, erased_key, query_products * decay, from_state, to_state)


def _continues_chunk_before(document: Int[Array, "c b l"]) -> Bool[Array, "c b 1 1 l"]:
    """Return which tokens belong to the document of the last token before their chunk; 0 is that before the row."""
    import jax.numpy as jnp

    last = jnp.pad(document[:-1, :, -1:], [(1, 0), (0, 0), (0, 0)])
    return (document == last)[:, :, None, None]
