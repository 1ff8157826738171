"""Comparisons of two answers, of which the first one is better."""

from collections.abc import Sequence

from t5x_lite.objectives.objective import Features
from t5x_lite.objectives.supervised import Record


class Comparison:
    """Parts of objectives on comparisons: the answer with the higher score or reward is the prediction."""

    def check_record(self, record: Record) -> None:
        """Refuse answers that are equal.

        Raises:
            ValueError: they are; the caller names the record.
        """
        if record["chosen"] == record["rejected"]:
            raise ValueError("`chosen` and `rejected` are equal, so that nothing is learnt; remove the comparison")

    def prediction(self, record: Record, examples: Sequence[Features], scores: Sequence[Features]) -> int:
        """Return 1 if the chosen answer scores higher, else 0."""
        return int(self.margin(scores) > 0)

    def margin(self, scores: Sequence[Features]) -> float:
        """Return the difference between the scores of the chosen and the rejected answer."""
        chosen, rejected = scores[0]["scores"].tolist()
        return chosen - rejected

    def reference(self, record: Record) -> int:
        """Return 1: the chosen answer should score higher."""
        return 1
