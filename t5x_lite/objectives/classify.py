"""A label or a number for a text or a pair of texts (Devlin et al. 2019, §4.1; Radford et al. 2018, §3.3)."""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np

from t5x_lite.models.config import HeadConfig, ModelConfig
from t5x_lite.objectives.objective import ExampleContext, Features, Losses
from t5x_lite.objectives.supervised import Coder, Pooled, Record, framed, label_index
from t5x_lite.schema import Strings, setting


class _OfText(Pooled):
    """Roles `text`, perhaps `second`, and `label`.

    Features: those of `framed`, `targets` and `loss_weights`, scalars.
    """

    roles: ClassVar[tuple[str, ...]] = ("text", "label")

    transform: bool = setting(False, "a dense tanh layer before the scores; BERT's pooler, where the run has one")

    def head(self, model: ModelConfig) -> HeadConfig:
        return super().head(model).model_copy(update={"transform": self.transform})

    def examples(self, record: Record, coder: Coder, context: ExampleContext) -> list[Features]:
        texts = [coder.encode(str(record[role])) for role in ("text", "second") if role in record]
        reference = self.reference(record)
        kind = np.int32 if isinstance(reference, int) else np.float32
        target = {"targets": np.asarray(reference, kind), "loss_weights": np.ones((), np.float32)}
        return [{**framed(texts, context), **target}]


class Classify(_OfText):
    """One of `labels`, by cross-entropy."""

    name: ClassVar[str] = "classify"

    labels: Strings = setting(..., "names of the labels; data may hold these or their numbers from 0", min_length=2)

    @property
    def outputs(self) -> int:
        """One a label."""
        return len(self.labels)

    def from_text(self, text: str, record: Record) -> int:
        """The number of the label that the text is, or -1."""
        return self.labels.index(text.strip()) if text.strip() in self.labels else -1

    def to_text(self, record: Record) -> str:
        """The label's name."""
        return self.labels[self.reference(record)]

    def reference(self, record: Record) -> int:
        """The number of the label."""
        return label_index(record["label"], self.labels)


class Regress(_OfText):
    """A number, by squared error (STS-B)."""

    name: ClassVar[str] = "regress"

    def loss(self, model: Any, batch: Mapping[str, Any], key: Any, losses: Losses) -> Mapping[str, Any]:
        """Squared error."""
        scores = self.scores(model, batch, key)["scores"][..., 0]
        return {"loss": losses.squared(scores, batch["targets"], batch["loss_weights"])}

    def prediction(self, record: Record, examples: Sequence[Features], scores: Sequence[Features]) -> float:
        """The number."""
        return float(scores[0]["scores"][0])

    def from_text(self, text: str, record: Record) -> float:
        """The number that the text is; 0 where it is none."""
        try:
            return float(text)
        except ValueError:
            return 0.0

    def to_text(self, record: Record) -> str:
        """The number to the nearest fifth (Raffel et al. 2020, §2.4)."""
        return f"{round(self.reference(record) * 5) / 5:.1f}"

    def reference(self, record: Record) -> float:
        """The number."""
        return float(record["label"])
