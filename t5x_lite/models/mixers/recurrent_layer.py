"""One layer of recurrent cells in one direction, over all tokens of a row."""

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, PRNGKeyArray

from t5x_lite.models.config import ModelConfig
from t5x_lite.models.layers import Linear, Weight, dropout, weight
from t5x_lite.models.mixers.mixer import MixerState
from t5x_lite.models.mixers.recurrent import Recurrent
from t5x_lite.models.sharding import constrain


class RecurrentLayer(nnx.Module):
    """Cells whose next state depends on a token and on their last output. Letters: g gates, c cells, o output.

    The products with the input are computed for all tokens at once; only those with the last output wait for it.
    """

    def __init__(
        self, model: ModelConfig, kind: Recurrent, width: int, cells: int, *, is_first: bool, rngs: nnx.Rngs
    ) -> None:
        self.kind = kind
        self.dtype = jnp.dtype(model.compute)
        output = kind.projection or cells
        source = ("embed" if is_first else "cells", width)
        gates = [("gates", kind.gates), ("mlp", cells)]
        if kind.has_input_matrix:
            self.input: Linear | None = Linear(model, [source], gates, rngs=rngs)
        else:
            self.input = None
        std = model.init.matrix_std(model, output)
        matrix = std * jax.random.normal(rngs.params(), (output, kind.gates, cells), jnp.float32)
        self.hidden = weight(matrix, ("cells", "gates", "mlp"), 1)
        if model.bias and kind.adds_hidden_bias:
            zeros = jnp.zeros((kind.gates, cells), jnp.float32)
            self.hidden_bias: Weight | None = weight(zeros, ("gates", "mlp"))
        else:
            self.hidden_bias = None
        if kind.projection is not None:
            self.projection: Linear | None = Linear(model, [("mlp", cells)], [("cells", output)], bias=False, rngs=rngs)
        else:
            self.projection = None

    def __call__(
        self,
        x: Float[Array, "b l d"],
        continues: Bool[Array, "b l"],
        state: MixerState,
        key: PRNGKeyArray | None,
        *,
        is_reversed: bool = False,
    ) -> tuple[Float[Array, "b l o"], MixerState]:
        """Return the outputs at all tokens, and the state after the last one; see `StateMixer.mix`.

        With `is_reversed` the cells read a row from its end.
        """
        from_input = x[:, :, None] if self.input is None else self.input(x)
        from_input = constrain(from_input, "batch", None, None, "mlp")
        if is_reversed:
            starts_anew = jnp.zeros_like(continues[:, :1])
            continues = jnp.concatenate([continues[:, 1:], starts_anew], axis=1)
        # Weights lie whole on a device while the tokens pass: it would gather them again for each.
        matrix = constrain(self.hidden[...], None, None, "mlp")
        matrix = dropout(matrix, self.kind.weight_dropout, key)
        bias = 0.0 if self.hidden_bias is None else self.hidden_bias[...]

        def step(
            state: MixerState, inputs: tuple[Float[Array, "b g c"], Bool[Array, "b"]]
        ) -> tuple[MixerState, Float[Array, "b o"]]:
            token, is_continued = inputs
            state = {name: jnp.where(is_continued[:, None], value, 0) for name, value in state.items()}
            # Converted here, so that the gradients of all tokens are summed in float32.
            from_output = jnp.einsum("bo,ogc->bgc", state["h"].astype(self.dtype), matrix.astype(self.dtype))
            state = self.kind.step(token.astype(jnp.float32), from_output.astype(jnp.float32) + bias, state)
            if self.projection is not None:
                state["h"] = clip(self.projection(state["h"]).astype(jnp.float32), self.kind.projection_clip)
            return state, state["h"].astype(self.dtype)

        tokens = (jnp.moveaxis(from_input, 1, 0), jnp.moveaxis(continues, 1, 0))
        state, outputs = jax.lax.scan(step, state, tokens, reverse=is_reversed)
        return jnp.moveaxis(outputs, 0, 1), state


def clip(x: Float[Array, "*shape"], bound: float | None) -> Float[Array, "*shape"]:
    """Return `x` cut off at ±`bound`; None is no bound."""
    return x if bound is None else jnp.clip(x, -bound, bound)
