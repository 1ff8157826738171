"""Linear decay (BERT: Devlin et al. 2019)."""

from t5x_lite.arrays import Array
from t5x_lite.schema import setting
from t5x_lite.train.schedules.schedule import Horizon, Schedule


class Linear(Schedule):
    """A straight line from the peak to `final` of it at the last step (BERT)."""

    final: float = setting(0.0, "last rate as a share of the peak", ge=0, le=1)

    def factor(self, count: Array, horizon: Horizon) -> Array:
        """Return 1 - (1 - final) p, p from 0 to 1."""
        return 1 - (1 - self.final) * horizon.progress(count)
