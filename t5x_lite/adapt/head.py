"""A linear probe: the head trains, everything else is frozen."""

from typing import ClassVar

from t5x_lite.adapt.method import AdaptationMethod
from t5x_lite.models.config import ModelConfig


class Head(AdaptationMethod):
    """The head of the task trains; the model is frozen."""

    freezes_base: ClassVar[bool] = True
    trains_head_alone: ClassVar[bool] = True

    def check(self, model: ModelConfig) -> None:
        """Raise ValueError for a task without a head."""
        if model.head is None:
            raise ValueError("adapt.method head: nothing would train: this task has no head (it is text to text)")
