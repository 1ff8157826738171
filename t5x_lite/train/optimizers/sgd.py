"""Stochastic gradient descent (Robbins & Monro 1951)."""

from typing import TYPE_CHECKING

from t5x_lite.schema import setting
from t5x_lite.train.optimizers.method import OptimizerMethod

if TYPE_CHECKING:
    import optax
    from jaxtyping import PyTree

    from t5x_lite.models.layers import WeightAxes


class SGD(OptimizerMethod):
    """Gradient descent, with momentum if it is not 0 (Polyak 1964); the weight decay is part of the gradient."""

    momentum: float = setting(0.0, "decay of the momentum", ge=0, lt=1)

    def transformations(
        self, axes: "PyTree[WeightAxes]", weight_decay: "optax.GradientTransformation"
    ) -> "list[optax.GradientTransformation]":
        """Return the decay, and the momentum."""
        import optax

        if self.momentum == 0:
            return [weight_decay]
        return [weight_decay, optax.trace(self.momentum)]
