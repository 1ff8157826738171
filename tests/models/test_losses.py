"""Cross-entropy against the formula in float64 NumPy."""

from dataclasses import dataclass, replace
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jaxtyping import Float, Int

from t5x_lite.models.losses import (
    LOGITS_BYTES,
    LossSettings,
    LossSums,
    chunks_for,
    squared_error,
    token_cross_entropy,
    token_log_probabilities,
)
from tests.product_flops import count_product_flops

VOCAB = 9


@dataclass(frozen=True)
class LossInputs:
    """States, the output matrix, and the targets with their weights."""

    states: Float[np.ndarray, "b l d"]
    matrix: Float[np.ndarray, "d v"]
    targets: Int[np.ndarray, "b l"]
    weights: Float[np.ndarray, "b l"]


class Sums(NamedTuple):
    """Sums over all targets: of the minimised loss, of the cross-entropy, and of the correct predictions."""

    total: float
    loss: float
    correct: float


@pytest.fixture
def inputs() -> LossInputs:
    rng = np.random.default_rng(0)
    weights = (rng.random((2, 6)) > 0.3).astype(np.float32)
    states = rng.normal(size=(2, 6, 4))
    matrix = rng.normal(size=(4, VOCAB))
    return LossInputs(states, matrix, rng.integers(0, VOCAB, (2, 6)), weights)


def sums_by_formula(inputs: LossInputs, z_loss: float, label_smoothing: float) -> Sums:
    logits = inputs.states @ inputs.matrix
    log_z = np.log(np.exp(logits).sum(-1))
    log_p = logits - log_z[..., None]
    target_distribution = (1 - label_smoothing) * np.eye(VOCAB)[inputs.targets] + label_smoothing / VOCAB
    total = -(target_distribution * log_p).sum(-1) + z_loss * log_z**2
    loss = -np.take_along_axis(log_p, inputs.targets[..., None], -1)[..., 0]
    is_correct = logits.argmax(-1) == inputs.targets
    weights = inputs.weights
    return Sums((weights * total).sum(), (weights * loss).sum(), (weights * is_correct).sum())


@pytest.mark.parametrize("chunks", [1, 2, 3, 6])
@pytest.mark.parametrize(("z_loss", "label_smoothing"), [(0.0, 0.0), (0.01, 0.0), (0.01, 0.1)])
def test_sums_and_gradients_equal_the_formula(
    inputs: LossInputs, chunks: int, z_loss: float, label_smoothing: float
) -> None:
    targets = jnp.asarray(inputs.targets)
    weights = jnp.asarray(inputs.weights)
    settings = LossSettings(VOCAB, chunks=chunks, z_loss=z_loss, label_smoothing=label_smoothing)

    def compute(states: jax.Array, matrix: jax.Array) -> LossSums:
        return token_cross_entropy(lambda x: x @ matrix, states, targets, weights, settings)

    def compute_total(states: jax.Array, matrix: jax.Array) -> jax.Array:
        return compute(states, matrix).total

    states = jnp.asarray(inputs.states)
    matrix = jnp.asarray(inputs.matrix)
    sums = compute(states, matrix)
    expected = sums_by_formula(inputs, z_loss, label_smoothing)
    np.testing.assert_allclose([sums.total, sums.loss, sums.correct], expected, rtol=1e-5)
    assert float(sums.weight) == inputs.weights.sum()
    states_gradient, _ = jax.grad(compute_total, argnums=(0, 1))(states, matrix)
    step = 1e-4
    moved_states = inputs.states.copy()
    moved_states[1, 2, 3] += step
    moved = sums_by_formula(replace(inputs, states=moved_states), z_loss, label_smoothing)
    slope = (moved.total - expected.total) / step
    assert float(states_gradient[1, 2, 3]) == pytest.approx(slope, rel=2e-3, abs=1e-4)


@pytest.mark.parametrize("chunks", [1, 3])
def test_gradients_equal_the_formula(inputs: LossInputs, chunks: int) -> None:
    """The gradient of a logit is w · ((1 + 2 · z_loss · log Z) · p - (1 - ε) · onehot - ε / v), here times 3."""
    z_loss = 0.1
    smoothing = 0.2
    settings = LossSettings(VOCAB, chunks=chunks, z_loss=z_loss, label_smoothing=smoothing)

    def loss(states: jax.Array, matrix: jax.Array) -> jax.Array:
        return 3 * token_cross_entropy(lambda x: x @ matrix, states, inputs.targets, inputs.weights, settings).total

    states = jnp.asarray(inputs.states, jnp.float32)
    gradients = jax.grad(loss, argnums=(0, 1))(states, jnp.asarray(inputs.matrix, jnp.float32))
    logits = inputs.states @ inputs.matrix
    log_z = np.log(np.exp(logits).sum(-1, keepdims=True))
    logit_gradient = (1 + 2 * z_loss * log_z) * np.exp(logits - log_z)
    logit_gradient -= (1 - smoothing) * np.eye(VOCAB)[inputs.targets] + smoothing / VOCAB
    logit_gradient *= 3 * inputs.weights[..., None]
    np.testing.assert_allclose(gradients[0], logit_gradient @ inputs.matrix.T, rtol=1e-4, atol=1e-5)
    expected = np.einsum("bld,blv->dv", inputs.states, logit_gradient)
    np.testing.assert_allclose(gradients[1], expected, rtol=1e-4, atol=1e-5)


