"""A reward from comparisons: the chosen answer scores above the rejected one (Ouyang et al. 2022, §3.5, eq. 1)."""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from t5x_lite.objectives.objective import ExampleContext, Features, Losses
from t5x_lite.objectives.supervised import Coder, Pooled, Record, several


class Reward(Pooled):
    """Roles `chosen` and `rejected`, perhaps `text` before both.

    Features: those of `framed` for each, `[2, seq_len]`; `loss_weights`, a scalar.
    """

    name: ClassVar[str] = "reward"
    roles: ClassVar[tuple[str, ...]] = ("chosen", "rejected")
    texts: ClassVar[int] = 2

    def examples(self, record: Record, coder: Coder, context: ExampleContext) -> list[Features]:
        before = [coder.encode(str(record["text"]))] if "text" in record else []
        return [several([[*before, coder.encode(str(record[side]))] for side in self.roles], context)]

    def loss(self, model: Any, batch: Mapping[str, Any], key: Any, losses: Losses) -> Mapping[str, Any]:
        """-log sigmoid(chosen - rejected)."""
        scores, weights = self.scores(model, batch, key)["scores"], batch["loss_weights"][:, None]
        return {"loss": losses.binary(scores[:, :1] - scores[:, 1:], weights > 0, weights)}

    def prediction(self, record: Record, examples: Sequence[Features], scores: Sequence[Features]) -> int:
        """1 where the chosen one scores higher."""
        return int(scores[0]["scores"][0] > scores[0]["scores"][1])

    def reference(self, record: Record) -> int:
        """The chosen one should."""
        return 1
