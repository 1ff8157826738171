"""Long short-term memory (Hochreiter & Schmidhuber 1997, with the forget gate of Gers et al. 2000)."""

from typing import ClassVar

from jaxtyping import Float

from t5x_lite.arrays import Array
from t5x_lite.models.mixers.mixer import MixerState
from t5x_lite.models.mixers.recurrent import Recurrent
from t5x_lite.schema import setting


class LSTM(Recurrent):
    """Layers of LSTM cells, as `torch.nn.LSTM` has them; gates are input, forget, candidate and output."""

    gates: ClassVar[int] = 4
    state_names: ClassVar[tuple[str, ...]] = ("h", "c")

    cell_clip: float | None = setting(
        None, "bound of the cells, which are cut off on both sides", gt=0, source="ELMo, Peters et al. 2018"
    )

    def step(
        self, from_input: Float[Array, "b g c"], from_output: Float[Array, "b g c"], state: MixerState
    ) -> MixerState:
        """Return c = σ(f)·c + σ(i)·tanh(g) and h = σ(o)·tanh(c)."""
        import jax
        import jax.numpy as jnp

        total = from_input + from_output
        candidate = jnp.tanh(total[:, 2])
        memory = jax.nn.sigmoid(total[:, 1]) * state["c"] + jax.nn.sigmoid(total[:, 0]) * candidate
        if self.cell_clip is not None:
            memory = jnp.clip(memory, -self.cell_clip, self.cell_clip)
        return {"h": jax.nn.sigmoid(total[:, 3]) * jnp.tanh(memory), "c": memory}
