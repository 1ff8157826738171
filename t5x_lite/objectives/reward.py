"""A reward from comparisons: the chosen answer scores above the rejected one (Ouyang et al. 2022, §3.5, eq. 1)."""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np

from t5x_lite.models.config import HeadConfig, ModelConfig
from t5x_lite.objectives.objective import Features, Losses, Task
from t5x_lite.objectives.supervised import Coder, Pool, Record, Supervised, framed, pooled, pooling
from t5x_lite.schema import setting


class Reward(Supervised):
    """Roles `chosen` and `rejected`, perhaps `text` before both.

    Features: those of `framed` for each, `[2, seq_len]`; `loss_weights`, a scalar.
    """

    name: ClassVar[str] = "reward"
    roles: ClassVar[tuple[str, ...]] = ("chosen", "rejected")

    pool: Pool = setting("auto", "whose states; see `classify`")

    def head(self, model: ModelConfig) -> HeadConfig:
        """One score a text."""
        return HeadConfig(outputs=1, pool=pooling(self.pool, model))

    def examples(self, record: Record, coder: Coder, task: Task) -> list[Features]:
        """See `Supervised.examples`."""
        before = [coder.encode(str(record["text"]))] if "text" in record else []
        rows = [framed([*before, coder.encode(str(record[side]))], task) for side in self.roles]
        return [
            {name: np.stack([row[name] for row in rows]) for name in rows[0]}
            | {"loss_weights": np.ones((), np.float32)}
        ]

    def _scored(self, model: Any, batch: Mapping[str, Any], key: Any) -> Any:
        return model.head(pooled(model, batch, key), key).reshape(-1, 2)

    def loss(self, model: Any, batch: Mapping[str, Any], key: Any, losses: Losses) -> Mapping[str, Any]:
        """-log sigmoid(chosen - rejected)."""
        scores = self._scored(model, batch, key)
        apart = scores[:, :1] - scores[:, 1:]
        return {"loss": losses.binary(apart, apart == apart, batch["loss_weights"][:, None])}  # noqa: PLR0124

    def scores(self, model: Any, batch: Mapping[str, Any]) -> Mapping[str, Any]:
        """See `Supervised.scores`."""
        return {"scores": self._scored(model, batch, None)}

    def prediction(
        self, record: Record, examples: Sequence[Features], scores: Sequence[Mapping[str, np.ndarray]]
    ) -> int:
        """1 where the chosen one scores higher."""
        return int(scores[0]["scores"][0] > scores[0]["scores"][1])

    def reference(self, record: Record) -> int:
        """The chosen one should."""
        return 1
