"""Cross-entropy over a vocabulary, without holding all logits at one time."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from t5x_lite.models.sharding import GPU_PLATFORMS, constrain, platform

LOGITS_BYTES = 64 * 2**20
"""Logits above this size per device are computed in parts; below it one product is faster."""
GPU_LOGITS_BYTES = 8 * 2**30
"""The same on a GPU, which has memory for them: parts are computed again in the backward pass, and their small products
are slow (GPT-2 124M on an H100: 80 of 183 ms a step were spent on 128 parts)."""
MASK_VALUE = -1e9
"""In the place of what does not count; finite, and so is its square, for rows in which nothing does."""


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class TokenLoss:
    """Sums over target tokens, so that parts of a batch add up: divide by `weight` for means.

    `total` is what is minimised (with label smoothing and z-loss); `loss` is the plain cross-entropy in nats.
    """

    total: Float[Array, ""]
    loss: Float[Array, ""]
    z_loss: Float[Array, ""]
    correct: Float[Array, ""]
    weight: Float[Array, ""]

    def __add__(self, other: "TokenLoss") -> "TokenLoss":
        return jax.tree.map(jnp.add, self, other)

    def means(self, name: str) -> dict[str, Array]:
        """`loss`, `accuracy` and `z_loss` of the term `loss`, `x_loss` and `x_accuracy` of any other term x."""
        weight, prefix = jnp.maximum(self.weight, 1.0), "" if name == "loss" else f"{name}_"
        found = {f"{prefix}loss": self.loss / weight, f"{prefix}accuracy": self.correct / weight}
        return found if prefix else found | {"z_loss": self.z_loss / weight}


@dataclass(frozen=True)
class Losses:
    """What objectives make sums from.

    `z_loss` and `label_smoothing` are the run's; `chunks` is `train.loss_chunks`, or 0 to keep the logits of the `rows`
    that a device holds under `LOGITS_BYTES` for a vocabulary of `vocab`.
    """

    vocab: int
    rows: int = 1
    chunks: int = 0
    z_loss: float = 0.0
    label_smoothing: float = 0.0

    def tokens(
        self,
        logits: Callable[[Float[Array, "b l d"]], Float[Array, "b l v"]],
        states: Float[Array, "b l d"],
        targets: Int[Array, "b l"],
        weights: Float[Array, "b l"],
    ) -> TokenLoss:
        """Weighted sums of -log softmax(logits(states))[target].

        Label smoothing: the target is (1-ε)·one-hot + ε/v (Szegedy et al. 2016, §7). z-loss: `z_loss`·log(Z)² keeps the
        normaliser Z near one (Chowdhery et al. 2022, §5). Where they are computed in parts, logits exist for one part
        of the length at a time, forward and backward.
        """
        length = states.shape[1]
        chunks = self.chunks if self.chunks and length % self.chunks == 0 else 0
        chunks = chunks or chunks_for(length, 4 * self.rows * length * self.vocab)
        states = constrain(states, "batch", "length", None) if states.ndim == 3 else states
        one = partial(_sums, logits, z_loss=self.z_loss, label_smoothing=self.label_smoothing)
        if chunks == 1:
            return one(states, targets, weights)

        def parts(x: Array) -> Array:
            """Tokens dealt out, so that each part has some of every device that shares a row."""
            b, l, *rest = x.shape
            return jnp.moveaxis(x.reshape(b, l // chunks, chunks, *rest), 2, 0)

        def add(so_far: TokenLoss, part: tuple[Array, Array, Array]) -> tuple[TokenLoss, None]:
            return so_far + jax.checkpoint(one)(*part), None

        zero = TokenLoss(*(jnp.zeros((), jnp.float32),) * 5)
        return jax.lax.scan(add, zero, (parts(states), parts(targets), parts(weights)))[0]

    def classes(self, logits: Float[Array, "b c"], targets: Int[Array, "b"], weights: Float[Array, "b"]) -> TokenLoss:
        """Cross-entropy over a few classes, unsmoothed."""
        return _sums(lambda x: x, logits, targets, weights)

    def binary(
        self, logits: Float[Array, "b l"], targets: Bool[Array, "b l"], weights: Float[Array, "b l"], factor: float = 1
    ) -> TokenLoss:
        """-log sigmoid(±logit), `factor` times in what is minimised."""
        loss = jax.nn.softplus(jnp.where(targets, -logits, logits))
        plain, hits, weight = (jnp.sum(weights * x) for x in (loss, (logits > 0) == targets, jnp.ones_like(loss)))
        return TokenLoss(factor * plain, plain, jnp.zeros_like(plain), hits, weight)

    def squared(self, found: Float[Array, "b"], targets: Float[Array, "b"], weights: Float[Array, "b"]) -> TokenLoss:
        """Squared error; what is correct is not counted."""
        loss, zero = jnp.sum(weights * jnp.square(found - targets)), jnp.zeros((), jnp.float32)
        return TokenLoss(loss, loss, zero, zero, jnp.sum(weights))

    def beside(self, *vectors: Float[Array, "b d"]) -> Float[Array, "b n"]:
        """Vectors joined along their channels."""
        return jnp.concatenate(vectors, axis=-1)

    def cosine(self, first: Float[Array, "b d"], second: Float[Array, "b d"]) -> Float[Array, "b"]:
        """Of the angle between the vectors of each row, float32."""
        u, v = (x.astype(jnp.float32) for x in (first, second))
        norms = jnp.linalg.norm(u, axis=-1) * jnp.linalg.norm(v, axis=-1)
        return jnp.sum(u * v, axis=-1) / jnp.maximum(norms, 1e-12)

    def contrast(
        self, first: Float[Array, "b d"], second: Float[Array, "b d"], weights: Float[Array, "b"], temperature: float
    ) -> TokenLoss:
        """-log softmax(cosine / temperature) of each row's other vector among those of all rows (InfoNCE).

        The mean of both directions. Rows of weight 0 are nobody's other, and are not among those to tell apart.
        """
        exact = (x.astype(jnp.float32) for x in (first, second))
        u, v = (x / jnp.maximum(jnp.linalg.norm(x, axis=-1, keepdims=True), 1e-12) for x in exact)
        scores = u @ v.T / temperature
        own, there = jnp.arange(len(scores)), weights > 0
        ways = [self.classes(jnp.where(there, way, MASK_VALUE), own, weights) for way in (scores, scores.T)]
        return jax.tree.map(lambda a, b: (a + b) / 2, *ways)

    def gather(self, states: Float[Array, "b l d"], places: Int[Array, "b p"]) -> Float[Array, "b p d"]:
        """The states at some places of each row."""
        return jnp.take_along_axis(states, places[..., None], axis=1)


def _sums(
    logits: Callable[[Any], Any],
    hidden: Float[Array, "b l d"],
    targets: Int[Array, "b l"],
    weights: Float[Array, "b l"],
    z_loss: float = 0.0,
    label_smoothing: float = 0.0,
) -> TokenLoss:
    scores = logits(hidden)
    log_z = jax.nn.logsumexp(scores, axis=-1)
    # Comparisons with every token, not a look-up and an argmax: they are fused, and their gradient is no scatter.
    token, target = jnp.arange(scores.shape[-1]), targets[..., None]
    of_target = jnp.where(token == target, scores, 0).sum(-1, keepdims=True)
    loss = log_z - of_target[..., 0]
    z = z_loss * jnp.square(log_z)
    smooth = loss
    if label_smoothing:
        smooth = (1 - label_smoothing) * loss + label_smoothing * (log_z - scores.mean(-1))
    better = (scores > of_target) | ((scores == of_target) & (token < target))
    correct = 1.0 - better.any(-1)
    total, plain, z, hits = (jnp.sum(weights * x) for x in (smooth + z, loss, z, correct))
    return TokenLoss(total, plain, z, hits, jnp.sum(weights))


def logits_limit(platform: str) -> int:
    """Bytes of logits that a device of a platform computes at once."""
    return GPU_LOGITS_BYTES if platform in GPU_PLATFORMS else LOGITS_BYTES


def chunks_for(length: int, logits_bytes: int) -> int:
    """Parts to cut `length` into so that each part's logits stay under `logits_limit`: the fewest that divide it."""
    wanted = -(-logits_bytes // logits_limit(platform()))
    return next(n for n in range(min(max(wanted, 1), length), length + 1) if length % n == 0)
