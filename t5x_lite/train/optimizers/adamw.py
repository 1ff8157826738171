"""AdamW (Loshchilov & Hutter 2019)."""

from typing import TYPE_CHECKING, ClassVar

from t5x_lite.arrays import Array
from t5x_lite.schema import setting
from t5x_lite.train.optimizers.method import OptimizerMethod

if TYPE_CHECKING:
    import optax
    from jaxtyping import PyTree

    from t5x_lite.models.layers import WeightAxes


class AdamW(OptimizerMethod):
    """Adam with decoupled weight decay (Loshchilov & Hutter 2019)."""

    supports_mup: ClassVar[bool] = True

    b1: float = setting(0.9, "decay of the first moment", ge=0, lt=1)
    b2: float = setting(0.95, "decay of the second moment", ge=0, lt=1, source="GPT-3, Brown et al. 2020, B")
    epsilon: float = setting(1e-8, "added to the root of the second moment", gt=0)

    def transformations(
        self, axes: "PyTree[WeightAxes]", weight_decay: "optax.GradientTransformation"
    ) -> "list[optax.GradientTransformation]":
        """Return Adam, the learning-rate scale of each weight, and then the decay, which is the same at every width."""
        import optax

        adam = optax.scale_by_adam(self.b1, self.b2, self.epsilon)
        return [adam, *_learning_rate_scales(axes), weight_decay]


def _learning_rate_scales(axes: "PyTree[WeightAxes]") -> "list[optax.GradientTransformation]":
    """Return no transformation if all weights have the same learning rate."""
    import jax
    import optax

    if all(weight.learning_rate_scale == 1 for weight in jax.tree.leaves(axes)):
        return []

    def scale(axes: "WeightAxes", update: Array) -> Array:
        return axes.learning_rate_scale * update

    return [optax.stateless(lambda updates, _: jax.tree.map(scale, axes, updates))]
