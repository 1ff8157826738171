"""Pairs of sentences for BERT's and ALBERT's second objective.

Devlin et al. 2019, appendix A.2, and BERT's create_pretraining_data; Lan et al. 2020, §3.1.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from t5x_lite.objectives.objective import TokenRow, Vocabulary


@dataclass(frozen=True)
class SentencePair:
    """Two texts and their label.

    Attributes:
        first: int32 token ids; empty if the row holds no sentence.
        second: int32 token ids.
        label: 1 if `second` does not follow `first` in the text.
    """

    first: np.ndarray
    second: np.ndarray
    label: int


def draw_sentence_pair(
    row: TokenRow,
    vocabulary: Vocabulary,
    *,
    room: int,
    kind: Literal["next", "order"],
    short_share: float,
    rng: np.random.Generator,
) -> SentencePair:
    """Divide the sentences of a row into two texts, as BERT's create_pretraining_data does.

    Args:
        row: whole sentences of one document; its `second_sentence` has those of another.
        vocabulary: says which token ends a document.
        room: the largest number of tokens in both texts together.
        kind: with `next`, half of the second texts are of the other document; with `order`, half of the pairs are
            swapped.
        short_share: share of pairs of a random shorter length.
        rng: source of all random choices.
    """
    assert row.second_sentence is not None
    empty = np.zeros(0, np.int32)
    target_length = room
    if rng.random() < short_share:
        target_length = int(rng.integers(2, room + 1))
    sentences = _first_sentences(_split_sentences(row, vocabulary), target_length)
    if not sentences:
        return SentencePair(empty, empty, label=0)

    split = 1
    if len(sentences) > 1:
        split = int(rng.integers(1, len(sentences)))
    first = np.concatenate(sentences[:split])
    second = np.concatenate([empty, *sentences[split:]])

    other_sentences = _split_sentences(row.second_sentence, vocabulary)
    is_unrelated = False
    if other_sentences:
        is_unrelated = len(sentences) == 1 or (kind == "next" and rng.random() < 0.5)
    if is_unrelated:
        other_sentences = other_sentences[int(rng.integers(len(other_sentences))) :]
        chosen = _first_sentences(other_sentences, target_length - len(first))
        second = np.concatenate(chosen or other_sentences[:1])

    is_swapped = not is_unrelated and kind == "order" and rng.random() < 0.5
    if is_swapped:
        first, second = second, first
    first, second = _shorten(first, second, room, rng)
    return SentencePair(first, second, label=int(is_unrelated or is_swapped))


def _split_sentences(row: TokenRow, vocabulary: Vocabulary) -> list[np.ndarray]:
    """Return the sentences of a row of one document, without the EOS that ends it."""
    is_text = row.segments > 0
    if vocabulary.eos is not None:
        is_text &= row.tokens != vocabulary.eos
    tokens = row.tokens[is_text]
    parts = row.parts[is_text]
    if not len(tokens):
        return []
    return np.split(tokens, np.flatnonzero(np.diff(parts)) + 1)


def _first_sentences(sentences: Sequence[np.ndarray], length: int) -> list[np.ndarray]:
    """Return the fewest sentences from the first on that have `length` tokens together, or all of them."""
    if length <= 0:
        return []
    total_lengths = np.cumsum([len(sentence) for sentence in sentences])
    count = int(np.searchsorted(total_lengths, length)) + 1
    return list(sentences[:count])


def _shorten(
    first: np.ndarray, second: np.ndarray, room: int, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Take tokens off the longer text, from its front or its back at random, until both fit."""
    texts = [first, second]
    sizes = [len(first), len(second)]
    fronts = [0, 0]
    while sum(sizes) > room:
        longer = 0 if sizes[0] > sizes[1] else 1
        fronts[longer] += int(rng.random() < 0.5)
        sizes[longer] -= 1
    shortened = [text[front : front + size] for text, front, size in zip(texts, fronts, sizes, strict=True)]
    return shortened[0], shortened[1]
