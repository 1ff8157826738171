"""One of several continuations: each is scored beside the text, softmax over them (Radford et al. 2018, §3.3)."""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np

from t5x_lite.models.config import HeadConfig, ModelConfig
from t5x_lite.objectives.objective import Features, Losses, Task
from t5x_lite.objectives.supervised import Coder, Pool, Record, Supervised, framed, pooled, pooling
from t5x_lite.schema import Int, setting


class Choice(Supervised):
    """Roles `text` (or a list of them), `choices` (a list of `count` texts) and `label` (the right one's number).

    Features: those of `framed` for each choice, `[count, seq_len]`; `targets`, `loss_weights`, scalars.
    """

    name: ClassVar[str] = "choice"
    roles: ClassVar[tuple[str, ...]] = ("text", "choices", "label")

    count: Int = setting(..., "choices of every record", ge=2)
    pool: Pool = setting("auto", "whose states; see `classify`")

    def head(self, model: ModelConfig) -> HeadConfig:
        """One score a choice."""
        return HeadConfig(outputs=1, pool=pooling(self.pool, model))

    def examples(self, record: Record, coder: Coder, task: Task) -> list[Features]:
        """See `Supervised.examples`."""
        if len(record["choices"]) != self.count or not 0 <= int(record["label"]) < self.count:
            raise ValueError(
                f"{len(record['choices'])} choices, label {record['label']}; expected {self.count} choices"
            )
        told = record["text"]
        text = coder.encode(" ".join(map(str, told)) if isinstance(told, list) else str(told))
        rows = [framed([text, coder.encode(str(choice))], task) for choice in record["choices"]]
        both = {name: np.stack([row[name] for row in rows]) for name in rows[0]}
        return [{**both, "targets": np.asarray(record["label"], np.int32), "loss_weights": np.ones((), np.float32)}]

    def _scored(self, model: Any, batch: Mapping[str, Any], key: Any) -> Any:
        return model.head(pooled(model, batch, key), key).reshape(-1, self.count)

    def loss(self, model: Any, batch: Mapping[str, Any], key: Any, losses: Losses) -> Mapping[str, Any]:
        """Cross-entropy over the choices."""
        return {"loss": losses.classes(self._scored(model, batch, key), batch["targets"], batch["loss_weights"])}

    def scores(self, model: Any, batch: Mapping[str, Any]) -> Mapping[str, Any]:
        """See `Supervised.scores`."""
        return {"scores": self._scored(model, batch, None)}

    def prediction(
        self, record: Record, examples: Sequence[Features], scores: Sequence[Mapping[str, np.ndarray]]
    ) -> int:
        """The best choice's number."""
        return int(scores[0]["scores"].argmax())

    def from_text(self, text: str, record: Record) -> int:
        """The number of the choice that the text is, or -1."""
        choices = [str(choice).strip() for choice in record["choices"]]
        return choices.index(text.strip()) if text.strip() in choices else -1

    def to_text(self, record: Record) -> str:
        """The right choice."""
        return str(record["choices"][int(record["label"])])

    def reference(self, record: Record) -> int:
        """The right choice's number."""
        return int(record["label"])
