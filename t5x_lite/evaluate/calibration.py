"""Expected calibration error: how far confidence is from accuracy."""

import numpy as np
from jaxtyping import Bool, Float

BINS = 15
"""Bins of the expected calibration error (Guo et al. 2017, §4)."""


def calibration_error(
    confidence: Float[np.ndarray, "*draws n"], is_correct: Bool[np.ndarray, "*draws n"]
) -> Float[np.ndarray, "*draws"]:
    """Return the expected calibration error with bins of equal width (Guo et al. 2017, eq. 3).

    The share of a bin times the difference of its accuracy and its mean confidence is the sum of the differences of its
    answers over the number of all answers.

    Args:
        confidence: probability of each answer that was chosen, from 0 to 1.
        is_correct: whether the answer is right.
    """
    difference = is_correct - confidence
    bins = np.ceil(confidence * BINS)
    error = np.zeros(confidence.shape[:-1])
    for number in range(BINS + 1):
        error += np.abs(np.sum(difference, axis=-1, where=bins == number))
    return error / confidence.shape[-1]
