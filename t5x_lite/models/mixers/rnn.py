"""Simple recurrent networks (Elman 1990; as language models, Mikolov et al. 2010)."""

from collections.abc import Iterator
from typing import TYPE_CHECKING, ClassVar, Literal

from jaxtyping import Float

from t5x_lite.arrays import Array
from t5x_lite.models.mixers.mixer import MixerState
from t5x_lite.models.mixers.recurrent import Recurrent
from t5x_lite.schema import setting

if TYPE_CHECKING:
    from t5x_lite.models.config import ModelConfig


class RNN(Recurrent):
    """Layers of one activation each, as `torch.nn.RNN` has them: h = activation(W x + U h)."""

    gates: ClassVar[int] = 1

    activation: Literal["tanh", "relu", "sigmoid"] = setting("tanh", "elementwise function of the cells")
    input_matrix: bool = setting(
        True, "multiply the input with a matrix; without it the embedding is that matrix", source="Mikolov et al. 2010"
    )

    @property
    def has_input_matrix(self) -> bool:
        return self.input_matrix

    def step(
        self, from_input: Float[Array, "b g c"], from_output: Float[Array, "b g c"], state: MixerState
    ) -> MixerState:
        """Return h = activation(x + U h)."""
        import jax
        import jax.numpy as jnp

        activations = {"tanh": jnp.tanh, "relu": jax.nn.relu, "sigmoid": jax.nn.sigmoid}
        return {"h": activations[self.activation](from_input[:, 0] + from_output[:, 0])}

    def model_problems(self, model: "ModelConfig") -> Iterator[str]:
        """Yield widths that do not fit, and several layers or directions where the input has no matrix."""
        yield from super().model_problems(model)
        if not self.input_matrix and (len(self.hidden) > 1 or self.bidirectional):
            yield "input_matrix: false is for one layer in one direction"
