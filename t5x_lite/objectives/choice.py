"""Multiple choice: score each continuation with the text, softmax over them (Radford et al. 2018, §3.3)."""

from typing import ClassVar

import numpy as np

from t5x_lite.objectives.objective import ExampleContext, Features
from t5x_lite.objectives.special_tokens import build_batch_features
from t5x_lite.objectives.supervised import Pooled, Record, TaskTokenizer
from t5x_lite.schema import Int, setting


class Choice(Pooled):
    """Predict which of several choices is right, by a softmax over their scores.

    Roles: `text` (or a list of texts), `choices` (a list of `count` texts) and `label` (index of the right one).

    Features: those of `build_text_features` for each choice, `[count, seq_len]`; `targets` int32 and `loss_weights`
    float32, scalars.
    """

    name: ClassVar[str] = "choice"
    roles: ClassVar[tuple[str, ...]] = ("text", "choices", "label")

    count: Int = setting(..., "choices of every record", ge=2)

    @property
    def texts(self) -> int:
        return self.count

    def check_record(self, record: Record) -> None:
        """Refuse a record with another number of choices than `count`, or whose label is none of them."""
        if len(record["choices"]) != self.count:
            raise ValueError(
                f"{len(record['choices'])} choices, label {record['label']}; expected {self.count} choices"
            )
        super().check_record(record)

    def examples(self, record: Record, tokenizer: TaskTokenizer, context: ExampleContext) -> list[Features]:
        self.check_record(record)
        text = tokenizer.encode(self._text(record))
        pairs = [[text, tokenizer.encode(str(choice))] for choice in record["choices"]]
        features = build_batch_features(pairs, context)
        features["targets"] = np.array(self.reference(record), np.int32)
        features["loss_weights"] = np.array(1, np.float32)
        return [features]

    def from_text(self, text: str, record: Record) -> int:
        """Return the index of the choice that the text is, or -1."""
        choices = [str(choice).strip() for choice in record["choices"]]
        answer = text.strip()
        if answer in choices:
            return choices.index(answer)
        return -1

    def to_text(self, record: Record) -> str:
        """Return the right choice."""
        return str(record["choices"][self.reference(record)])

    def reference(self, record: Record) -> int:
        """Return the index of the right choice.

        Raises:
            ValueError: the label is no index of a choice.
        """
        label = int(record["label"])
        if not 0 <= label < len(record["choices"]):
            raise ValueError(f"label {label} is none of the {len(record['choices'])} choices, which count from 0")
        return label

    def _text(self, record: Record) -> str:
        text = record["text"]
        if isinstance(text, list):
            return " ".join(map(str, text))
        return str(text)
