"""Pseudo-log-likelihood: the log-probability of each token of a text given all others (Salazar et al. 2020, eq. 1)."""

from collections.abc import Callable, Sequence
from typing import overload

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, PyTree

from t5x_lite.errors import UserError
from t5x_lite.evaluate.likelihood import TargetScore
from t5x_lite.evaluate.masked_tokens import TokenMasker
from t5x_lite.evaluate.words import WordStarts
from t5x_lite.models.spec import ModelSpec
from t5x_lite.objectives.features import Pair
from t5x_lite.parallel.batched_function import Features


class PseudoLikelihood:
    """Computes the sum of the log-probabilities of targets, each given the inputs and all other targets.

    One token is masked at a time, or with `word_starts` also the tokens to its right in the same word (Kauf & Ivanova
    2023, PLL-word-l2r).

    Args:
        masker: masks tokens of a text.
        apply_to_rows: applies a function to rows with the model's weights; see `LoadedModel.apply_to_rows`.
        word_starts: tells where words start; None masks single tokens.

    Attributes:
        truncated_inputs: the number of inputs so far that were too long and lost their first tokens.
    """

    def __init__(
        self,
        masker: TokenMasker,
        apply_to_rows: Callable[..., list[PyTree[np.ndarray]]],
        *,
        word_starts: WordStarts | None = None,
    ) -> None:
        self.masker = masker
        self.word_starts = word_starts
        self.truncated_inputs = 0
        self._apply_to_rows = apply_to_rows

    def tokens_read(self, pair: Pair) -> int:
        """Return the tokens that the model reads to score a pair."""
        inputs, targets = pair
        return len(inputs) + len(targets) + self._num_special_tokens

    def __call__(self, pairs: Sequence[Pair], window: int) -> list[TargetScore]:
        """Score each pair; `is_greedy` tells whether every target is the most likely token where it alone is masked.

        Args:
            pairs: inputs, which may be empty, and targets.
            window: tokens that the model reads. Inputs that are too long lose their first tokens.

        Raises:
            UserError: more targets than the window has room for.
        """
        rows = _MaskedRows(self.masker)
        for inputs, targets in pairs:
            tokens, first = self._join(inputs, targets, window)
            rows.add(tokens, first, self._stops(tokens))
        log_probs, is_argmax = self._score(rows)
        scores = []
        start = 0
        for _, targets in pairs:
            stop = start + len(targets)
            scores.append(TargetScore(float(log_probs[start:stop].sum()), bool(is_argmax[start:stop].all())))
            start = stop
        return scores

    @property
    def _num_special_tokens(self) -> int:
        return self.masker.template.size(1)

    def _join(
        self, inputs: Int[np.ndarray, "_"], targets: Int[np.ndarray, "_"], window: int
    ) -> tuple[Int[np.ndarray, "_"], int]:
        """Return the ids of inputs and targets, and the position of the first target."""
        room = window - self._num_special_tokens - len(targets)
        if room < 0:
            needed = f"{len(targets)} tokens to score and {self._num_special_tokens} special ones"
            raise UserError(f"{needed} are more than the window of {window}")
        if len(inputs) > room:
            self.truncated_inputs += 1
        shown_inputs = inputs[len(inputs) - min(len(inputs), room) :]
        return np.concatenate([shown_inputs, targets]).astype(np.int32), len(shown_inputs)

    def _stops(self, tokens: Int[np.ndarray, "l"]) -> Int[np.ndarray, "l"]:
        """Return for each token the end of the tokens that are masked with it."""
        following = np.arange(len(tokens)) + 1
        if self.word_starts is None:
            return following
        borders = np.append(np.flatnonzero(self.word_starts(tokens)), len(tokens))
        return borders[np.searchsorted(borders, following)]

    def _score(self, rows: "_MaskedRows") -> tuple[Float[np.ndarray, " rows"], Bool[np.ndarray, " rows"]]:
        results = self._apply_to_rows(_score_masked_tokens, rows, "scoring", self.masker)
        log_probs = np.array([log_prob for log_prob, _ in results], np.float64)
        is_argmax = np.array([is_argmax for _, is_argmax in results], bool)
        return log_probs, is_argmax


class _MaskedRows(Sequence[Features]):
    """The rows of all masked tokens. Each is built when it is read: all together would take much memory."""

    def __init__(self, masker: TokenMasker) -> None:
        self.masker = masker
        self._texts: list[np.ndarray] = []
        self._rows: list[tuple[int, int, int]] = []

    def add(self, tokens: Int[np.ndarray, "l"], first: int, stops: Int[np.ndarray, "l"]) -> None:
        """Add a row for each token from `first` on, in which the tokens up to its stop are masked."""
        text = len(self._texts)
        self._texts.append(tokens)
        for start in range(first, len(tokens)):
            self._rows.append((text, start, int(stops[start])))

    def __len__(self) -> int:
        return len(self._rows)

    @overload
    def __getitem__(self, index: int) -> Features: ...

    @overload
    def __getitem__(self, index: slice) -> Sequence[Features]: ...

    def __getitem__(self, index: int | slice) -> Features | Sequence[Features]:
        if isinstance(index, slice):
            return [self[number] for number in range(*index.indices(len(self)))]
        text, start, stop = self._rows[index]
        tokens = self._texts[text]
        features = self.masker.features(tokens, slice(start, stop))
        return {**features, "target": tokens[start : start + 1]}


def _score_masked_tokens(
    spec: ModelSpec, masker: TokenMasker, params: PyTree[Array], batch: dict[str, Array]
) -> tuple[Float[Array, " b"], Bool[Array, " b"]]:
    """Return the log-probability of each row's masked token, and whether it is the most likely token."""
    logits = masker.logits(spec.model(params), batch)[:, 0]
    target = batch["target"][:, :1]
    log_probs = jnp.take_along_axis(jax.nn.log_softmax(logits), target, axis=-1)
    return log_probs[:, 0], logits.argmax(-1) == target[:, 0]
