"""A label or a number for a text or a pair of texts (Devlin et al. 2019, §4.1; Radford et al. 2018, §3.3)."""

import math
from collections.abc import Mapping, Sequence
from typing import ClassVar

import numpy as np

from t5x_lite.models.config import ModelConfig
from t5x_lite.models.head_config import HeadActivation, HeadConfig
from t5x_lite.objectives.model_protocols import Batch, DropoutKey, LossSettings, LossSums, TaskModel
from t5x_lite.objectives.objective import ExampleContext, Features
from t5x_lite.objectives.special_tokens import build_text_features
from t5x_lite.objectives.supervised import Pooled, Record, TaskTokenizer, finite_number, label_index
from t5x_lite.schema import Strings, setting


class _TextLabel(Pooled):
    """Roles `text`, optionally `second`, and `label`.

    Features: those of `build_text_features`; `targets` (int32 for a class, float32 for a number) and `loss_weights`
    float32, scalars.
    """

    roles: ClassVar[tuple[str, ...]] = ("text", "label")

    transform: bool = setting(False, "a dense layer before the scores; BERT's pooler, where the run has one")
    activation: HeadActivation = setting("tanh", "activation of that layer; DeBERTa's is gelu")

    def head(self, model: ModelConfig) -> HeadConfig:
        layer = {"transform": self.transform, "activation": self.activation}
        return super().head(model).model_copy(update=layer)

    def examples(self, record: Record, tokenizer: TaskTokenizer, context: ExampleContext) -> list[Features]:
        texts = [tokenizer.encode(str(record[role])) for role in ("text", "second") if role in record]
        reference = self.reference(record)
        dtype = np.int32 if isinstance(reference, int) else np.float32
        features = {
            **build_text_features(texts, context),
            "targets": np.array(reference, dtype),
            "loss_weights": np.array(1, np.float32),
        }
        return [features]


class Classify(_TextLabel):
    """Predict one of `labels`, by cross-entropy."""

    name: ClassVar[str] = "classify"

    labels: Strings = setting(..., "names of the labels; the data may hold these or their numbers from 0", min_length=2)

    @property
    def label_names(self) -> tuple[str, ...]:
        return tuple(self.labels)

    @property
    def outputs(self) -> int:
        """Number of labels."""
        return len(self.labels)

    def from_text(self, text: str, record: Record) -> int:
        """Return the index of the label that the text is, or -1."""
        label = text.strip()
        if label in self.labels:
            return self.labels.index(label)
        return -1

    def to_text(self, record: Record) -> str:
        """Return the label's name."""
        return self.labels[self.reference(record)]

    def reference(self, record: Record) -> int:
        """Return the index of the label."""
        return label_index(record["label"], self.labels)


class Regress(_TextLabel):
    """Predict a number, by squared error (STS-B)."""

    name: ClassVar[str] = "regress"

    def loss(self, model: TaskModel, batch: Batch, key: DropoutKey, settings: LossSettings) -> Mapping[str, LossSums]:
        """Return the squared error."""
        from t5x_lite.models import losses

        predictions = self.scores(model, batch, key)["scores"][..., 0]
        return {"loss": losses.squared_error(predictions, batch["targets"], batch["loss_weights"])}

    def prediction(self, record: Record, examples: Sequence[Features], scores: Sequence[Features]) -> float:
        """Return the predicted number."""
        return float(scores[0]["scores"][0])

    def from_text(self, text: str, record: Record) -> float:
        """Return the number that the text is, or 0 if it is not a number."""
        try:
            number = float(text)
        except ValueError:
            return 0.0
        return number if math.isfinite(number) else 0.0

    def to_text(self, record: Record) -> str:
        """Return the number, rounded to the nearest fifth (Raffel et al. 2020, §2.4)."""
        return f"{round(self.reference(record) * 5) / 5:.1f}"

    def reference(self, record: Record) -> float:
        """Return the number."""
        return finite_number(record["label"])
