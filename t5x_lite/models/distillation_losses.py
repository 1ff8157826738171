"""Losses that compare a model, the student, with a frozen one, the teacher.

They are those of DistilBERT's published code (Sanh et al. 2019, §2 and §3).
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from t5x_lite.models.losses import LossSettings, LossSums, token_loss_sums
from t5x_lite.models.sharding import constrain

COSINE_EPSILON = 1e-12
"""Added to squared norms, as PyTorch's cosine embedding loss does."""


@dataclass(frozen=True)
class StatesAndLogits:
    """The states of one model, and the map from them to logits.

    Attributes:
        states: `[batch, length, embed]`.
        logits: returns `[batch, length, vocab]`, in float32.
    """

    states: Float[Array, "b l d"]
    logits: Callable[[Float[Array, "b l d"]], Float[Array, "b l v"]]


def soft_target_loss(
    student: StatesAndLogits,
    teacher: StatesAndLogits,
    weights: Float[Array, "b l"],
    settings: LossSettings,
    temperature: float,
) -> LossSums:
    """Return the weighted sums of T²·KL(softmax(teacher / T) ‖ softmax(student / T)), with temperature T.

    The factor T² keeps the size of the gradients (Hinton et al. 2015, §2.1). A token counts as correct if the student's
    best token is the teacher's. The widths of the states may differ.
    """

    def chunk_loss(student_states: Array, teacher_states: Array, weights: Float[Array, "b l"]) -> LossSums:
        student_logits = student.logits(student_states)
        teacher_logits = jax.lax.stop_gradient(teacher.logits(teacher_states))
        student_scores = jax.nn.log_softmax(student_logits / temperature, axis=-1)
        teacher_scores = jax.nn.log_softmax(teacher_logits / temperature, axis=-1)
        divergences = jnp.sum(jnp.exp(teacher_scores) * (teacher_scores - student_scores), axis=-1)
        loss = temperature**2 * jnp.sum(weights * divergences)
        agrees = jnp.argmax(student_logits, axis=-1) == jnp.argmax(teacher_logits, axis=-1)
        return LossSums.of_loss(loss, jnp.sum(weights), jnp.sum(weights * agrees))

    student_states = constrain(student.states, "batch", "length", None)
    teacher_states = constrain(teacher.states, "batch", "length", None)
    # A chunk has the logits of two models.
    return token_loss_sums(
        chunk_loss, (student_states, teacher_states, weights), replace(settings, vocab=2 * settings.vocab)
    )


def cosine_loss(
    student_states: Float[Array, "b l d"], teacher_states: Float[Array, "b l d"], weights: Float[Array, "b l"]
) -> LossSums:
    """Return the weighted sums of 1 - cos(student, teacher) of the states of each token."""
    student_states = student_states.astype(jnp.float32)
    teacher_states = teacher_states.astype(jnp.float32)
    products = jnp.sum(student_states * teacher_states, axis=-1)
    student_squares = jnp.sum(jnp.square(student_states), axis=-1) + COSINE_EPSILON
    teacher_squares = jnp.sum(jnp.square(teacher_states), axis=-1) + COSINE_EPSILON
    loss = jnp.sum(weights * (1 - products / jnp.sqrt(student_squares * teacher_squares)))
    return LossSums.of_loss(loss, jnp.sum(weights))
