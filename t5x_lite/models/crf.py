"""A linear-chain conditional random field over the tags of words (Lafferty et al. 2001; Huang et al. 2015)."""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from t5x_lite.models.losses import LossSums


def log_likelihood(
    scores: Float[Array, "b l c"],
    transitions: Float[Array, "c c"],
    tags: Int[Array, "b l"],
    is_word: Bool[Array, "b l"],
) -> Float[Array, "b"]:
    """Return the logarithm of the probability of each row's tags; 0 for a row without words.

    The score of tags is the sum of those of each word and of the transitions between neighbouring words. Tokens that
    are not the first of a word are passed over.

    Args:
        scores: of each tag at each token.
        transitions: score of a tag, the second axis, after another, the first.
        tags: the tags.
        is_word: the token is the first of a word.
    """
    first_is_next = ~(jnp.cumsum(is_word, axis=1) - is_word > 0)

    def step(
        carry: tuple[Float[Array, "b c"], Float[Array, "b"], Int[Array, "b"]], token: tuple[Array, ...]
    ) -> tuple[tuple[Array, Array, Array], None]:
        log_sums, total, last_tag = carry
        token_scores, tag, is_counted, is_first = token
        arriving = jax.nn.logsumexp(log_sums[:, :, None] + transitions, axis=1)
        new_sums = jnp.where(is_first[:, None], 0.0, arriving) + token_scores
        moved = jnp.where(is_first, 0.0, transitions[last_tag, tag])
        added = moved + jnp.take_along_axis(token_scores, tag[:, None], axis=1)[:, 0]
        log_sums = jnp.where(is_counted[:, None], new_sums, log_sums)
        return (log_sums, total + jnp.where(is_counted, added, 0.0), jnp.where(is_counted, tag, last_tag)), None

    rows, _, classes = scores.shape
    start = (jnp.zeros((rows, classes)), jnp.zeros(rows), jnp.zeros(rows, tags.dtype))
    by_token = tuple(jnp.moveaxis(array, 1, 0) for array in (scores, tags, is_word, first_is_next))
    (log_sums, total, _), _ = jax.lax.scan(step, start, by_token)
    return jnp.where(is_word.any(1), total - jax.nn.logsumexp(log_sums, axis=1), 0.0)


def tag_sequence_loss(
    scores: Float[Array, "b l c"],
    transitions: Float[Array, "c c"],
    tags: Int[Array, "b l"],
    weights: Float[Array, "b l"],
) -> LossSums:
    """Return the cross-entropy of the tags of all texts; the tags with the highest scores of their own are `correct`.

    Args:
        scores: see `log_likelihood`.
        transitions: see there.
        tags: the tags.
        weights: 1 for the first token of a word, else 0.
    """
    total = -log_likelihood(scores, transitions, tags, weights > 0).sum()
    correct = (weights * (scores.argmax(-1) == tags)).sum()
    return LossSums.of_loss(total, weights.sum(), correct)


def best_tags(scores: Float[np.ndarray, "w c"], transitions: Float[np.ndarray, "c c"]) -> list[int]:
    """Return the tags of the words of a text with the highest score (Viterbi 1967)."""
    if not len(scores):
        return []
    best = scores[0]
    origins = []
    for word_scores in scores[1:]:
        arriving = best[:, None] + transitions
        origins.append(arriving.argmax(0))
        best = arriving.max(0) + word_scores
    tags = [int(best.argmax())]
    for origin in reversed(origins):
        tags.append(int(origin[tags[-1]]))
    return tags[::-1]