def test_gradients_of_parameters_in_bfloat16_add_up_over_many_chunks() -> None:
    """A sum in bfloat16 stops at 256 equal terms. With equal logits a target's gradient is 1 / v - 1 for each token."""
    length = 1024
    settings = LossSettings(4, chunks=length)
    targets = jnp.zeros((1, length), jnp.int32)

    def loss(matrix: jax.Array) -> jax.Array:
        states = jnp.ones((1, length, 1))
        return token_cross_entropy(lambda x: x @ matrix, states, targets, jnp.ones((1, length)), settings).total

    gradient = jax.grad(loss)(jnp.zeros((1, 4), jnp.bfloat16))
    assert gradient.dtype == jnp.bfloat16
    assert gradient.astype(jnp.float32).tolist() == [[-768, 256, 256, 256]]


def test_logits_of_a_large_vocabulary_are_never_in_memory_at_once() -> None:
    length = 512
    vocab = 32768
    embed = 8
    states_shape = jax.ShapeDtypeStruct((1, length, embed), jnp.float32)
    matrix_shape = jax.ShapeDtypeStruct((embed, vocab), jnp.float32)
    targets = jnp.zeros((1, length), jnp.int32)
    weights = jnp.ones((1, length))

    def peak_bytes(chunks: int) -> int:
        def loss(states: jax.Array, matrix: jax.Array) -> jax.Array:
            settings = LossSettings(vocab, chunks=chunks)
            return token_cross_entropy(lambda x: x @ matrix, states, targets, weights, settings).total

        gradient = jax.jit(jax.grad(loss, argnums=(0, 1)))
        return gradient.lower(states_shape, matrix_shape).compile().memory_analysis().temp_size_in_bytes

    logits_bytes = 4 * length * vocab
    assert peak_bytes(1) >= logits_bytes
    # Four arrays of a chunk, and not three, because loss and gradient are computed together: one product fewer.
    assert peak_bytes(16) < 5 / 16 * logits_bytes


def test_logits_of_a_chunk_are_computed_once() -> None:
    """Three products with the output matrix, forward and backward, whether the logits are cut in chunks or not."""
    states = jnp.ones((1, 8, 4))
    targets = jnp.zeros((1, 8), jnp.int32)

    def product_flops(chunks: int) -> float:
        def loss(states: jax.Array, matrix: jax.Array) -> jax.Array:
            settings = LossSettings(16, chunks=chunks)
            return token_cross_entropy(lambda x: x @ matrix, states, targets, jnp.ones((1, 8)), settings).total

        return count_product_flops(jax.make_jaxpr(jax.grad(loss, argnums=(0, 1)))(states, jnp.ones((4, 16))).jaxpr)

    assert product_flops(1) == product_flops(4) == 3 * 2 * 8 * 4 * 16


@pytest.mark.parametrize("chunks", [2, 3, 7])
def test_a_length_that_chunks_do_not_divide_is_padded(chunks: int) -> None:
    """The sum and its gradients are those of the definition, -log softmax(x W)[target], of seven tokens in a row."""
    rng = np.random.default_rng(0)
    states, matrix = rng.standard_normal((2, 7, 4)), rng.standard_normal((4, 16))
    targets, weights = rng.integers(0, 16, (2, 7)), rng.random((2, 7))
    probabilities = np.exp(states @ matrix) / np.exp(states @ matrix).sum(-1, keepdims=True)
    expected = -(weights * np.log(np.take_along_axis(probabilities, targets[..., None], -1)[..., 0])).sum()
    scores_gradient = weights[..., None] * (probabilities - np.eye(16)[targets])

    def loss(states: jax.Array, matrix: jax.Array) -> jax.Array:
        settings = LossSettings(16, chunks=chunks)
        arrays = (jnp.asarray(targets), jnp.asarray(weights))
        return token_cross_entropy(lambda x: x @ matrix, states, *arrays, settings).total

    value, gradients = jax.value_and_grad(loss, argnums=(0, 1))(jnp.asarray(states), jnp.asarray(matrix))
    np.testing.assert_allclose(value, expected, rtol=1e-5)
    np.testing.assert_allclose(gradients[0], scores_gradient @ matrix.T, atol=1e-5)
    np.testing.assert_allclose(gradients[1], np.einsum("bld,blv->dv", states, scores_gradient), atol=1e-5)
    log_probabilities, _ = token_log_probabilities(
        lambda x: x @ jnp.asarray(matrix), jnp.asarray(states), jnp.asarray(targets), LossSettings(16, chunks=chunks)
    )
    assert log_probabilities.shape == (2, 7)
    np.testing.assert_allclose(
        log_probabilities, np.log(np.take_along_axis(probabilities, targets[..., None], -1)[..., 0]), atol=1e-5
    )


def test_chunks_are_the_fewest_that_divide_the_length() -> None:
    assert chunks_for(1024, LOGITS_BYTES) == 1
    assert chunks_for(1024, LOGITS_BYTES + 1) == 2
    assert chunks_for(1000, 3 * LOGITS_BYTES) == 4
    assert chunks_for(2458, 20 * LOGITS_BYTES) == 20  # 2 · 1229: the divisors beside these are 1 and 2458
    assert chunks_for(7, 100 * LOGITS_BYTES) == 7


def test_numbers_are_predicted_with_an_error_and_without_an_accuracy() -> None:
    term = squared_error(jnp.array([1.0, 2.0, 5.0]), jnp.array([0.0, 4.0, 0.0]), jnp.array([1.0, 1.0, 0.0]))
    assert {name: float(value) for name, value in term.means("loss").items()} == {"loss": 2.5, "z_loss": 0.0}
