"""Losses of models as weighted sums over a batch: over a vocabulary, a few classes, pairs, numbers and vectors."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Self, TypeVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Shaped

from t5x_lite.integers import ceil_div
from t5x_lite.models.chunked_loss import sum_over_chunks
from t5x_lite.models.sharding import GPU_PLATFORMS, constrain
from t5x_lite.models.sharding import target_platform as current_platform
from t5x_lite.models.vectors import MASKED_SCORE, normalize

LOGITS_BYTES = 64 * 2**20
"""Logits above this size per device are computed in chunks; below it one product is faster."""
TPU_LOGITS_BYTES = 256 * 2**20
"""The limit on a TPU, where each chunk reads and writes the float32 gradient of the output matrix. By the compiler's
estimate the step of GPT-3 350M on v5e takes 7 % longer with 64 MiB, and as long with 1 GiB."""
GPU_LOGITS_BYTES = 8 * 2**30
"""The limit on a GPU, which has the memory. The small products of chunks are slow: GPT-2 124M on an H100 spent 80 of
183 ms a step on 128 chunks."""
Arrays = TypeVar("Arrays", bound=tuple[Array, ...])
"""Several arrays."""
Values = TypeVar("Values")
"""An array of one value for each token, or a tree of such arrays."""


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class LossSums:
    """Weighted sums over the targets of one loss term. Sums of parts of a batch add up; divide by `weight` for means.

    Attributes:
        total: the value that is minimised, with label smoothing and z-loss.
        loss: the plain loss, in nats where it is a cross-entropy.
        z_loss: the part of `total` that is z-loss.
        correct: targets whose prediction is right; None if predictions are neither right nor wrong.
        weight: the sum of the weights.
    """

    total: Float[Array, ""]
    loss: Float[Array, ""]
    z_loss: Float[Array, ""]
    correct: Float[Array, ""] | None
    weight: Float[Array, ""]

    @classmethod
    def of_loss(cls, loss: Float[Array, ""], weight: Float[Array, ""], correct: Float[Array, ""] | None = None) -> Self:
        """Return the sums of a loss without z-loss."""
        return cls(total=loss, loss=loss, z_loss=jnp.zeros_like(loss), correct=correct, weight=weight)

    def scaled(self, factor: float) -> Self:
        """Multiply the contribution of this term to the loss by `factor`. Its metrics do not change."""
        return replace(self, total=factor * self.total)

    def __add__(self, other: "LossSums") -> "LossSums":
        return jax.tree.map(jnp.add, self, other)

    def means(self, name: str) -> dict[str, Float[Array, ""]]:
        """Return the metrics of the term `name`.

        They are `loss`, `accuracy` and `z_loss` for the term `loss`, and `x_loss` and `x_accuracy` for another term x;
        there is no accuracy of predictions that are neither right nor wrong.
        """
        weight = jnp.maximum(self.weight, 1.0)
        prefix = "" if name == "loss" else f"{name}_"
        metrics = {f"{prefix}loss": self.loss / weight}
        if self.correct is not None:
            metrics[f"{prefix}accuracy"] = self.correct / weight
        if name == "loss":
            metrics["z_loss"] = self.z_loss / weight
        return metrics


@dataclass(frozen=True)
class LossSettings:
    """The settings of a run that `token_cross_entropy` depends on.

    Attributes:
        vocab: size of the vocabulary.
        rows: rows of a batch that one device holds.
        chunks: `train.loss_chunks`; 0 chooses the number that keeps the logits of a device under `logits_limit`.
        z_loss: factor on log(Z)², where Z is the normaliser of the softmax.
        label_smoothing: share of the target distribution that is uniform over the vocabulary.
    """

    vocab: int
    rows: int = 1
    chunks: int = 0
    z_loss: float = 0.0
    label_smoothing: float = 0.0


def token_cross_entropy(
    logits: Callable[[Float[Array, "b l d"]], Float[Array, "b l v"]],
    states: Float[Array, "b l d"],
    targets: Int[Array, "b l"],
    weights: Float[Array, "b l"],
    settings: LossSettings,
) -> LossSums:
    """Return the weighted sums of -log softmax(logits(states))[target].

    With label smoothing ε the target is (1-ε)·one-hot + ε/v (Szegedy et al. 2016, §7). The z-loss `z_loss`·log(Z)²
    keeps the normaliser Z near one (Chowdhery et al. 2022, §5). If the logits are large they are computed for one chunk
    of the length at a time, together with their gradient; then gradients pass from `total` alone.
    """
    chunk_loss = partial(_cross_entropy, logits, z_loss=settings.z_loss, label_smoothing=settings.label_smoothing)
    states = constrain(states, "batch", "length", None)
    return token_loss_sums(chunk_loss, (states, targets, weights), settings)


def token_loss_sums(
    chunk_loss: Callable[..., LossSums], arrays: tuple[Shaped[Array, "b l *_"], ...], settings: LossSettings
) -> LossSums:
    """Return the sums of a loss over all tokens, in chunks of the length if the logits are large.

    In chunks, gradients pass from `total` alone, to the states and to the weights that `chunk_loss` closes over.

    Args:
        chunk_loss: returns the sums of some tokens of every array.
        arrays: states first, then targets, weights and whatever else no gradient is needed of.
        settings: decide the number of chunks.
    """
    _, length, *_ = arrays[0].shape
    chunks = _number_of_chunks(length, settings)
    if chunks == 1:
        return chunk_loss(*arrays)

    def loss_and_sums(*chunk: Array) -> tuple[Float[Array, ""], LossSums]:
        sums = chunk_loss(*chunk)
        return sums.total, sums

    states, *labels = _split_length(arrays, chunks)
    total, sums = sum_over_chunks(loss_and_sums, states, tuple(labels))
    return replace(sums, total=total)


def sequence_log_probabilities(
    logits: Callable[[Float[Array, "b l d"]], Float[Array, "b l v"]],
    states: Float[Array, "b l d"],
    targets: Int[Array, "b l"],
    weights: Float[Array, "b l"],
    settings: LossSettings,
) -> Float[Array, "b"]:
    """Return the weighted sum of log softmax(logits(states))[target] of each row.

    Large logits are computed in chunks; see `map_over_chunks`.
    """
    states = constrain(states, "batch", "length", None)

    def compute_chunk(states: Array, targets: Array) -> Float[Array, "b l"]:
        scores = logits(states)
        is_target = jnp.arange(scores.shape[-1]) == targets[..., None]
        return jnp.where(is_target, scores, 0).sum(-1) - jax.nn.logsumexp(scores, axis=-1)

    return jnp.sum(weights * map_over_chunks(compute_chunk, (states, targets), settings), axis=-1)


def token_log_probabilities(
    logits: Callable[[Float[Array, "b l d"]], Float[Array, "b l v"]],
    states: Float[Array, "b l d"],
    targets: Int[Array, "b l"],
    settings: LossSettings,
    temperature: float = 1.0,
) -> tuple[Float[Array, "b l"], Float[Array, "b l"]]:
    """Return log softmax(logits(states) / temperature)[target], and the entropy of the softmax, in nats.

    Large logits are computed in chunks; see `map_over_chunks`.
    """
    states = constrain(states, "batch", "length", None)

    def compute_chunk(states: Array, targets: Array) -> tuple[Float[Array, "b l"], Float[Array, "b l"]]:
        log_probabilities = jax.nn.log_softmax(logits(states) / temperature, axis=-1)
        is_target = jnp.arange(log_probabilities.shape[-1]) == targets[..., None]
        entropies = -jnp.sum(jnp.exp(log_probabilities) * log_probabilities, axis=-1)
        return jnp.where(is_target, log_probabilities, 0).sum(-1), entropies

    return map_over_chunks(compute_chunk, (states, targets), settings)


def map_over_chunks(
    function: Callable[..., Values], arrays: tuple[Shaped[Array, "b l *_"], ...], settings: LossSettings
) -> Values:
    """Return a value or several for each token, in chunks of the length if the logits are large.

    The gradient computes the logits of each chunk again.

    Args:
        function: returns `[batch, length]` arrays for some tokens of every array.
        arrays: such as states and targets.
        settings: decide the number of chunks.
    """
    length = arrays[0].shape[1]
    chunks = _number_of_chunks(length, settings)
    if chunks == 1:
        return function(*arrays)
    parts = jax.lax.map(lambda chunk: jax.checkpoint(function)(*chunk), _split_length(arrays, chunks))
    return jax.tree.map(partial(_join_length, length=length), parts)


def class_cross_entropy(logits: Float[Array, "b c"], targets: Int[Array, "b"], weights: Float[Array, "b"]) -> LossSums:
    """Return the weighted sums of the cross-entropy over a few classes, without smoothing and z-loss."""
    return _cross_entropy(lambda scores: scores, logits, targets, weights)


def binary_cross_entropy(
    logits: Float[Array, "b l"], targets: Bool[Array, "b l"], weights: Float[Array, "b l"]
) -> LossSums:
    """Return the weighted sums of -log sigmoid(±logit)."""
    losses = jax.nn.softplus(jnp.where(targets, -logits, logits))
    correct = jnp.sum(weights * ((logits > 0) == targets))
    return LossSums.of_loss(jnp.sum(weights * losses), jnp.sum(weights), correct)


def squared_error(predictions: Float[Array, "b"], targets: Float[Array, "b"], weights: Float[Array, "b"]) -> LossSums:
    """Return the weighted sums of the squared error."""
    return LossSums.of_loss(jnp.sum(weights * jnp.square(predictions - targets)), jnp.sum(weights))


def info_nce(
    first: Float[Array, "b d"], second: Float[Array, "b d"], weights: Float[Array, "b"], temperature: float
) -> LossSums:
    """Return the contrastive loss InfoNCE (van den Oord et al. 2018, §2.3), the mean of both directions.

    For each row it is -log softmax(cosine / temperature) of the row's second vector among the second vectors of all
    rows, and the same with the sides exchanged. Rows of weight 0 are left out of the comparison.
    """
    first_unit = normalize(first)
    second_unit = normalize(second)
    scores = first_unit @ second_unit.T / temperature
    targets = jnp.arange(len(scores))
    is_compared = weights > 0
    forward = class_cross_entropy(jnp.where(is_compared, scores, MASKED_SCORE), targets, weights)
    backward = class_cross_entropy(jnp.where(is_compared, scores.T, MASKED_SCORE), targets, weights)
    return jax.tree.map(lambda a, b: (a + b) / 2, forward, backward)


def passage_cross_entropy(
    queries: Float[Array, "b d"],
    passages: Float[Array, "b p d"],
    is_passage: Bool[Array, "b p"],
    weights: Float[Array, "b"],
    temperature: float = 1.0,
) -> LossSums:
    """Return the loss of each row's first passage among the passages of all rows (Karpukhin et al. 2020, eq. 2).

    It is -log softmax(query · passage / temperature). Entries that are no passage are left out of the softmax.
    """
    rows, count, width = passages.shape
    # In float32 also where products of float32 are rounded by default (TPUs): the softmax is over many near passages.
    scores = jnp.matmul(queries, passages.reshape(rows * count, width).T, precision=jax.lax.Precision.HIGHEST)
    scores = jnp.where(is_passage.reshape(-1), scores / temperature, MASKED_SCORE)
    return class_cross_entropy(scores, count * jnp.arange(rows), weights)


def logits_limit(platform: str) -> int:
    """Return the bytes of logits that a device of this platform computes at once."""
    if platform == "tpu":
        return TPU_LOGITS_BYTES
    return GPU_LOGITS_BYTES if platform in GPU_PLATFORMS else LOGITS_BYTES


def chunks_for(length: int, logits_bytes: int) -> int:
    """Return into how many chunks `length` tokens are split, so that the logits of each stay under `logits_limit`.

    It is the smallest number that divides the length, if one is less than twice as many as are needed. Otherwise it is
    the number that is needed, and the last chunk is padded.
    """
    needed = min(max(ceil_div(logits_bytes, logits_limit(current_platform())), 1), length)
    return next((chunks for chunks in range(needed, 2 * needed) if length % chunks == 0), needed)


def _number_of_chunks(length: int, settings: LossSettings) -> int:
    if settings.chunks:
        return min(settings.chunks, length)
    return chunks_for(length, 4 * settings.rows * length * settings.vocab)


def _split_length(arrays: Arrays, chunks: int) -> Arrays:
    """Interleave the tokens over the chunks, so that each chunk has tokens of every device that shares a row.

    Returns:
        `[chunks, b, ⌈l / chunks⌉, …]` of every array `[b, l, …]`, padded with zeros.
    """

    def split(x: Array) -> Array:
        batch, length, *features = x.shape
        padding = [(0, 0)] * x.ndim
        padding[1] = (0, -length % chunks)
        return jnp.moveaxis(jnp.pad(x, padding).reshape(batch, -1, chunks, *features), 2, 0)

    return jax.tree.map(split, arrays)


def _join_length(x: Shaped[Array, "chunks b _"], length: int) -> Shaped[Array, "b {length}"]:
    """Put chunks that `_split_length` has made of `length` tokens together again."""
    return jnp.moveaxis(x, 0, 2).reshape(x.shape[1], -1)[:, :length]


def _cross_entropy(
    logits: Callable[[Float[Array, "*n d"]], Float[Array, "*n v"]],
    states: Float[Array, "*n d"],
    targets: Int[Array, "*n"],
    weights: Float[Array, "*n"],
    z_loss: float = 0.0,
    label_smoothing: float = 0.0,
) -> LossSums:
    scores = logits(states)
    log_z = jax.nn.logsumexp(scores, axis=-1)
    # Comparisons with every token instead of a look-up and an argmax: XLA fuses them, and their gradient is no scatter.
    token_ids = jnp.arange(scores.shape[-1])
    target_ids = targets[..., None]
    target_scores = jnp.where(token_ids == target_ids, scores, 0).sum(-1, keepdims=True)
    losses = log_z - target_scores[..., 0]
    z_losses = z_loss * jnp.square(log_z)
    smoothed = losses
    if label_smoothing:
        smoothed = (1 - label_smoothing) * losses + label_smoothing * (log_z - scores.mean(-1))
    # As argmax does, ties go to the lower id.
    is_better = (scores > target_scores) | ((scores == target_scores) & (token_ids < target_ids))
    is_correct = 1.0 - is_better.any(-1)
    return LossSums(
        total=jnp.sum(weights * (smoothed + z_losses)),
        loss=jnp.sum(weights * losses),
        z_loss=jnp.sum(weights * z_losses),
        correct=jnp.sum(weights * is_correct),
        weight=jnp.sum(weights),
    )
