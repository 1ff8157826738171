"""The answer equals the reference."""

from t5x_lite.schema import setting
from t5x_lite.verifiers.verifier import Verifier


class ExactMatch(Verifier):
    """Reward 1 for an answer that equals the reference, without the space around both; else 0."""

    ignore_case: bool = setting(False, "compare without case")

    def score(self, prompt: str, answer: str, reference: str) -> float:
        """Return 1 or 0."""
        answer = answer.strip()
        reference = reference.strip()
        if self.ignore_case:
            answer = answer.casefold()
            reference = reference.casefold()
        return float(answer == reference)
