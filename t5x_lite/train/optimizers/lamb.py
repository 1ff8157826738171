"""LAMB (You et al. 2020)."""

from typing import TYPE_CHECKING

from jaxtyping import Float

from t5x_lite.arrays import Array
from t5x_lite.schema import setting
from t5x_lite.train.optimizers.method import OptimizerMethod

if TYPE_CHECKING:
    import optax
    from jaxtyping import PyTree

    from t5x_lite.models.layers import WeightAxes


class Lamb(OptimizerMethod):
    """Adam with a trust ratio per matrix, for large batches (You et al. 2020).

    Biases and norms have no ratio, as in ALBERT's code: a bias that begins at 0 would hardly train.
    """

    b1: float = setting(0.9, "decay of the first moment", ge=0, lt=1)
    b2: float = setting(0.999, "decay of the second moment", ge=0, lt=1)
    epsilon: float = setting(1e-6, "added to the root of the second moment", gt=0)

    def transformations(
        self, axes: "PyTree[WeightAxes]", weight_decay: "optax.GradientTransformation"
    ) -> "list[optax.GradientTransformation]":
        """Return Adam, the decay, and the trust ratio of both together (Algorithm 2)."""
        import optax

        from t5x_lite.train.optimizers.stacked import change_each_matrix

        adam = optax.scale_by_adam(self.b1, self.b2, self.epsilon)
        return [adam, weight_decay, change_each_matrix(_scale_by_trust_ratio, axes)]


def _scale_by_trust_ratio(update: Float[Array, "..."], param: Float[Array, "..."]) -> Float[Array, "..."]:
    """Multiply the update by |param| / |update|; leave it as it is if one of them is zero (Algorithm 2)."""
    import jax.numpy as jnp

    param_norm = jnp.linalg.norm(param)
    update_norm = jnp.linalg.norm(update)
    has_ratio = (param_norm > 0) & (update_norm > 0)
    ratio = param_norm / jnp.where(update_norm > 0, update_norm, 1.0)
    return update * jnp.where(has_ratio, ratio, 1.0)
