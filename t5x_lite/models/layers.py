"""Linear maps, embeddings, norms and dropout: the only place where weights are made and their logical axes are named.

Letters of einsums and shapes in this package: b batch, l length, m key length, d embed, h heads, n key heads,
k head_dim, f mlp, v vocab, e experts.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int, PRNGKeyArray

from t5x_lite.models.config import ModelConfig
from t5x_lite.models.feedforward.config import Activation
from t5x_lite.models.look_up import look_up
from t5x_lite.models.normalization import LayerNorm, NoNorm, RMSNorm
from t5x_lite.models.quantization import QuantizedType, active_quantization, quantized_product
from t5x_lite.models.remat import name_product
from t5x_lite.models.sharding import GPU_PLATFORMS, constrain, num_shards, target_platform
from t5x_lite.models.weight_gradients import has_float32_weight_gradients, product_of_rows

NamedSize = tuple[str, int]
"""The name of a logical axis and its size."""


@dataclass(frozen=True)
class WeightAxes:
    """Logical axes of one weight, for the sharding rules and the optimizer.

    Attributes:
        names: names of the axes, without the axis that stacks layers: an array with one axis more is stacked.
        inputs: number of leading axes that the layer contracts; a bias or a scale has none.
        is_table: rows of the array are looked up.
        stacked: number of leading axes in `names` that number independent arrays (experts).
        active_share: share of those arrays that a token uses.
        learning_rate_scale: factor on the learning rate of Adam (µP).
        is_linear: it is the matrix of a `Linear`, whose products `train.quantization` computes in 8 bits.
    """

    names: tuple[str, ...]
    inputs: int = 0
    is_table: bool = False
    stacked: int = 0
    active_share: float = 1.0
    learning_rate_scale: float = 1.0
    is_linear: bool = False

    def stack_depth(self, array: Array | jax.ShapeDtypeStruct) -> int:
        """Return how many leading axes of an array number independent arrays: layers, experts."""
        return array.ndim - len(self.names) + self.stacked


class Weight(nnx.Param):
    """A trained array that knows its logical axes (`.axes`)."""


def weight(value: Array, names: tuple[str, ...], inputs: int = 0, **axes: Any) -> Weight:
    """Return a weight; the arguments are those of `WeightAxes`."""
    return Weight(value, axes=WeightAxes(names, inputs, **axes))


@dataclass(frozen=True)
class ExpertAxis:
    """Matrices side by side: how many, and the share of them that a token uses."""

    count: int
    active_share: float


GroupedProduct = Callable[[Float[Array, "n d"], Float[Array, "e d f"], Int[Array, "e"]], Float[Array, "n f"]]
"""A function that multiplies rows, sorted by expert, with the matrix of their expert, by the number of rows of each."""


@dataclass(frozen=True)
class SortedRows:
    """Rows sorted by expert.

    Attributes:
        sizes: number of rows of each expert.
        expert: the expert of each row; the number of experts for a row without one, which are the last.
        product: multiplies them with the experts' matrices.
    """

    sizes: Int[Array, "e"]
    expert: Int[Array, "n"]
    product: GroupedProduct


class Linear(nnx.Module):
    """A linear map from the last axes of its input to new ones: weight `[*inputs, *outputs]`, bias `[*outputs]`.

    With `experts` it is that many maps side by side, of inputs `[experts, …]`, or of rows sorted by expert.

    Attributes:
        adapter: what an adaptation method has added; None in a plain model.
    """

    def __init__(
        self,
        config: ModelConfig,
        inputs: Sequence[NamedSize],
        outputs: Sequence[NamedSize],
        *,
        bias: bool | None = None,
        residual: bool = False,
        scale: float = 1.0,
        experts: ExpertAxis | None = None,
        dtype: DTypeLike | None = None,
        rngs: nnx.Rngs,
    ) -> None:
        """Create the map.

        Args:
            config: the model.
            inputs: logical axes of the input that are contracted, and their sizes.
            outputs: those of the output.
            bias: add a bias; None takes `model.bias`.
            residual: the map writes to the residual stream.
            scale: factor on the standard deviation of the initial weight.
            experts: how many maps there are side by side.
            dtype: type of the arithmetic; None takes `model.compute`.
            rngs: source of the initial weights.
        """
        self.inputs = tuple(inputs)
        self.outputs = tuple(outputs)
        self.experts = experts
        self.dtype = jnp.dtype(dtype or config.compute)
        self.output_names = tuple(name for name, _ in outputs)
        # What leaves the residual stream has every channel, and all of the length that `tensor` holds parts of.
        self.input_names = tuple(None if name == "embed" else name for name, _ in inputs)
        input_shape = [size for _, size in inputs]
        output_shape = [size for _, size in outputs]
        names = (*[name for name, _ in inputs], *self.output_names)
        is_output = "vocab" in names
        std = scale * config.init.matrix_std(config, math.prod(input_shape), residual=residual, output=is_output)
        learning_rate_scale = 1.0
        if not is_output:
            learning_rate_scale = 1 / config.width_multiplier
        expert_names: tuple[str, ...] = ()
        expert_shape: list[int] = []
        expert_axes: dict[str, Any] = {}
        if experts is not None:
            expert_names = ("experts",)
            expert_shape = [experts.count]
            expert_axes = {"stacked": 1, "active_share": experts.active_share}
        shape = [*expert_shape, *input_shape, *output_shape]
        self.weight = weight(
            std * jax.random.normal(rngs.params(), shape, jnp.float32),
            (*expert_names, *names),
            len(inputs),
            learning_rate_scale=learning_rate_scale,
            is_linear=True,
            **expert_axes,
        )
        if config.bias if bias is None else bias:
            zeros = jnp.zeros([*expert_shape, *output_shape], jnp.float32)
            self.bias: Weight | None = weight(zeros, (*expert_names, *self.output_names), **expert_axes)
        else:
            self.bias = None
        self.adapter: Any = nnx.data(None)

    def __call__(self, x: Float[Array, "..."], sorted_rows: SortedRows | None = None) -> Float[Array, "..."]:
        if self.adapter is None:
            y = self.product(x, sorted_rows)
        else:
            y = self.adapter(self.product, x, sorted_rows)
        return name_product(y, self.output_names)

    @property
    def quantization(self) -> QuantizedType | None:
        """The type of the products that are traced now; None where they keep their own."""
        return active_quantization((*[name for name, _ in self.inputs], *self.output_names))

    def product(self, x: Float[Array, "..."], sorted_rows: SortedRows | None = None) -> Float[Array, "..."]:
        """Return the map without its adapter."""
        x = x.astype(self.dtype)
        matrix = self.weight[...].astype(self.dtype)
        if sorted_rows is not None:
            biases = None if self.bias is None else self.bias[...]
            return _product_of_sorted_rows(x, matrix, biases, sorted_rows)
        bias = None
        if self.bias is not None:
            bias = self.bias[...].astype(self.dtype)
        if self.experts is not None:
            y = _product_of_experts(x, matrix, self.quantization)
            if bias is not None:
                y = y + bias.reshape(len(bias), *[1] * (y.ndim - 2), -1)
            return constrain(y, "experts", "groups", "length", *self.output_names)
        input_rows: tuple[str, ...] = ("batch",)
        output_rows: tuple[str, ...] = ("batch",)
        if x.ndim > 1 + len(self.input_names):
            writes_residual = self.output_names == ("embed",)
            input_rows = ("batch", "length")
            output_rows = ("batch", "residual_length" if writes_residual else "length")
        x = constrain(x, *input_rows, *self.input_names)
        # The outputs have one axis until the end, as where they are kept; see `name_product`.
        row_shape = x.shape[: x.ndim - len(self.inputs)]
        input_size = math.prod(size for _, size in self.inputs)
        rows = x.reshape(*row_shape, input_size)
        if self.quantization is None and has_float32_weight_gradients():
            y = product_of_rows(rows, self.weight[...].reshape(input_size, -1), self.dtype)
        else:
            y = _product_of_rows(rows, matrix.reshape(input_size, -1), self.quantization)
        if bias is not None:
            y = y + bias.reshape(-1)
        y = y.reshape(*row_shape, *[size for _, size in self.outputs])
        return constrain(y, *output_rows, *self.output_names)


def _product_of_sorted_rows(
    x: Float[Array, "n d"], matrices: Float[Array, "e d f"], biases: Float[Array, "e f"] | None, rows: SortedRows
) -> Float[Array, "n f"]:
    """Return the product on one device, 0 for a row without an expert; nothing is constrained to a mesh."""
    # A kernel leaves anything in the rows without an expert, of its results and of the gradients of its inputs.
    has_expert = (rows.expert < len(rows.sizes))[:, None]
    y = jnp.where(has_expert, rows.product(jnp.where(has_expert, x, 0), matrices, rows.sizes), 0)
    if biases is not None:
        # Looked up before the conversion, so that their gradients are summed in float32.
        y = y + biases.at[rows.expert].get(mode="fill", fill_value=0).astype(y.dtype)
    return y


def _product_of_experts(
    x: Float[Array, "e ..."], matrices: Float[Array, "e d f"], quantization: QuantizedType | None
) -> Float[Array, "e ..."]:
    """Return the product of each expert's rows with its matrix."""
    if quantization is not None:
        return quantized_product(x, matrices, quantization)
    return jax.lax.dot_general(x, matrices, (((x.ndim - 1,), (1,)), ((0,), (0,))))


