"""Choose which tokens of a text to mask: single tokens, whole words, or spans of whole words.

A choice is a list of groups. The positions of one group are masked together.
"""

from collections.abc import Sequence
from typing import TypeAlias

import numpy as np
from jaxtyping import Bool, Int

from t5x_lite.models.config import SPAN_POSITIONS
from t5x_lite.objectives.features import pad
from t5x_lite.objectives.objective import Vocabulary

LONGEST_SPAN = 10
"""Largest number of words in a SpanBERT span (Joshi et al. 2020, §3.1)."""
SPAN_CONTINUES = 0.8
"""One minus the p = 0.2 of the geometric length of a SpanBERT span (Joshi et al. 2020, §3.1)."""

Groups: TypeAlias = list[np.ndarray]
"""Ascending positions of the tokens of each group, as `[tokens]` integers."""


def words_of_row(candidates: Int[np.ndarray, "n"], tokens: Int[np.ndarray, "l"], vocabulary: Vocabulary) -> Groups:
    """Divide the candidate positions of a row into the words of its vocabulary."""
    begins_word = vocabulary.begins_word[tokens[candidates]]
    if vocabulary.ends_word is not None:
        begins_word[1:] |= vocabulary.ends_word[tokens[candidates[:-1]]]
    return group_by_word(candidates, begins_word)


def group_by_word(candidates: Int[np.ndarray, "n"], begins_word: Bool[np.ndarray, "n"]) -> Groups:
    """Divide the candidate positions into words. A gap between two candidates also begins a word."""
    if not len(candidates):
        return []
    is_start = begins_word | (np.diff(candidates, prepend=-2) > 1)
    return np.split(candidates, np.flatnonzero(is_start)[1:])


def choose_tokens(candidates: Int[np.ndarray, "n"], budget: int, rng: np.random.Generator) -> Groups:
    """Choose `budget` of the candidate positions, as one group in random order."""
    if not len(candidates):
        return []
    return [rng.permutation(candidates)[:budget]]


def choose_words(words: Sequence[np.ndarray], budget: int, rng: np.random.Generator) -> Groups:
    """Choose words at random; one that would exceed `budget` tokens in all is skipped (BERT's code).

    Words that are longer than the budget could never be chosen, and a row may have no others, as in text without
    spaces. Single tokens of theirs take what is left of the budget.
    """
    chosen = []
    count = 0
    for number in rng.permutation(len(words)):
        word = words[number]
        if count + len(word) <= budget:
            chosen.append(word)
            count += len(word)
    too_long = [word for word in words if len(word) > budget]
    if count < budget and too_long:
        chosen += choose_tokens(np.concatenate(too_long), budget - count, rng)
    return chosen


def cut_long_words(words: Sequence[np.ndarray], longest: int) -> Groups:
    """Return the words, with those of more than `longest` tokens cut into single tokens."""
    cut: Groups = []
    for word in words:
        if len(word) > longest:
            cut += np.split(word, len(word))
        else:
            cut.append(word)
    return cut


def choose_spans(words: Sequence[np.ndarray], budget: int, rng: np.random.Generator) -> Groups:
    """Choose spans of whole words until `budget` tokens are spent (Joshi et al. 2020, §3.1).

    Words that are longer than the budget are cut into single tokens, as no span could have them. Lengths in words are
    geometric and clipped; places are uniform. If no place is left for a length, shorter spans are
    tried. No two spans touch, so that the tokens next to a span are shown.
    """
    words = cut_long_words(words, budget)
    ends = np.array([word[-1] for word in words], np.int64)
    starts = np.array([word[0] for word in words], np.int64)
    # Counts the special tokens before each word: a span has none inside.
    gaps = np.zeros(0, np.int64)
    if len(words):
        gaps = np.concatenate([[0], np.cumsum(starts[1:] - ends[:-1] > 1)])
    # Marks chosen words, with one unmarked entry on each side.
    is_chosen = np.zeros(len(words) + 2, np.int64)
    spans: Groups = []
    remaining = budget
    while remaining > 0:
        length = _draw_span_length(rng)
        candidates = np.zeros(0, np.int64)
        while length and not len(candidates):
            first = np.arange(len(words) - length + 1)
            last = first + length - 1
            chosen_before = np.concatenate([[0], np.cumsum(is_chosen)])
            is_apart = chosen_before[first + length + 2] == chosen_before[first]
            fits = (ends[last] - starts[first] < remaining) & (gaps[last] == gaps[first])
            candidates = first[is_apart & fits]
            if not len(candidates):
                length -= 1
        if not length:
            break
        start = int(rng.choice(candidates))
        span = np.concatenate(words[start : start + length])
        is_chosen[start + 1 : start + length + 1] = 1
        spans.append(span)
        remaining -= len(span)
    return spans


def _draw_span_length(rng: np.random.Generator) -> int:
    shares = SPAN_CONTINUES ** np.arange(LONGEST_SPAN)
    cumulative = np.cumsum(shares / shares.sum())
    return int(np.searchsorted(cumulative, rng.random() * (1 - 1e-12), side="right")) + 1


def boundary_features(groups: Sequence[np.ndarray], length: int) -> dict[str, np.ndarray]:
    """Return the inputs of the span-boundary objective for each masked token, in order of position.

    Returns:
        `span_left` and `span_right`, the positions next to the token's span; `span_places`, the token's position in
        the span; `span_weights`, 0 for tokens too far into a span. All `[length]`, padded.
    """
    left = [np.full(len(group), group[0] - 1) for group in groups]
    right = [np.full(len(group), group[-1] + 1) for group in groups]
    places = [np.arange(len(group)) for group in groups]
    order = np.argsort(_concatenate(groups))
    place = _concatenate(places)[order]
    return {
        "span_left": pad(_concatenate(left)[order], length),
        "span_right": pad(_concatenate(right)[order], length),
        "span_places": pad(np.minimum(place, SPAN_POSITIONS - 1), length),
        "span_weights": pad(place < SPAN_POSITIONS, length).astype(np.float32),
    }


def _concatenate(arrays: Sequence[np.ndarray]) -> Int[np.ndarray, "_"]:
    return np.concatenate([np.zeros(0, np.int64), *arrays])
