"""The interface of a verifier: from a prompt, a sampled answer and a reference to a reward."""

from abc import abstractmethod
from typing import ClassVar

from t5x_lite.schema import Config


class Verifier(Config):
    """A reward that a program computes. Its fields are its settings.

    A verifier is one file: a class of this kind and an entry in `VERIFIERS`. It runs on the host. Every process of a
    job calls it on all answers, so it must return the same number everywhere and every time.

    Class attributes:
        needs_reference: every record must have a `reference`.
    """

    needs_reference: ClassVar[bool] = True

    def check_reference(self, reference: str) -> None:
        """Raise ValueError for a reference that no answer can agree with."""

    @abstractmethod
    def score(self, prompt: str, answer: str, reference: str) -> float:
        """Return the reward of an answer, a finite number.

        Args:
            prompt: text of the prompt, as its tokens decode.
            answer: text of the answer, without the end-of-text token.
            reference: the reference of the record; empty if it has none.
        """
