"""The common part of the classical recurrent networks: settings, layers, directions and their states."""

from abc import abstractmethod
from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated, ClassVar

from jaxtyping import Bool, Float
from pydantic import Strict

from t5x_lite.arrays import Array
from t5x_lite.models.mixers.mixer import MixerState, StateMixer
from t5x_lite.schema import Int, setting

if TYPE_CHECKING:
    from flax import nnx
    from jaxtyping import PRNGKeyArray

    from t5x_lite.models.config import ModelConfig
    from t5x_lite.models.mixers.module import MixerModule


class Recurrent(StateMixer):
    """Layers of recurrent cells on top of each other, as one sublayer; a kind says what a cell computes."""

    gates: ClassVar[int]
    """Vectors of the width of the cells that are computed from the input, and as many from the last output."""
    state_names: ClassVar[tuple[str, ...]] = ("h",)
    """Arrays that a cell carries; `h` is its output."""
    adds_hidden_bias: ClassVar[bool] = False
    """The gates' share of the last output has biases too, because the cell does not only add it to the input's."""

    hidden: Annotated[tuple[Int, ...], Strict(False)] = setting(
        (), "cells of each layer, from the first to the last; none: a layer of `model.embed` cells"
    )
    projection: Int | None = setting(
        None,
        "width that the output of each layer is projected to before it is fed back",
        ge=1,
        source="Sak et al. 2014",
    )
    projection_clip: float | None = setting(
        None, "bound of the projected outputs, which are cut off on both sides", gt=0, source="ELMo, Peters et al. 2018"
    )
    bidirectional: bool = setting(False, "half of the output of each layer comes from right to left, in an encoder")
    separate_directions: bool = setting(
        False,
        "each direction reads the half of the states that it writes, so that no state depends on both sides of its "
        "token; with bidirectional",
        source="ELMo, Peters et al. 2018, §3.1",
    )
    out: bool = setting(False, "a linear map from the last layer's output to `model.embed`")
    weight_dropout: float = setting(
        0.0,
        "share of the hidden-to-hidden weights zeroed in training",
        ge=0,
        lt=1,
        source="DropConnect, Merity 2018, §2",
    )
    layer_dropout: float = setting(
        0.0, "share of a layer's output zeroed before the next, alike for all tokens", ge=0, lt=1, source="Gal 2016"
    )

    @abstractmethod
    def step(
        self,
        from_input: Float[Array, "b g c"],
        from_output: Float[Array, "b g c"],
        state: MixerState,
    ) -> MixerState:
        """Return the state of the cells after a token, before a projection.

        Args:
            from_input: the gates' share of the input, with biases.
            from_output: their share of the last output.
            state: the state after the last token.
        """

    @property
    def has_input_matrix(self) -> bool:
        """The input is multiplied with a matrix before it reaches the cells."""
        return True

    @property
    def directions(self) -> tuple[str, ...]:
        """Return the names of the directions."""
        if self.bidirectional:
            return ("forward", "backward")
        return ("forward",)

    def depth(self) -> int:
        """Return the number of layers of `hidden`."""
        return max(len(self.hidden), 1)

    def place_of(self, parameter: str) -> int:
        """Return the number of the layer; the map to `embed` is with the last one."""
        number = parameter.partition(".")[0].rpartition("_")[2]
        return int(number) if number.isdigit() else self.depth() - 1

    def layer_widths(self, model: "ModelConfig") -> list[tuple[int, int]]:
        """Return the width of the input and the number of cells, in each direction, of every layer."""
        widths = []
        width = model.embed // self._halves
        for cells in self.hidden or (model.embed // len(self.directions),):
            widths.append((width, cells))
            width = self._output_width(cells) // self._halves
        return widths

    @property
    def _halves(self) -> int:
        """Parts of the states, of which each direction reads one."""
        return 2 if self.separate_directions else 1

    def _output_width(self, cells: int) -> int:
        return (self.projection or cells) * len(self.directions)

    def init_parameters(self, model: "ModelConfig", rngs: "nnx.Rngs") -> "dict[str, nnx.Module | nnx.Param]":
        """Return a module for each layer and direction, and the map to `embed`."""
        from t5x_lite.models.layers import Linear
        from t5x_lite.models.mixers.recurrent_layer import RecurrentLayer

        parameters: dict[str, nnx.Module | nnx.Param] = {}
        widths = self.layer_widths(model)
        for number, (width, cells) in enumerate(widths):
            for direction in self.directions:
                layer = RecurrentLayer(model, self, width, cells, is_first=number == 0, rngs=rngs)
                parameters[f"{direction}_{number}"] = layer
        if self.out:
            output = ("mlp", self._output_width(widths[-1][1]))
            parameters["linear"] = Linear(model, [output], [("embed", model.embed)], residual=True, rngs=rngs)
        return parameters

    def empty_state(self, model: "ModelConfig", batch: int) -> MixerState:
        """Return zeros for what every layer carries."""
        import jax.numpy as jnp

        state = {}
        for number, (_, cells) in enumerate(self.layer_widths(model)):
            for direction in self.directions:
                for name in self.state_names:
                    width = cells
                    if name == "h":
                        width = self.projection or cells
                    state[f"{direction}_{number}_{name}"] = jnp.zeros((batch, width), jnp.float32)
        return state

    def mix(
        self,
        parameters: "MixerModule",
        x: Float[Array, "b l d"],
        continues: Bool[Array, "b l"],
        state: MixerState,
        key: "PRNGKeyArray | None",
    ) -> tuple[Float[Array, "b l d"], MixerState]:
        """Run the layers one after the other, each over the whole row."""
        import jax
        import jax.numpy as jnp

        from t5x_lite.models.layers import dropout

        last = len(self.layer_widths(parameters.config)) - 1
        new_state: MixerState = {}
        for number in range(last + 1):
            outputs = []
            inputs = jnp.split(x, self._halves, axis=-1) * (len(self.directions) // self._halves)
            for place, direction in enumerate(self.directions):
                name = f"{direction}_{number}"
                layer_state = {part: state[f"{name}_{part}"] for part in self.state_names}
                weight_key = None
                if key is not None:
                    weight_key = jax.random.fold_in(key, 3 * number + place)
                layer = getattr(parameters, name)
                output, layer_state = layer(inputs[place], continues, layer_state, weight_key, is_reversed=place == 1)
                outputs.append(output)
                new_state |= {f"{name}_{part}": value for part, value in layer_state.items()}
            x = jnp.concatenate(outputs, axis=-1)
            if key is not None and number < last:
                x = dropout(x, self.layer_dropout, jax.random.fold_in(key, 3 * number + 2), shared_axis=1)
        if self.out:
            x = parameters.linear(x)
        return x, new_state

    def model_problems(self, model: "ModelConfig") -> Iterator[str]:
        """Yield a direction that the family does not have, and widths that do not fit."""
        if self.bidirectional and not model.is_encoder_only and model.decoder_mixer is None:
            yield (
                f"bidirectional is for encoders: a {model.family} may not read later tokens; the decoder of an "
                "encoder_decoder needs a decoder_mixer"
            )
        if self.separate_directions and (not self.bidirectional or self.out or model.embed % 2):
            yield "separate_directions is for bidirectional: true and out: false in a model of even width"
        if self.projection_clip is not None and self.projection is None:
            yield "projection_clip is for a `projection`"
        widths = self.layer_widths(model)
        width = self._output_width(widths[-1][1])
        if width != model.embed and not self.out:
            yield f"the last layer's output is {width} wide, model.embed is {model.embed}; make them equal or out: true"
        for input_width, cells in widths:
            if not self.has_input_matrix and input_width != cells:
                yield f"input_matrix: false needs as many cells as the input is wide, {input_width}, not {cells}"
