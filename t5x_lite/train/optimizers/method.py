"""The interface of an optimizer: how gradients become updates, before the learning rate."""

from abc import abstractmethod
from typing import TYPE_CHECKING, ClassVar

from t5x_lite.schema import Config

if TYPE_CHECKING:
    import optax
    from jaxtyping import PyTree

    from t5x_lite.models.layers import WeightAxes
    from t5x_lite.train.averaging import NonMonotonicAverage


class OptimizerMethod(Config):
    """An algorithm, from gradients to updates of unit learning rate.

    An optimizer is one file: a class of this kind with its settings and its transformations, and an entry in
    `OPTIMIZERS`. Weights of a repeated layer are one array with a leading axis, and those of experts have one more.
    Whatever an algorithm does per matrix (trust ratios, factored moments, orthogonalisation) is done per layer and
    expert, as if each stood alone; see `optimizers.stacked`.
    """

    supports_mup: ClassVar[bool] = False
    """The learning rates of maximal update parametrisation hold for this algorithm."""
    averages_weights: ClassVar[bool] = False
    """`average` returns a transformation that averages the weights."""

    @abstractmethod
    def transformations(
        self, axes: "PyTree[WeightAxes]", weight_decay: "optax.GradientTransformation"
    ) -> "list[optax.GradientTransformation]":
        """Return the steps of the algorithm, with weight decay where the algorithm has it.

        The steps become links of one `optax.chain`, whose state a checkpoint stores by their number.

        Args:
            axes: a `WeightAxes` for each parameter, in the shape of the parameters.
            weight_decay: adds the decayed weights to the updates.
        """

    def average(self) -> "NonMonotonicAverage | None":
        """Return the average of the weights that evaluation and checkpoints take; None: they take the last weights."""
        return None
