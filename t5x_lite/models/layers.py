"""Linear maps, embeddings, norms and dropout: the only place where weights are made and their logical axes named.

Letters of einsums and shapes in this package: b batch, l length, m key length, d embed, h heads, k head_dim,
f mlp, v vocab, e experts.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Int, PRNGKeyArray

from t5x_lite.models.components import Activation, FanInInit, LayerNorm, NormalInit, RMSNorm
from t5x_lite.models.config import ModelConfig
from t5x_lite.models.sharding import GPU_PLATFORMS, constrain, platform, shards


@dataclass(frozen=True)
class Axes:
    """Logical axes of one weight, for the sharding rules and the optimizer.

    `names` leaves out the axis that stacks layers: an array with one axis more is stacked. The first `inputs` axes
    are contracted by the layer, the others are what it makes; a bias or a scale contracts nothing, and the rows of a
    `table` are looked up. Before them, the first `stacked` names number arrays that stand for themselves (experts), of
    which a token passes a `share`. Adam takes its steps at `rate` times the learning rate (µP).
    """

    names: tuple[str, ...]
    inputs: int = 0
    table: bool = False
    stacked: int = 0
    share: float = 1.0
    rate: float = 1.0

    def stack(self, array: Any) -> int:
        """How many leading axes of an array number arrays that stand for themselves: layers, experts."""
        return array.ndim - len(self.names) + self.stacked


class Weight(nnx.Param):
    """A trained array that knows its logical axes (`.axes`)."""


def weight(value: Array, names: tuple[str, ...], inputs: int = 0, **more: Any) -> Weight:
    """Make a weight; see `Axes`."""
    return Weight(value, axes=Axes(names, inputs, **more))


@dataclass(frozen=True)
class Experts:
    """How many matrices stand side by side, and the share of them that a token passes."""

    count: int
    share: float


def deviation(
    config: ModelConfig, fan_in: int, *, residual: bool = False, embedding: bool = False, output: bool = False
) -> float:
    """Standard deviation of an initial weight under `model.init`; that of a matrix inside shrinks with width in µP."""
    wider = config.times_base
    match config.init:
        case NormalInit(deviation=base, embedding_deviation=table, scale_residual=scaled):
            if embedding:
                return base if table is None else table
            base = base if output else base / math.sqrt(wider)
            return base / math.sqrt(2 * config.layers) if residual and scaled else base
        case FanInInit(embedding_deviation=table, residual_scale=factor, scale=scale):
            fans = fan_in / wider if output else fan_in
            return table if embedding else (factor if residual else 1.0) * math.sqrt(scale / fans)


class Linear(nnx.Module):
    """A linear map from the last axes of its input to new ones: weight `[*inputs, *outputs]`, bias `[*outputs]`.

    With `experts`, as many maps side by side, of inputs `[experts, …]`; or, told `groups`, of rows sorted by expert.
    """

    def __init__(
        self,
        config: ModelConfig,
        inputs: Sequence[tuple[str, int]],
        outputs: Sequence[tuple[str, int]],
        *,
        bias: bool | None = None,
        residual: bool = False,
        scale: float = 1.0,
        experts: Experts | None = None,
        dtype: str | None = None,
        rngs: nnx.Rngs,
    ) -> None:
        shape = [size for _, size in (*inputs, *outputs)]
        names = tuple(name for name, _ in (*inputs, *outputs))
        output = "vocab" in names
        std = scale * deviation(config, math.prod(shape[: len(inputs)]), residual=residual, output=output)
        self.inputs, self.outputs, self.experts = tuple(inputs), tuple(outputs), experts
        self.dtype = jnp.dtype(dtype or config.compute)
        biased = config.bias if bias is None else bias
        made, named = shape[len(inputs) :], names[len(inputs) :]
        self.made = named
        # What leaves the residual stream has every channel, and all of the length that `tensor` holds parts of.
        self.taken = tuple(None if name == "embed" else name for name in names[: len(inputs)])
        more: dict[str, Any] = {}
        if experts is not None:
            shape, made = [experts.count, *shape], [experts.count, *made]
            names, named = ("experts", *names), ("experts", *named)
            more = {"stacked": 1, "share": experts.share}
        value = std * jax.random.normal(rngs.params(), shape, jnp.float32)
        rate = 1.0 if output else 1 / config.times_base
        self.weight = weight(value, names, len(inputs), rate=rate, **more)
        self.bias = weight(jnp.zeros(made, jnp.float32), named, **more) if biased else None
        self.adapter: Any = nnx.data(None)

    def __call__(self, x: Float[Array, "..."], groups: "Groups | None" = None) -> Float[Array, "..."]:
        return self.product(x, groups) if self.adapter is None else self.adapter(self.product, x, groups)

    def product(self, x: Float[Array, "..."], groups: "Groups | None" = None) -> Float[Array, "..."]:
        """The map alone, whatever adapter there is."""
        x, matrix = x.astype(self.dtype), self.weight[...].astype(self.dtype)
        bias = None if self.bias is None else self.bias[...].astype(self.dtype)
        if groups is not None:  # each device by itself: nothing is laid out
            y = groups.product(x, matrix, groups.sizes)
            return y if bias is None else y + bias[groups.expert]
        if self.experts is not None:
            y = jax.lax.dot_general(x, matrix, (((x.ndim - 1,), (1,)), ((0,), (0,))))
            bias = None if bias is None else bias.reshape(len(bias), *[1] * (y.ndim - 2), -1)
            return constrain(y if bias is None else y + bias, "experts", "groups", "length", *self.made)
        between = x.ndim - 1 - len(self.taken)
        x = constrain(x, "batch", *["length"][:between], *self.taken)
        y = _rows_times(x, matrix, len(self.inputs))
        along = "residual_length" if self.made == ("embed",) else "length"
        return constrain(y if bias is None else y + bias, "batch", *[along][:between], *self.made)


def _rows_times(x: Array, matrix: Array, contracted: int) -> Array:
    """`tensordot`; where no device holds a part of the length, of two matrices.

    XLA for CPU turns an operand of more axes around before the product that makes the gradient of the weight: a third
    of the time of a small step.
    """
    if shards("residual_length") > 1:
        return jnp.tensordot(x, matrix, axes=contracted)
    rows, made = x.shape[: x.ndim - contracted], matrix.shape[contracted:]
    flat = x.reshape(math.prod(rows), -1) @ matrix.reshape(-1, math.prod(made))
    return flat.reshape(*rows, *made)


@dataclass(frozen=True)
class Groups:
    """Rows sorted by expert: how many each has, which each row belongs to, and what multiplies them in groups."""

    sizes: Int[Array, "e"]
    expert: Int[Array, "n"]
    product: Callable[[Float[Array, "n d"], Float[Array, "e d f"], Int[Array, "e"]], Float[Array, "n f"]]


SMALL_TABLE = 4096
"""Rows of a table up to which its gradient is a product with zeros and ones."""


@partial(jax.custom_vjp, nondiff_argnums=(2,))
def look_up(table: Float[Array, "v d"], ids: Int[Array, "b l"], dtype: Any) -> Float[Array, "b l d"]:
    """Rows of a table, with the gradient that is fast on a GPU.

    A scatter of bfloat16 is a loop of compare-and-swap; many tokens in few rows wait for each other (BERT-large on an
    H100: 85 of 245 ms a step for token types and positions). A small table's gradient is a product, a large one's a
    scatter in float32.
    """
    return table[ids].astype(dtype)


def _look_up_forward(table: Array, ids: Array, dtype: Any) -> tuple[Array, tuple[Array, Array]]:
    return look_up(table, ids, dtype), (ids, table)


def _look_up_backward(dtype: Any, saved: tuple[Array, Array], gradient: Array) -> tuple[Array, Any]:
    ids, table = saved
    rows, width = table.shape
    flat_ids, flat = ids.reshape(-1), gradient.reshape(-1, width)
    if rows <= SMALL_TABLE:
        chosen = jax.nn.one_hot(flat_ids, rows, dtype=gradient.dtype)
        summed = jnp.einsum("nv,nd->vd", chosen, flat, preferred_element_type=jnp.float32)
    else:
        summed = jnp.zeros((rows, width), jnp.float32).at[flat_ids].add(flat.astype(jnp.float32))
    return summed.astype(table.dtype), np.zeros(ids.shape, jax.dtypes.float0)


look_up.defvjp(_look_up_forward, _look_up_backward)


class Embed(nnx.Module):
    """A vector per token, and its transpose as the output matrix of a tied model."""

    def __init__(self, config: ModelConfig, rows: int, width: int, *, name: str = "vocab", rngs: nnx.Rngs) -> None:
        std = deviation(config, width, embedding=True)
        table = std * jax.random.normal(rngs.params(), (rows, width), jnp.float32)
        self.name, self.dtype = name, jnp.dtype(config.compute)
        self.weight = weight(table, (name, "embed"), table=True)
        self.prompt: Any = nnx.data(None)

    def __call__(self, tokens: Int[Array, "b l"]) -> Float[Array, "b l d"]:
        # Ids below zero are those of soft prompts, whose vectors are learned.
        ids = jnp.maximum(tokens, 0)
        # The width is gathered before the rows are looked up: what comes out is sharded by rows of the batch.
        if platform() in GPU_PLATFORMS:
            x = look_up(constrain(self.weight[...], self.name, None), ids, self.dtype)
        else:
            x = constrain(self.weight[...].astype(self.dtype), self.name, None)[ids]
        return constrain(x if self.prompt is None else self.prompt(x, tokens), "batch", "residual_length", None)

    def attend(self, x: Float[Array, "b l d"]) -> Float[Array, "b l v"]:
        """Inner products with every row of the table."""
        x = constrain(x, "batch", "length", None)
        table = self.weight[...].astype(self.dtype)
        rows = len(table)
        if platform() in GPU_PLATFORMS:
            # Products of whole tiles: GPT-2's 50,257 rows take three times as long as 50,304 on an H100.
            table = jnp.pad(table, [(0, -rows % 128), (0, 0)])
        scores = jnp.einsum("bld,vd->blv", x, table)[..., :rows]
        return constrain(scores, "batch", "length", "vocab")


class Norm(nnx.Module):
    """LayerNorm or RMSNorm over the last axes, computed in float32 (`norm` says which)."""

    def __init__(self, norm: LayerNorm | RMSNorm, *axes: tuple[str, int]) -> None:
        names, shape = tuple(name for name, _ in axes), [size for _, size in axes]
        self.over = tuple(range(-len(axes), 0))
        self.epsilon = norm.epsilon
        self.centred = isinstance(norm, LayerNorm)
        self.scale = weight(jnp.ones(shape, jnp.float32), names)
        biased = isinstance(norm, LayerNorm) and norm.bias
        self.bias = weight(jnp.zeros(shape, jnp.float32), names) if biased else None

    def __call__(self, x: Float[Array, "... d"]) -> Float[Array, "... d"]:
        y = x.astype(jnp.float32)
        if self.centred:
            y = y - y.mean(self.over, keepdims=True)
        y = y * jax.lax.rsqrt(jnp.square(y).mean(self.over, keepdims=True) + self.epsilon) * self.scale[...]
        return (y if self.bias is None else y + self.bias[...]).astype(x.dtype)


def dropout(x: Array, rate: float, key: PRNGKeyArray | None) -> Array:
    """Zero a share `rate` of `x` and scale the rest by 1/(1-rate); `key` None (evaluation) leaves `x` as it is."""
    if key is None or rate == 0:
        return x
    kept = jax.random.bernoulli(key, 1 - rate, x.shape)
    return jnp.where(kept, x / (1 - rate), jnp.zeros_like(x))


ACTIVATIONS: dict[Activation, Callable[[Array], Array]] = {
    "gelu": lambda x: x * (0.5 * (1 + jax.lax.erf(x * math.sqrt(0.5)))),  # jax.nn.gelu's erfc costs three times as much
    "gelu_tanh": partial(jax.nn.gelu, approximate=True),
    "relu": jax.nn.relu,
    "silu": jax.nn.silu,
    "relu_squared": lambda x: jnp.square(jax.nn.relu(x)),
}
"""Elementwise functions; `gelu` is x·Φ(x) by erf, `gelu_tanh` its approximation (Hendrycks & Gimpel)."""
