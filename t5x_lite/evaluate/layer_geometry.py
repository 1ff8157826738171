"""Measures of how contextual the states of a layer are (Ethayarajh 2019, §3.2 and §3.3)."""

import numpy as np
from jaxtyping import Float, Integer

FEWEST_CONTEXTS = 5
"""Texts that a word must occur in to count (Ethayarajh 2019, §3.1)."""
SMALLEST_NORM = 1e-12


def anisotropy(states: Float[np.ndarray, "tokens d"], texts: Integer[np.ndarray, "tokens"]) -> float:
    """Return the mean cosine of the states of two tokens, over all pairs of tokens of different texts.

    Args:
        states: of tokens.
        texts: number of the text of each token.
    """
    units = _unit_vectors(states)
    counts = np.bincount(texts)
    sums = np.zeros((len(counts), states.shape[1]))
    np.add.at(sums, texts, units)
    within_texts = np.square(sums).sum()
    pairs = len(states) ** 2 - np.square(counts).sum()
    if not pairs:
        return float("nan")
    return float((np.square(units.sum(0)).sum() - within_texts) / pairs)


def self_similarity(
    states: Float[np.ndarray, "tokens d"],
    words: Integer[np.ndarray, "tokens"],
    texts: Integer[np.ndarray, "tokens"],
    fewest_contexts: int = FEWEST_CONTEXTS,
) -> float:
    """Return the mean cosine of a word's states in two contexts, over all pairs, and then over words (definition 1).

    A context is a text; of a word that a text has several times the first counts. NaN if no word is in enough texts.

    Args:
        states: of tokens.
        words: the word that each token is, such as its id.
        texts: number of the text of each token.
        fewest_contexts: texts that a word must be in, at least 2.
    """
    _, first_places = np.unique(np.stack([words, texts]), axis=1, return_index=True)
    units = _unit_vectors(states[first_places])
    numbers, of_word, counts = np.unique(words[first_places], return_inverse=True, return_counts=True)
    sums = np.zeros((len(numbers), states.shape[1]))
    np.add.at(sums, of_word, units)
    is_frequent = counts >= max(fewest_contexts, 2)
    if not is_frequent.any():
        return float("nan")
    contexts = counts[is_frequent]
    cosines = np.square(sums[is_frequent]).sum(-1) - contexts
    return float((cosines / (contexts * (contexts - 1))).mean())


def _unit_vectors(states: Float[np.ndarray, "n d"]) -> Float[np.ndarray, "n d"]:
    """Return the states scaled to length one, in float64."""
    exact = states.astype(np.float64)
    norms = np.linalg.norm(exact, axis=-1, keepdims=True)
    return exact / np.maximum(norms, SMALLEST_NORM)
