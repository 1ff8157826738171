"""What adaptation adds to a model: small modules beside those that are there.

Each hangs on an attribute that is None in a plain model (`Linear.adapter`, `Block.adapters`, `Attention.prefix`,
`Embed.prompt`), so that all other weights keep their names. `Surgeon` puts them there.
"""

import math
import re
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, Literal

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int, PRNGKeyArray

from t5x_lite.models.components import Activation
from t5x_lite.models.config import ModelConfig
from t5x_lite.models.layers import ACTIVATIONS, Groups, Linear, deviation, dropout, weight

Product = Callable[[Array, Groups | None], Array]
Route = Literal["attention", "soft", "hard", "fixed"]
FUSION_DEVIATION = 0.02
"""Of the first queries and keys of a fusion."""


class LowRank(nnx.Module):
    """product(x) + alpha/rank · up(down(dropout(x))), `up` zero at first (LoRA: Hu et al. 2022, §4.1)."""

    def __init__(
        self, config: ModelConfig, linear: Linear, rank: int, alpha: float, rate: float, *, rngs: nnx.Rngs
    ) -> None:
        fan_in = math.prod(size for _, size in linear.inputs)
        unit = fan_in**-0.5 / deviation(config, fan_in)
        more: dict[str, Any] = {"bias": False, "experts": linear.experts, "rngs": rngs}
        self.down = Linear(config, linear.inputs, [("rank", rank)], scale=unit, **more)
        self.up = Linear(config, [("rank", rank)], linear.outputs, scale=0.0, **more)
        self.scale, self.dropout = alpha / rank, rate
        self.key: PRNGKeyArray | None = nnx.data(None)  # for dropout: a block that trains gives it for one call

    def __call__(self, product: Product, x: Array, groups: Groups | None) -> Array:
        beside = self.up(self.down(dropout(x, self.dropout, self.key), groups), groups)
        return product(x, groups) + self.scale * beside


class Rescale(nnx.Module):
    """A learned factor for each channel that a layer makes, or takes (`inputs`) (IA³: Liu et al. 2022, §3.3)."""

    def __init__(self, linear: Linear, *, inputs: bool, rngs: nnx.Rngs) -> None:
        self.inputs = inputs
        axes = linear.inputs if inputs else linear.outputs
        self.factor = weight(jnp.ones([size for _, size in axes], jnp.float32), tuple(name for name, _ in axes))

    def __call__(self, product: Product, x: Array, groups: Groups | None) -> Array:
        if self.inputs:
            return product(x * self.factor[...].astype(x.dtype), groups)
        y = product(x, groups)
        return y * self.factor[...].astype(y.dtype)


class Bottleneck(nnx.Module):
    """x + up(activation(down(x))), `up` zero at first, so that the adapter begins as nothing (Houlsby et al. 2019)."""

    def __init__(self, config: ModelConfig, width: int, activation: Activation, *, rngs: nnx.Rngs) -> None:
        embed, inner = ("embed", config.embed), ("bottleneck", width)
        self.activation: Activation = activation
        self.down = Linear(config, [embed], [inner], bias=True, rngs=rngs)
        self.up = Linear(config, [inner], [embed], bias=True, scale=0.0, rngs=rngs)

    def __call__(self, x: Float[Array, "b l d"]) -> Float[Array, "b l d"]:
        return x + self.up(ACTIVATIONS[self.activation](self.down(x)))


class Fusion(nnx.Module):
    """Several adapters in one place, and what chooses among them for each token.

    `attention`: softmax of queries of x against keys of what each adapter makes, over values of it (AdapterFusion:
    Pfeiffer et al. 2021, §3.2). `soft`: a router's softmax weighs them. `hard`: its largest alone, with the gradient of
    the soft choice. `fixed`: always adapter `chosen`.
    """

    def __init__(
        self,
        config: ModelConfig,
        kinds: list[tuple[int, Activation]],
        route: Route,
        chosen: int,
        *,
        rngs: nnx.Rngs,
    ) -> None:
        self.route: Route = route
        self.chosen = chosen
        self.adapters = nnx.Dict({str(n): Bottleneck(config, *kind, rngs=rngs) for n, kind in enumerate(kinds)})
        square: Any = ([("embed", config.embed)], [("embed_out", config.embed)])
        unit = FUSION_DEVIATION / deviation(config, config.embed)
        more: dict[str, Any] = {"bias": False, "rngs": rngs}
        if route == "attention":
            self.query = Linear(config, *square, scale=unit, **more)
            self.key = Linear(config, *square, scale=unit, **more)
            self.value = Linear(config, *square, scale=0.0, **more)  # beside the identity
        elif route != "fixed":
            self.router = Linear(config, [("embed", config.embed)], [("classes", len(kinds))], **more)

    def __call__(self, x: Float[Array, "b l d"]) -> Float[Array, "b l d"]:
        if self.route == "fixed":
            return self.adapters[str(self.chosen)](x)
        made = jnp.stack([self.adapters[str(n)](x) for n in range(len(self.adapters))], axis=2)
        if self.route != "attention":
            shares = jax.nn.softmax(self.router(x).astype(jnp.float32), axis=-1)
            if self.route == "hard":
                picked = jax.nn.one_hot(shares.argmax(-1), shares.shape[-1])
                shares = shares + jax.lax.stop_gradient(picked - shares)
            return jnp.einsum("bln,blnd->bld", shares.astype(x.dtype), made)
        flat = made.reshape(x.shape[0], -1, x.shape[-1])
        keys, values = (part(flat).reshape(made.shape) for part in (self.key, self.value))
        scores = jnp.einsum("bld,blnd->bln", self.query(x), keys).astype(jnp.float32)
        return jnp.einsum("bln,blnd->bld", jax.nn.softmax(scores, axis=-1).astype(x.dtype), made + values)