def _product_of_rows(
    x: Float[Array, "*rows d"], matrix: Float[Array, "d f"], quantization: QuantizedType | None
) -> Float[Array, "*rows f"]:
    """Return the product of rows and a matrix; where no device holds a part of the length, of two matrices.

    For an operand of more axes, XLA for CPU transposes it before the product that gives the gradient of the weight: a
    third of the time of a small step.
    """
    if quantization is not None:
        return quantized_product(x, matrix, quantization)
    if num_shards("residual_length") > 1:
        return x @ matrix
    return (x.reshape(-1, x.shape[-1]) @ matrix).reshape(*x.shape[:-1], matrix.shape[1])


class Embed(nnx.Module):
    """A vector for each token, whose transpose is the output matrix of a tied model.

    Attributes:
        prompt: what prompt tuning has added: vectors of the ids below zero; None in a plain model.
    """

    def __init__(self, config: ModelConfig, rows: int, width: int, *, axis: str = "vocab", rngs: nnx.Rngs) -> None:
        self.axis = axis
        self.dtype = jnp.dtype(config.compute)
        self.row_dropout = config.embedding_dropout if axis == "vocab" else 0.0
        table = config.init.embedding_std() * jax.random.normal(rngs.params(), (rows, width), jnp.float32)
        self.weight = weight(table, (axis, "embed"), is_table=True)
        self.prompt: PromptAdapter | None = nnx.data(None)

    @property
    def rows(self) -> Float[Array, "v d"]:
        """The table."""
        return self.weight[...]

    def __call__(self, tokens: Int[Array, "b l"], key: PRNGKeyArray | None = None) -> Float[Array, "b l d"]:
        """Return the vector of each token; a key turns the dropout of rows of the table on."""
        # Ids below zero are those of soft prompts, whose vectors are learned.
        ids = jnp.maximum(tokens, 0)
        x = look_up(self.rows, ids, self.axis, self.dtype)
        if key is not None and self.row_dropout > 0:
            # The same words are dropped in all rows (Merity et al. 2018, §4.3).
            factors = dropout(jnp.ones(len(self.weight[...]), self.dtype), self.row_dropout, key)
            x = x * factors[ids][..., None]
        if self.prompt is not None:
            x = self.prompt(x, tokens)
        return constrain(x, "batch", "residual_length", None)

    def attend(self, x: Float[Array, "b l d"]) -> Float[Array, "b l v"]:
        """Return the inner products with every row of the table."""
        x = constrain(x, "batch", "length", None)
        table = self.weight[...].astype(self.dtype)
        rows = len(table)
        if target_platform() in GPU_PLATFORMS:
            # Products of whole tiles: 50,257 rows take three times as long as 50,304 on an H100.
            table = jnp.pad(table, [(0, -rows % 128), (0, 0)])
        scores = jnp.einsum("bld,vd->blv", x, table)[..., :rows]
        return constrain(scores, "batch", "length", "vocab")


