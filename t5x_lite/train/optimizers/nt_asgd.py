"""Averaged stochastic gradient descent with a non-monotonic trigger (NT-ASGD: Merity et al. 2018, §4)."""

from typing import TYPE_CHECKING, ClassVar

from t5x_lite.schema import Int, setting
from t5x_lite.train.optimizers.sgd import SGD

if TYPE_CHECKING:
    from t5x_lite.train.averaging import NonMonotonicAverage


class NTASGD(SGD):
    """SGD whose weights, once the loss no longer falls, are averaged for evaluation, checkpoints and use.

    Gradients are those at the last weights. The paper's trigger is the loss of the validation split; here it is the
    mean training loss of an interval.
    """

    averages_weights: ClassVar[bool] = True

    interval: Int = setting(1000, "steps between comparisons of the loss; the paper has an epoch", unit="steps", ge=1)
    patience: Int = setting(5, "last intervals that are not compared with", ge=1, source="Merity et al. 2018, §4: n")

    def average(self) -> "NonMonotonicAverage":
        """Return the average."""
        from t5x_lite.train.averaging import NonMonotonicAverage

        return NonMonotonicAverage(self.interval, self.patience)
