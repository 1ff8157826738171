"""Muon (Jordan et al. 2024)."""

import math
from typing import TYPE_CHECKING

from t5x_lite.arrays import Array
from t5x_lite.schema import Int, setting
from t5x_lite.train.optimizers.method import OptimizerMethod

if TYPE_CHECKING:
    import optax
    from jaxtyping import PyTree

    from t5x_lite.models.layers import WeightAxes


class Muon(OptimizerMethod):
    """Momentum orthogonalised by Newton-Schulz for hidden matrices (Jordan et al. 2024); AdamW for the rest."""

    momentum: float = setting(0.95, "decay of the momentum", ge=0, lt=1)
    iterations: Int = setting(5, "Newton-Schulz iterations", ge=1)
    scale: float = setting(
        0.2, "update's root mean square, so that AdamW's rate serves both", gt=0, source="Liu et al. 2025, §2.2"
    )
    b1: float = setting(0.9, "AdamW's decay of the first moment", ge=0, lt=1)
    b2: float = setting(0.95, "AdamW's decay of the second moment", ge=0, lt=1)
    epsilon: float = setting(1e-8, "AdamW's epsilon", gt=0)

    def transformations(
        self, axes: "PyTree[WeightAxes]", weight_decay: "optax.GradientTransformation"
    ) -> "list[optax.GradientTransformation]":
        """Return Muon for hidden matrices, Adam for embeddings, the output matrix, norms and biases; then the decay."""
        import jax
        import optax

        muon = optax.chain(
            optax.contrib.scale_by_muon(
                ns_steps=self.iterations,
                beta=self.momentum,
                weight_dimension_numbers=lambda updates: jax.tree.map(_dimension_numbers, axes, updates),
            ),
            optax.stateless(lambda updates, _: jax.tree.map(self._rescale, axes, updates)),
        )
        adam = optax.scale_by_adam(self.b1, self.b2, self.epsilon)
        is_hidden = jax.tree.map(_is_hidden_matrix, axes)
        return [optax.partition({True: muon, False: adam}, is_hidden), weight_decay]

    def _rescale(self, axes: "WeightAxes", update: "Array | optax.MaskedNode") -> "Array | optax.MaskedNode":
        """Give the update the root mean square `scale`.

        An orthogonal matrix has 1 / sqrt(max(fan in, fan out)) (Liu et al. 2025, §2.2).
        """
        import optax

        if isinstance(update, optax.MaskedNode):
            return update
        shape = update.shape[axes.stack_depth(update) :]
        fan_in = math.prod(shape[: axes.inputs])
        fan_out = math.prod(shape[axes.inputs :])
        return update * self.scale * math.sqrt(max(fan_in, fan_out))


def _is_hidden_matrix(axes: "WeightAxes") -> bool:
    return axes.inputs > 0 and "vocab" not in axes.names


def _dimension_numbers(
    axes: "WeightAxes", update: "Array | optax.MaskedNode"
) -> "Array | optax.MaskedNode | optax.contrib.MuonDimensionNumbers":
    """Return which axes of a hidden matrix are its inputs and outputs; return anything else unchanged."""
    import optax

    if not _is_hidden_matrix(axes) or isinstance(update, optax.MaskedNode):
        return update
    first_input = axes.stack_depth(update)
    first_output = first_input + axes.inputs
    return optax.contrib.MuonDimensionNumbers(
        tuple(range(first_input, first_output)), tuple(range(first_output, update.ndim))
    )