PromptAdapter = Callable[[Float[Array, "b l d"], Int[Array, "b l"]], Float[Array, "b l d"]]
"""The addition of prompt tuning to an embedding: a function of the vectors and the tokens."""


class Norm(nnx.Module):
    """LayerNorm or RMSNorm over the last axes, computed in float32; or none, which returns its input."""

    def __init__(self, settings: LayerNorm | RMSNorm | NoNorm, *axes: NamedSize) -> None:
        names = tuple(name for name, _ in axes)
        shape = [size for _, size in axes]
        self.axes = tuple(range(-len(axes), 0))
        self.epsilon: float | None = None
        if not isinstance(settings, NoNorm):
            self.epsilon = settings.epsilon
        self.is_centred = isinstance(settings, LayerNorm)
        has_scale = isinstance(settings, RMSNorm)
        has_bias = False
        if isinstance(settings, LayerNorm):
            has_scale = settings.scale
            has_bias = settings.bias
        self.offset = 0.0
        if isinstance(settings, RMSNorm) and settings.unit_offset:
            self.offset = 1.0
        if has_scale:
            self.scale: Weight | None = weight(jnp.full(shape, 1 - self.offset, jnp.float32), names)
        else:
            self.scale = None
        if has_bias:
            self.bias: Weight | None = weight(jnp.zeros(shape, jnp.float32), names)
        else:
            self.bias = None

    def __call__(self, x: Float[Array, "... d"]) -> Float[Array, "... d"]:
        if self.epsilon is None:
            return x
        y = x.astype(jnp.float32)
        if self.is_centred:
            y = y - y.mean(self.axes, keepdims=True)
        y = y * jax.lax.rsqrt(jnp.square(y).mean(self.axes, keepdims=True) + self.epsilon)
        if self.scale is not None:
            y = y * (self.offset + self.scale[...])
        if self.bias is not None:
            y = y + self.bias[...]
        return y.astype(x.dtype)


