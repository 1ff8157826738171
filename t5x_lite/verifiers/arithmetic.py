"""The answer has the right number."""

import re
from decimal import Decimal
from typing import Literal

from t5x_lite.schema import setting
from t5x_lite.verifiers.verifier import Verifier

NUMBER = re.compile(r"(?<![\d.])-?(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)(?:\.\d+)?")
"""A number in digits, with or without a sign, commas between thousands, and decimals; 12-5 are 12 and 5."""


class Arithmetic(Verifier):
    """Reward 1 for an answer whose number equals that of the reference, however both are written; else 0.

    The number of a text is its last one, as GSM8K is scored (Cobbe et al. 2021, §2: the solution ends with the answer).
    """

    position: Literal["first", "last"] = setting("last", "number of the answer that counts, if it has several")

    def check_reference(self, reference: str) -> None:
        """Raise ValueError for a reference without a number."""
        if not numbers_in(reference):
            raise ValueError(f"`reference` {reference[:60]!r} has no number, which the verifier arithmetic compares")

    def score(self, prompt: str, answer: str, reference: str) -> float:
        """Return 1 or 0."""
        expected = numbers_in(reference)
        numbers = numbers_in(answer)
        if not numbers or not expected:
            return 0.0
        number = numbers[0] if self.position == "first" else numbers[-1]
        return float(number == expected[-1])


def numbers_in(text: str) -> list[Decimal]:
    """Return the numbers in a text, in order."""
    return [Decimal(match.replace(",", "")) for match in NUMBER.findall(text)]
