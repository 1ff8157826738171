"""Adafactor (Shazeer & Stern 2018)."""

from typing import TYPE_CHECKING

from jaxtyping import Float

from t5x_lite.arrays import Array
from t5x_lite.schema import setting
from t5x_lite.train.optimizers.method import OptimizerMethod

if TYPE_CHECKING:
    import optax
    from jaxtyping import PyTree

    from t5x_lite.models.layers import WeightAxes

SMALLEST_SCALE = 1e-3
"""Least root mean square of a parameter that its updates are scaled by (ε2 of Algorithm 5)."""


class Adafactor(OptimizerMethod):
    """Factored second moments, updates clipped and scaled by the parameter (Shazeer & Stern 2018), as T5."""

    decay: float = setting(0.8, "exponent of the second moment's decay, 1 - step^-decay", gt=0)
    scale_by_parameter: bool = setting(True, "multiply the rate by the parameter's root mean square")
    clip_update: float = setting(1.0, "largest root mean square of an update", gt=0)
    momentum: float | None = setting(None, "decay of a first moment; null keeps none", ge=0, lt=1)

    def transformations(
        self, axes: "PyTree[WeightAxes]", weight_decay: "optax.GradientTransformation"
    ) -> "list[optax.GradientTransformation]":
        """Return factored moments, clipping, scaling by the parameter and momentum, and then the decay."""
        import optax

        from t5x_lite.train.optimizers.stacked import change_each_layer, transform_each_matrix

        moments = optax.scale_by_factored_rms(decay_rate=self.decay)
        transformations = [transform_each_matrix(moments, axes), change_each_layer(self._clip, axes)]
        if self.scale_by_parameter:
            transformations.append(change_each_layer(_scale_by_parameter, axes))
        if self.momentum is not None:
            transformations.append(optax.ema(self.momentum, debias=False))
        return [*transformations, weight_decay]

    def _clip(self, update: Float[Array, "..."], param: Float[Array, "..."]) -> Float[Array, "..."]:
        """Clip the update's root mean square (§6)."""
        import jax.numpy as jnp

        from t5x_lite.train.optimizers.stacked import root_mean_square

        return update / jnp.maximum(1.0, root_mean_square(update) / self.clip_update)


def _scale_by_parameter(update: Float[Array, "..."], param: Float[Array, "..."]) -> Float[Array, "..."]:
    """Make the step relative to the parameter's root mean square (§8)."""
    import jax.numpy as jnp

    from t5x_lite.train.optimizers.stacked import root_mean_square

    return update * jnp.maximum(SMALLEST_SCALE, root_mean_square(param))
