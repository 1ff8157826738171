"""Surgery: adding the modules of an adaptation method to a freshly created model.

A method's modules are attached at five places, each of which is None in a plain model, so that all other parameters
keep their names: `Linear.adapter`, `Block.adapters`, `Attention.prefix`, `Embed.prompt`, `Stack.mix`. A module there
holds the parameters that the method has created and calls the method's arithmetic.
"""

import re
from collections.abc import Callable, Iterator
from functools import partial
from typing import TYPE_CHECKING, Any, TypeAlias

import jax
from flax import nnx
from jaxtyping import Array, Float, Int, PRNGKeyArray

from t5x_lite.errors import UserError
from t5x_lite.models.attention.layer import Attention
from t5x_lite.models.backbone import Backbone
from t5x_lite.models.block import Block
from t5x_lite.models.config import ModelConfig
from t5x_lite.models.layers import Linear, SortedRows, Weight
from t5x_lite.models.stack import Stack
from t5x_lite.trees import flatten_names

if TYPE_CHECKING:
    from t5x_lite.adapt.method import AdaptationMethod

Parameters: TypeAlias = "dict[str, nnx.Module | nnx.Param]"
CreateParameters = Callable[[nnx.Rngs], Parameters]
"""A function that creates the parameters of one adapter."""


class Adapter(nnx.Module):
    """The parameters that a method has added at one place.

    Attributes:
        dropout_key: key for dropout; a block that trains sets it for one call.
    """

    def __init__(self, method: "AdaptationMethod", parameters: Parameters) -> None:
        self.method = method
        self.dropout_key: PRNGKeyArray | None = nnx.data(None)
        for name, parameter in parameters.items():
            setattr(self, name, parameter)

    if TYPE_CHECKING:

        def __getattr__(self, name: str) -> Any: ...


class LinearAdapter(Adapter):
    """An adapter of a linear map."""

    def __call__(
        self,
        product: Callable[[Array, SortedRows | None], Array],
        x: Float[Array, "..."],
        sorted_rows: SortedRows | None,
    ) -> Float[Array, "..."]:
        return self.method.adapt_linear(self, product, x, sorted_rows)


class SublayerAdapter(Adapter):
    """An adapter between a sublayer and the residual stream, to which `write` adds the sublayer's output."""

    def __call__(
        self, y: Float[Array, "b l d"], write: Callable[[Float[Array, "b l d"]], Float[Array, "b l d"]]
    ) -> Float[Array, "b l d"]:
        return self.method.adapt_sublayer(self, y, write)


class KeyValueAdapter(Adapter):
    """An adapter of keys and values."""

    def __call__(
        self, key: Float[Array, "b m n k"], value: Float[Array, "b m n k"], positions: Int[Array, "b m"]
    ) -> tuple[Float[Array, "b m n k"], Float[Array, "b m n k"]]:
        return self.method.adapt_keys_values(self, key, value, positions)


class EmbeddingAdapter(Adapter):
    """An adapter of the token embedding."""

    def __call__(self, x: Float[Array, "b l d"], tokens: Int[Array, "b l"]) -> Float[Array, "b l d"]:
        return self.method.adapt_embedding(self, x, tokens)


