"""Batches whose rows continue those of the batch before them, for truncated back-propagation (Mikolov et al. 2010)."""

from dataclasses import dataclass

import numpy as np

from t5x_lite.data.pipeline import TrainingRows
from t5x_lite.data.row_plan import StreamWindows
from t5x_lite.errors import UserError
from t5x_lite.objectives.features import CONTINUES
from t5x_lite.objectives.objective import Features


@dataclass(frozen=True)
class ConsecutiveOrder:
    """Maps row g of the global order to windows of a text that is cut into as many lanes as a batch has rows.

    Row b of the batches of an epoch reads lane b from its start to its end; windows that do not fill all lanes are
    left out.

    Attributes:
        windows: windows of the text.
        lanes: rows of a batch.

    Raises:
        UserError: there are fewer windows than lanes.
    """

    windows: int
    lanes: int

    def __post_init__(self) -> None:
        if self.windows < self.lanes:
            raise UserError(
                f"data.order=consecutive cuts the text into train.batch_size {self.lanes} parts, but it has only "
                f"{self.windows} windows of train.seq_len; give more text or a smaller batch"
            )

    def __getitem__(self, g: int) -> tuple[int, int, int]:
        """Return the source, which is the only one, the epoch, and the window."""
        step, lane = divmod(g, self.lanes)
        epoch, number = divmod(step, self.windows // self.lanes)
        return 0, epoch, lane * (self.windows // self.lanes) + number

    def starts_lane(self, window: int) -> bool:
        """Return whether a window is the first of its lane, which no batch of the epoch comes before."""
        return window % (self.windows // self.lanes) == 0


@dataclass(frozen=True)
class ConsecutiveRows:
    """The examples of a consecutive order, each with the feature `continues`.

    It is 1 where the first token of the row belongs to the document of the token before it, which is in the same row of
    the batch before.

    Attributes:
        rows: the examples.
        windows: their windows.
        order: the order of the windows.
    """

    rows: TrainingRows
    windows: StreamWindows
    order: ConsecutiveOrder

    def __getitem__(self, g: int) -> Features:
        source, epoch, window = self.order[g]
        continues = not self.order.starts_lane(window)
        if continues and self.rows.builders[0].data.separate_documents:
            continues = self.windows.continues(window, self.rows.phase(source, epoch))
        return {**self.rows[g], CONTINUES: np.array(continues, np.int32)}
