"""A reward model: the chosen answer scores above the rejected one (Ouyang et al. 2022, §3.5, eq. 1)."""

from collections.abc import Collection, Mapping
from typing import ClassVar

import numpy as np

from t5x_lite.objectives.comparison import Comparison
from t5x_lite.objectives.model_protocols import Batch, DropoutKey, LossSettings, LossSums, TaskModel
from t5x_lite.objectives.objective import ExampleContext, Features
from t5x_lite.objectives.special_tokens import build_batch_features
from t5x_lite.objectives.supervised import Pooled, Record, TaskTokenizer


class Reward(Comparison, Pooled):
    """Predict a higher score for the better of two answers.

    Roles: `chosen` and `rejected`, optionally `text` before both.

    Features: those of `build_text_features` for each answer, `[2, seq_len]`; `loss_weights`, a float32 scalar.
    """

    name: ClassVar[str] = "reward"
    roles: ClassVar[tuple[str, ...]] = ("chosen", "rejected")
    texts: ClassVar[int] = 2
    checks_records: ClassVar[bool] = True

    def check_columns(self, names: Collection[str], read: Collection[object]) -> None:
        """Refuse a prompt that the task does not read: the answers would be judged without it."""
        if "prompt" in names and "prompt" not in read:
            raise ValueError(
                "`prompt` is not read by the task; set tasks=reward_prompt, or put it before both answers and remove it"
            )

    def check_record(self, record: Record) -> None:
        """Refuse answers that are no texts, and answers that are equal."""
        for role in self.roles:
            if not isinstance(record[role], str):
                raise ValueError(f"`{role}` is {type(record[role]).__name__}, expected a text")
        super().check_record(record)

    def examples(self, record: Record, tokenizer: TaskTokenizer, context: ExampleContext) -> list[Features]:
        prompt = []
        if "text" in record:
            prompt.append(tokenizer.encode(str(record["text"])))
        answers = [[*prompt, tokenizer.encode(str(record[role]))] for role in self.roles]
        features = build_batch_features(answers, context)
        features["loss_weights"] = np.array(1, np.float32)
        return [features]

    def loss(self, model: TaskModel, batch: Batch, key: DropoutKey, settings: LossSettings) -> Mapping[str, LossSums]:
        """Return -log sigmoid(chosen - rejected)."""
        from t5x_lite.models import losses

        scores = self.scores(model, batch, key)["scores"]
        margin = scores[:, :1] - scores[:, 1:]
        weights = batch["loss_weights"][:, None]
        return {"loss": losses.binary_cross_entropy(margin, weights > 0, weights)}
