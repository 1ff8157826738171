"""The interface of deduplication: documents that repeat an earlier one are dropped."""

from abc import abstractmethod
from typing import Protocol

import numpy as np
from jaxtyping import Bool, UInt32

from t5x_lite.schema import Config


class DuplicateIndex(Protocol):
    """The documents that were retained so far."""

    def add(self, fingerprints: UInt32[np.ndarray, "documents numbers"]) -> Bool[np.ndarray, "documents"]:
        """Return which documents repeat an earlier one, in this call or before, and add the others."""


class Deduplication(Config):
    """A kind of deduplication."""

    @abstractmethod
    def fingerprint(self, text: str) -> UInt32[np.ndarray, "numbers"]:
        """Return the numbers by which a document is compared with others; equally many for all documents."""

    @property
    @abstractmethod
    def numbers(self) -> int:
        """Length of a fingerprint."""

    @abstractmethod
    def build_index(self) -> DuplicateIndex:
        """Return an index without documents."""

    def check(self) -> None:
        """Check that a library that it needs is installed.

        Raises:
            UserError: it is not.
        """
