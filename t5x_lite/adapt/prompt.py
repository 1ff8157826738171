"""Soft prompts: learned vectors before every input (prompt tuning: Lester et al. 2021; prefixes: Li & Liang 2021)."""

from typing import ClassVar

from t5x_lite.adapt.method import Method, Surgeon
from t5x_lite.models.components import Learned
from t5x_lite.models.config import ModelConfig
from t5x_lite.schema import Int, setting


class Prompt(Method):
    """`length` learned embeddings stand before each input (of an encoder_decoder: of its encoder) and train alone."""

    light: ClassVar[bool] = True

    length: Int = setting(20, "soft tokens; they take room of train.seq_len", ge=1, source="Lester et al. 2021, §3.2")

    @property
    def placeholders(self) -> int:
        return self.length

    def check(self, model: ModelConfig) -> None:
        if isinstance(model.positions, Learned) and self.length >= model.positions.length:
            raise ValueError(f"adapt.method length {self.length}: the model has {model.positions.length} positions")

    def surgery(self, surgeon: Surgeon) -> None:
        surgeon.prompt(self.length)


class Prefix(Prompt):
    """In every layer that reads the inputs, learned keys and values stand in the place of the soft tokens' own."""

    def surgery(self, surgeon: Surgeon) -> None:
        surgeon.prefixes(self.length)