class Prefix(nnx.Module):
    """Learned keys and values in the place of those of a row's first tokens (Li & Liang 2021, §4)."""

    def __init__(self, config: ModelConfig, length: int, *, rngs: nnx.Rngs) -> None:
        shape = (length, config.key_value_heads, config.width_of_head)
        names, std = ("position", "kv_heads", "head_dim"), deviation(config, config.embed)
        self.key, self.value = (
            weight(std * jax.random.normal(rngs.params(), shape, jnp.float32), names) for _ in range(2)
        )

    def __call__(
        self, key: Float[Array, "b m n k"], value: Float[Array, "b m n k"], at: Int[Array, "b m"]
    ) -> tuple[Float[Array, "b m n k"], Float[Array, "b m n k"]]:
        length = self.key[...].shape[0]
        inside, place = (at < length)[..., None, None], jnp.minimum(at, length - 1)
        own = (learned[...].astype(key.dtype)[place] for learned in (self.key, self.value))
        return tuple(jnp.where(inside, new, old) for new, old in zip(own, (key, value), strict=True))  # type: ignore[return-value]


class Prompt(nnx.Module):
    """Learned vectors of the token ids -1, -2, … (prompt tuning: Lester et al. 2021, §3)."""

    def __init__(self, config: ModelConfig, length: int, *, rngs: nnx.Rngs) -> None:
        std = deviation(config, config.width_of_embedding, embedding=True)
        vectors = std * jax.random.normal(rngs.params(), (length, config.width_of_embedding), jnp.float32)
        self.vectors = weight(vectors, ("position", "embed"), table=True)

    def __call__(self, x: Float[Array, "b l d"], tokens: Int[Array, "b l"]) -> Float[Array, "b l d"]:
        own = self.vectors[...].astype(x.dtype)[jnp.maximum(-1 - tokens, 0)]
        return jnp.where((tokens < 0)[..., None], own, x)


class Surgeon:
    """A freshly made model and what a method may do to it. All draws come from `rngs`."""

    def __init__(self, model: nnx.Module, config: ModelConfig, rngs: nnx.Rngs) -> None:
        self.model, self.config, self.rngs = model, config, rngs

    def low_rank(self, pattern: str, rank: int, alpha: float, rate: float) -> None:
        """`LowRank` beside every linear layer of the stacks whose dotted name the regular expression is found in."""
        for linear in self._linears(pattern):
            make = partial(LowRank, self.config, linear, rank, alpha, rate)
            linear.adapter = self._made(make, linear.weight)

    def rescale(self, pattern: str, *, inputs: bool = False) -> None:
        """`Rescale` of what such layers make, or take."""
        for linear in self._linears(pattern):
            linear.adapter = self._made(partial(Rescale, linear, inputs=inputs), linear.weight)

    def bottlenecks(self, places: tuple[str, ...], width: int, activation: Activation) -> None:
        """A `Bottleneck` after these sublayers of every block."""
        self._after(places, partial(Bottleneck, self.config, width, activation))

    def fusions(self, places: tuple[str, ...], kinds: list[tuple[int, Activation]], route: Route, chosen: int) -> None:
        """A `Fusion` of adapters of these widths and activations after these sublayers of every block."""
        self._after(places, partial(Fusion, self.config, kinds, route, chosen))

    def prefixes(self, length: int) -> None:
        """A `Prefix` in every layer that reads the inputs."""
        for block in self._blocks(self._reader().stack):
            block.attention.prefix = self._made(partial(Prefix, self.config, length), block.attention_norm.scale)

    def prompt(self, length: int) -> None:
        """A `Prompt` for the table of tokens."""
        self.model.tokens.prompt = Prompt(self.config, length, rngs=self.rngs)  # type: ignore[attr-defined]

    def average(self, layers: int) -> None:
        """States become the mean of those that the last `layers` layers make."""
        self._reader().stack.average = layers

    def _reader(self) -> Any:
        return getattr(self.model, "encoder", None) or self.model.decoder  # type: ignore[attr-defined]

    def _sides(self) -> list[tuple[str, Any]]:
        sides = ((name, getattr(self.model, name, None)) for name in ("encoder", "decoder"))
        return [(name, side) for name, side in sides if side is not None]

    def _blocks(self, stack: Any) -> Iterator[Any]:
        return (stack.layers[number] for number in stack.layers)

    def _linears(self, pattern: str) -> list[Linear]:
        found = [
            module
            for name, side in self._sides()
            for path, module in nnx.iter_modules(side)
            if isinstance(module, Linear) and re.search(pattern, ".".join(map(str, (name, *path))))
        ]
        if not found:
            raise ValueError(f"adapt.method: no linear layer of this model has a name in which {pattern!r} is found")
        return found

    def _after(self, places: tuple[str, ...], make: Callable[..., nnx.Module]) -> None:
        for _, side in self._sides():
            for block in self._blocks(side.stack):
                block.adapters = nnx.Dict({place: self._made(make, block.attention_norm.scale) for place in places})

    def _made(self, make: Callable[..., nnx.Module], like: Any) -> nnx.Module:
        """A module for each layer that `like`, a weight, is stacked over; or one."""
        stacked = like.ndim - len(like.axes.names)
        if not stacked:
            return make(rngs=self.rngs)
        keys = jax.random.split(self.rngs.params(), like.shape[0])
        return nnx.vmap(lambda key: make(rngs=nnx.Rngs(params=key)))(keys)
