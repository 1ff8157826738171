"""Head only (a linear probe): everything else stays as it was."""

from typing import ClassVar

from t5x_lite.adapt.method import Method
from t5x_lite.models.config import ModelConfig


class Head(Method):
    """The task's head trains, on the frozen model's states."""

    light: ClassVar[bool] = True

    def check(self, model: ModelConfig) -> None:
        if model.head is None:
            raise ValueError("adapt.method head: nothing would train: this task has no head (it is text to text)")