class Surgeon:
    """A freshly created model and what a method may do to it. All random draws come from `rngs`."""

    def __init__(self, model: nnx.Module, config: ModelConfig, rngs: nnx.Rngs) -> None:
        self.model: Any = model
        self.config = config
        self.rngs = rngs

    def require_parameter(self, pattern: str) -> None:
        """Check that a regular expression is found in the dotted name of a parameter.

        Raises:
            UserError: there is no such parameter.
        """
        names = list(flatten_names(nnx.to_pure_dict(nnx.state(self.model, nnx.Param))))
        if not any(re.search(pattern, name) for name in names):
            tops = dict.fromkeys(name.partition(".")[0] for name in names)
            raise UserError(
                f"adapt.method: {pattern!r} is found in the name of no parameter of this model; their names begin with "
                + ", ".join(tops)
            )

    def adapt_linears(
        self, method: "AdaptationMethod", pattern: str, create: Callable[[Linear, nnx.Rngs], Parameters]
    ) -> None:
        """Attach adapters to all linear layers of the stacks whose dotted name a regular expression is found in.

        Raises:
            UserError: there is no such layer.
        """
        named_linears = dict(self._linears())
        linears = [linear for name, linear in named_linears.items() if re.search(pattern, name)]
        if not linears:
            layers = dict.fromkeys(name.rpartition(".layers.")[2].partition(".")[2] for name in named_linears)
            raise UserError(
                f"adapt.method: {pattern!r} is found in the name of no linear layer of this model; their names end in "
                + ", ".join(layers)
            )
        for linear in linears:
            create_one = partial(_create_linear_adapter, method, create, linear)
            linear.adapter = self._create_stacked(create_one, linear.weight)

    def adapt_sublayers(self, method: "AdaptationMethod", sublayers: tuple[str, ...], create: CreateParameters) -> None:
        """Attach adapters after these sublayers (`attention`: the mixer, `feedforward`) of every block."""
        create_one = partial(_create_sublayer_adapter, method, create)
        for _, backbone in self._backbones():
            for block in _blocks(backbone.stack):
                adapters = {}
                for sublayer in sublayers:
                    if sublayer == "attention" or block.feedforward is not None:
                        adapters[sublayer] = self._create_stacked(create_one, _any_weight(block))
                block.adapters = nnx.Dict(adapters)

    def adapt_keys_values(self, method: "AdaptationMethod", create: CreateParameters) -> None:
        """Attach adapters to the keys and values of every layer that reads the inputs.

        Raises:
            UserError: a layer has another mixer than attention.
        """
        create_one = partial(_create_key_value_adapter, method, create)
        for block in _blocks(self._input_backbone().stack):
            if not isinstance(block.attention, Attention):
                raise UserError("adapt.method: a layer with another mixer than attention has no keys and values")
            block.attention.prefix = self._create_stacked(create_one, block.attention.query.weight)

    def adapt_embedding(self, method: "AdaptationMethod", create: CreateParameters) -> None:
        """Attach an adapter to the token embedding."""
        self.model.tokens.prompt = EmbeddingAdapter(method, create(self.rngs))

    def mix_layers(self, mix: nnx.Module) -> None:
        """Make the states a mixture of the outputs of the layers; see `Stack.mix`."""
        self._input_backbone().stack.mix = mix

    def add_reference(self) -> None:
        """Put a second model of the same config beside the layers, as `reference`."""
        self.model.reference = type(self.model)(self.config, rngs=self.rngs)

    def add_passage_encoder(self) -> None:
        """Put a second model of the same config beside the layers, as `passage_encoder`."""
        self.model.passage_encoder = type(self.model)(self.config, rngs=self.rngs)

    def _input_backbone(self) -> Backbone:
        """Return the backbone that reads the inputs."""
        return getattr(self.model, "encoder", None) or self.model.decoder

    def _backbones(self) -> list[tuple[str, Backbone]]:
        backbones = []
        for name in ("encoder", "decoder"):
            backbone = getattr(self.model, name, None)
            if backbone is not None:
                backbones.append((name, backbone))
        return backbones

    def _linears(self) -> Iterator[tuple[str, Linear]]:
        """Yield the linear layers of the stacks with their dotted names."""
        for name, backbone in self._backbones():
            for path, module in nnx.iter_modules(backbone):
                if isinstance(module, Linear):
                    yield ".".join(str(part) for part in (name, *path)), module

    def _create_stacked(self, create: Callable[[nnx.Rngs], Adapter], like: Weight) -> Adapter:
        """Return an adapter for each layer that the weight `like` is stacked over; or one."""
        is_stacked = like.ndim > len(like.axes.names)
        if not is_stacked:
            return create(self.rngs)

        def create_from_key(key: PRNGKeyArray) -> Adapter:
            return create(nnx.Rngs(params=key))

        return nnx.vmap(create_from_key)(jax.random.split(self.rngs.params(), like.shape[0]))


def _blocks(stack: Stack) -> list[Block]:
    first = [] if stack.first is None else list(stack.first.layers.values())
    return [*first, *stack.layers.values()]


def _any_weight(block: Block) -> Weight:
    weights = [weight for _, weight in nnx.iter_graph(block) if isinstance(weight, Weight)]
    return weights[0]


def _create_linear_adapter(
    method: "AdaptationMethod",
    create: Callable[[Linear, nnx.Rngs], Parameters],
    linear: Linear,
    rngs: nnx.Rngs,
) -> LinearAdapter:
    return LinearAdapter(method, create(linear, rngs))


def _create_sublayer_adapter(method: "AdaptationMethod", create: CreateParameters, rngs: nnx.Rngs) -> SublayerAdapter:
    return SublayerAdapter(method, create(rngs))


def _create_key_value_adapter(method: "AdaptationMethod", create: CreateParameters, rngs: nnx.Rngs) -> KeyValueAdapter:
    return KeyValueAdapter(method, create(rngs))
