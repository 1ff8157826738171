"""The interface of an objective: `example` in NumPy on the host, `loss` on the device. No file, no JAX import here."""

from abc import abstractmethod
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, TypeAlias

import numpy as np

from t5x_lite.schema import Config

Features: TypeAlias = Mapping[str, np.ndarray]
"""What an objective gives a model: fixed shapes, see the objective's docstring; padding is `segment_ids == 0`."""

CrossEntropy: TypeAlias = Callable[[Callable[[Any], Any], Any, Any, Any], Any]
"""`models.losses.cross_entropy` with its settings filled in."""


class Objective(Config):
    """A training task. Its fields are its settings; its two methods stand side by side in one file."""

    name: ClassVar[str]
    families: ClassVar[tuple[str, ...]]

    @abstractmethod
    def row_length(self, seq_len: int) -> int:
        """Tokens of raw text that one example of `seq_len` takes."""

    def stride(self, seq_len: int) -> int:
        """Tokens of raw text from the start of one row to the start of the next."""
        return self.row_length(seq_len)

    @abstractmethod
    def example(self, tokens: np.ndarray, segments: np.ndarray, rng: np.random.Generator) -> Features:
        """One example from one row of the corpus.

        Args:
            tokens: int32 `[row_length]`, zero where padded.
            segments: int32 `[row_length]`, 1, 2, … per document of the row, 0 where padded.
            rng: a generator that depends on (seed, epoch, row) alone.
        """

    @abstractmethod
    def loss(self, model: Any, batch: Mapping[str, Any], key: Any, cross_entropy: CrossEntropy) -> Any:
        """Sums over the batch, as `models.losses.TokenLoss`.

        Args:
            model: a module of one of `families`.
            batch: the features of `example`, stacked.
            key: for dropout; None in evaluation.
            cross_entropy: `(model.logits, hidden, targets, weights)` to sums, with the run's z-loss and smoothing.
        """
