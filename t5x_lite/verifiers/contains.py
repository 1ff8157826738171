"""The answer contains the reference."""

from t5x_lite.schema import setting
from t5x_lite.verifiers.verifier import Verifier


class Contains(Verifier):
    """Reward 1 for an answer in which the reference occurs, without the space around it; else 0."""

    ignore_case: bool = setting(False, "compare without case")

    def score(self, prompt: str, answer: str, reference: str) -> float:
        """Return 1 or 0."""
        reference = reference.strip()
        if self.ignore_case:
            answer = answer.casefold()
            reference = reference.casefold()
        return float(reference in answer)
