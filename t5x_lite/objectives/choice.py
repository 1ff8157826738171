"""One of several continuations: each is scored beside the text, softmax over them (Radford et al. 2018, §3.3)."""

from typing import ClassVar

import numpy as np

from t5x_lite.objectives.objective import ExampleContext, Features
from t5x_lite.objectives.supervised import Coder, Pooled, Record, several
from t5x_lite.schema import Int, setting


class Choice(Pooled):
    """Roles `text` (or a list of them), `choices` (a list of `count` texts) and `label` (the right one's number).

    Features: those of `framed` for each choice, `[count, seq_len]`; `targets`, `loss_weights`, scalars.
    """

    name: ClassVar[str] = "choice"
    roles: ClassVar[tuple[str, ...]] = ("text", "choices", "label")

    count: Int = setting(..., "choices of every record", ge=2)

    @property
    def texts(self) -> int:
        """One a choice."""
        return self.count

    def examples(self, record: Record, coder: Coder, context: ExampleContext) -> list[Features]:
        choices, label = record["choices"], self.reference(record)
        if len(choices) != self.count or not 0 <= label < self.count:
            raise ValueError(f"{len(choices)} choices, label {record['label']}; expected {self.count} choices")
        told = record["text"]
        text = coder.encode(" ".join(map(str, told)) if isinstance(told, list) else str(told))
        rows = several([[text, coder.encode(str(choice))] for choice in choices], context)
        return [{**rows, "targets": np.asarray(label, np.int32)}]

    def from_text(self, text: str, record: Record) -> int:
        """The number of the choice that the text is, or -1."""
        choices = [str(choice).strip() for choice in record["choices"]]
        return choices.index(text.strip()) if text.strip() in choices else -1

    def to_text(self, record: Record) -> str:
        """The right choice."""
        return str(record["choices"][self.reference(record)])

    def reference(self, record: Record) -> int:
        """The right choice's number."""
        return int(record["label"])
