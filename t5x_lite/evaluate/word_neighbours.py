"""The nearest neighbours of a word in context: occurrences of words whose vectors have the largest cosine."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from jaxtyping import Float

from t5x_lite.errors import UserError
from t5x_lite.evaluate.embed import embed_tokens
from t5x_lite.evaluate.evaluation_model import EvaluationModel

Neighbours: TypeAlias = list[tuple[float, "Occurrence"]]
"""Occurrences with their cosines, best first."""
WORD = re.compile(r"\w+")


@dataclass(frozen=True)
class Occurrence:
    """A word of a text.

    Attributes:
        text: number of the text, from 0.
        start, stop: its characters.
        word: as it is written.
    """

    text: int
    start: int
    stop: int
    word: str


def find_neighbours(
    model: EvaluationModel, texts: Sequence[str], word: str, count: int, layer: int | Sequence[int] | None = None
) -> list[tuple[Occurrence, Neighbours]]:
    """Return the nearest other words of each occurrence of a word, with their cosines, best first.

    The vector of a word is the mean of the states of its tokens. Case does not matter for what counts as the word.
    Words beyond the end of what the model reads are left out.

    Raises:
        UserError: several words, a word that no text has, or a layer that does not exist.
    """
    if WORD.fullmatch(word) is None:
        raise UserError(f"--word {word!r}: is not one word: letters, digits and _")
    if not any(match[0].casefold() == word.casefold() for text in texts for match in WORD.finditer(text)):
        raise UserError(f"no text has the word {word!r}")
    occurrences, vectors = _embed_words(model, texts, layer)
    numbers = [n for n, occurrence in enumerate(occurrences) if occurrence.word.casefold() == word.casefold()]
    if not numbers:
        raise UserError(f"no text has the word {word!r} within the {model.window} tokens that the model reads")
    unit_vectors = vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
    neighbours = []
    for number in numbers:
        cosines = unit_vectors @ unit_vectors[number]
        order = [other for other in np.argsort(-cosines, kind="stable").tolist() if other != number]
        nearest = [(float(cosines[other]), occurrences[other]) for other in order[:count]]
        neighbours.append((occurrences[number], nearest))
    return neighbours


def _embed_words(
    model: EvaluationModel, texts: Sequence[str], layer: int | Sequence[int] | None
) -> tuple[list[Occurrence], Float[np.ndarray, "words d"]]:
    occurrences = []
    vectors = []
    for number, (text, embedded) in enumerate(zip(texts, embed_tokens(model, texts, layer), strict=True)):
        offsets = embedded.offsets
        for match in WORD.finditer(text):
            start, stop = match.span()
            is_part = (offsets[:, 0] < stop) & (offsets[:, 1] > start)
            if is_part.any():
                occurrences.append(Occurrence(number, start, stop, match[0]))
                vectors.append(embedded.states[is_part].mean(0))
    if not vectors:
        return [], np.zeros((0, 1), np.float32)
    return occurrences, np.stack(vectors)


def print_neighbours(texts: Sequence[str], neighbours: Sequence[tuple[Occurrence, Neighbours]]) -> None:
    """Print each occurrence and its neighbours, the words in brackets in their lines."""
    for occurrence, nearest in neighbours:
        print(_in_brackets(texts, occurrence))
        for cosine, other in nearest:
            print(f"  {cosine:.4f}  text {other.text + 1}: {_in_brackets(texts, other)}")


def _in_brackets(texts: Sequence[str], occurrence: Occurrence) -> str:
    text = texts[occurrence.text]
    return f"{text[: occurrence.start]}[{occurrence.word}]{text[occurrence.stop :]}"