def dropout(
    x: Float[Array, "*shape"], rate: float, key: PRNGKeyArray | None, *, shared_axis: int | None = None
) -> Float[Array, "*shape"]:
    """Zero a share `rate` of `x` and scale the rest by 1/(1-rate); without a key (evaluation) return `x` as it is.

    With a `shared_axis` the same elements are zeroed all along it (variational dropout: Gal & Ghahramani 2016).
    """
    if key is None or rate == 0:
        return x
    shape = list(x.shape)
    if shared_axis is not None:
        shape[shared_axis] = 1
    keep = jax.random.bernoulli(key, 1 - rate, shape)
    return jnp.where(keep, x / (1 - rate), jnp.zeros_like(x))


def gelu(x: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """Return x·Φ(x) (Hendrycks & Gimpel 2016). `jax.nn.gelu` uses erfc, which takes three times as long on a CPU."""
    return x * (0.5 * (1 + jax.lax.erf(x * math.sqrt(0.5))))


def quick_gelu(x: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """Return x·sigmoid(1.702 x), an approximation of GELU (Hendrycks & Gimpel 2016, §2)."""
    return x * jax.nn.sigmoid(1.702 * x)


def relu_squared(x: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """Return max(x, 0)² (So et al. 2021, §4)."""
    return jnp.square(jax.nn.relu(x))


ACTIVATIONS: dict[Activation, Callable[[Array], Array]] = {
    "gelu": gelu,
    "gelu_tanh": partial(jax.nn.gelu, approximate=True),
    "relu": jax.nn.relu,
    "silu": jax.nn.silu,
    "relu_squared": relu_squared,
    "quick_gelu": quick_gelu,
}
"""Elementwise functions; `gelu_tanh` is the approximation of `gelu` by tanh."""
