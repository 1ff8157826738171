"""Sentence pairs against the programs of BERT and ALBERT: the exact distribution over all random choices.

Both draw from a generator whose every choice is enumerated, so that the probability of each pair is a fraction.
"""

from collections import defaultdict
from collections.abc import Callable
from fractions import Fraction
from typing import Literal, TypeAlias

import numpy as np
import pytest

from t5x_lite.objectives.objective import TokenRow
from t5x_lite.objectives.sentence_pairs import draw_sentence_pair
from tests.objectives.vocabulary import vocabulary

Sentences: TypeAlias = list[list[int]]
Pair: TypeAlias = tuple[tuple[int, ...], tuple[int, ...], int]
"""Two texts and their label."""
Kind: TypeAlias = Literal["next", "order"]


class UnknownChoice(Exception):
    """The script ends before a choice of so many outcomes."""


class Choices:
    """A generator that follows a script, for NumPy's methods and for those of Python's `random`."""

    def __init__(self, script: tuple[int, ...]) -> None:
        self.script = list(script)
        self.probability = Fraction(1)

    def choose(self, outcomes: int) -> int:
        if not self.script:
            raise UnknownChoice(outcomes)
        self.probability /= outcomes
        return self.script.pop(0)

    def random(self) -> float:
        """Return a number below or above one half, the only threshold of these tests."""
        return (0.25, 0.75)[self.choose(2)]

    def integers(self, low: int, high: int | None = None) -> int:
        if high is None:
            return self.choose(low)
        return low + self.choose(high - low)

    def randint(self, low: int, high: int) -> int:
        return low + self.choose(high - low + 1)


def distribution(draw: Callable[[Choices], Pair]) -> dict[Pair, Fraction]:
    """Return the probability of each result of a function of a generator."""
    probabilities: dict[Pair, Fraction] = defaultdict(Fraction)
    scripts: list[tuple[int, ...]] = [()]
    while scripts:
        script = scripts.pop()
        choices = Choices(script)
        try:
            outcome = draw(choices)
        except UnknownChoice as unknown:
            scripts += [(*script, outcome) for outcome in range(unknown.args[0])]
        else:
            probabilities[outcome] += choices.probability
    assert sum(probabilities.values()) == 1
    return probabilities


def published_pair(document: Sentences, other: Sentences, room: int, kind: Kind, rng: Choices) -> Pair:
    """Return the first pair of `create_instances_from_document` of a document, where `other` is the random document.

    With `order` it is that of ALBERT's program without `random_next_sentence`. The share of short pairs is one half.
    """
    target_length = room
    if rng.random() < 0.5:
        target_length = rng.randint(2, room)
    chunk: Sentences = []
    for sentence in document:
        chunk.append(sentence)
        if sum(map(len, chunk)) >= target_length:
            break
    a_end = 1
    if len(chunk) >= 2:
        a_end = rng.randint(1, len(chunk) - 1)
    tokens_a = [token for sentence in chunk[:a_end] for token in sentence]
    tokens_b: list[int] = []
    label = 0
    if len(chunk) == 1 or (kind == "next" and rng.random() < 0.5):
        label = 1
        start = rng.randint(0, len(other) - 1)
        for sentence in other[start:]:
            tokens_b.extend(sentence)
            if len(tokens_b) >= target_length - len(tokens_a):
                break
    else:
        tokens_b = [token for sentence in chunk[a_end:] for token in sentence]
        if kind == "order" and rng.random() < 0.5:
            label = 1
            tokens_a, tokens_b = tokens_b, tokens_a
    while len(tokens_a) + len(tokens_b) > room:
        longer = tokens_a if len(tokens_a) > len(tokens_b) else tokens_b
        if rng.random() < 0.5:
            del longer[0]
        else:
            longer.pop()
    return tuple(tokens_a), tuple(tokens_b), label


def document(first: int, *lengths: int) -> Sentences:
    """Return sentences of these lengths, whose tokens all differ."""
    sentences = []
    for length in lengths:
        sentences.append(list(range(first, first + length)))
        first += length
    return sentences


def token_row(sentences: Sentences) -> TokenRow:
    tokens = np.array([token for sentence in sentences for token in sentence], np.int32)
    parts = np.repeat(np.arange(len(sentences)), [len(sentence) for sentence in sentences])
    return TokenRow(tokens, np.ones(len(tokens), np.int32), parts)


@pytest.mark.parametrize("kind", ["next", "order"])
@pytest.mark.parametrize(
    ("lengths", "other_lengths"), [((2, 1, 3), (2, 2)), ((4,), (1, 2, 3)), ((1, 1), (5,)), ((6,), (4, 4))]
)
def test_pairs_have_the_probabilities_of_the_published_programs(
    lengths: tuple[int, ...], other_lengths: tuple[int, ...], kind: Kind
) -> None:
    room = 6
    text, other = document(10, *lengths), document(50, *other_lengths)
    row = TokenRow(token_row(text).tokens, token_row(text).segments, token_row(text).parts, token_row(other))

    def ours(rng: Choices) -> Pair:
        pair = draw_sentence_pair(row, vocabulary(), room=room, kind=kind, short_share=0.5, rng=rng)
        return tuple(pair.first.tolist()), tuple(pair.second.tolist()), pair.label

    def theirs(rng: Choices) -> Pair:
        return published_pair(text, other, room, kind, rng)

    probabilities = distribution(ours)
    assert probabilities == distribution(theirs)
    unrelated = sum(share for (*_, label), share in probabilities.items() if label)
    if len(lengths) == 1:
        assert unrelated == 1
