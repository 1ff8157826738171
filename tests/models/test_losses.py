"""Cross-entropy against the formula in float64 NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from t5x_lite.models.losses import LOGITS_BYTES, LossSettings, TokenLoss, chunks_for, token_cross_entropy


@pytest.fixture
def case() -> tuple[np.ndarray, ...]:
    """States, output matrix, targets and weights."""
    rng = np.random.default_rng(0)
    weights = (rng.random((2, 6)) > 0.3).astype(np.float32)
    return rng.normal(size=(2, 6, 4)), rng.normal(size=(4, 9)), rng.integers(0, 9, (2, 6)), weights


def reference(case: tuple[np.ndarray, ...], z_loss: float, label_smoothing: float) -> tuple[float, float, float]:
    """The sums of the minimised loss, of the plain loss, and of the correct tokens."""
    states, matrix, targets, weights = case
    logits = states @ matrix
    log_z = np.log(np.exp(logits).sum(-1))
    log_p = logits - log_z[..., None]
    target_distribution = (1 - label_smoothing) * np.eye(9)[targets] + label_smoothing / 9
    total = -(target_distribution * log_p).sum(-1) + z_loss * log_z**2
    loss = -np.take_along_axis(log_p, targets[..., None], -1)[..., 0]
    correct = logits.argmax(-1) == targets
    return (weights * total).sum(), (weights * loss).sum(), (weights * correct).sum()


@pytest.mark.parametrize("chunks", [1, 2, 3, 6])
@pytest.mark.parametrize(("z_loss", "label_smoothing"), [(0.0, 0.0), (0.01, 0.0), (0.01, 0.1)])
def test_sums_and_gradients_equal_the_formula(case: tuple, chunks: int, z_loss: float, label_smoothing: float) -> None:
    states, matrix, targets, weights = (jnp.asarray(x) for x in case)
    settings = LossSettings(9, chunks=chunks, z_loss=z_loss, label_smoothing=label_smoothing)

    def compute(states: jax.Array, matrix: jax.Array) -> TokenLoss:
        return token_cross_entropy(lambda x: x @ matrix, states, targets, weights, settings)

    sums = compute(states, matrix)
    total, loss, correct = reference(case, z_loss, label_smoothing)
    np.testing.assert_allclose([sums.total, sums.loss, sums.correct], [total, loss, correct], rtol=1e-5)
    assert float(sums.weight) == weights.sum()
    gradient = jax.grad(lambda states, matrix: compute(states, matrix).total, argnums=(0, 1))(states, matrix)
    step = 1e-4
    moved = case[0].copy()
    moved[1, 2, 3] += step
    slope = (reference((moved, *case[1:]), z_loss, label_smoothing)[0] - total) / step
    assert float(gradient[0][1, 2, 3]) == pytest.approx(slope, rel=2e-3, abs=1e-4)


def test_logits_of_a_large_vocabulary_are_never_in_memory_at_once() -> None:
    length, vocab, width = 512, 32768, 8
    shapes = [jax.ShapeDtypeStruct(s, jnp.float32) for s in ((1, length, width), (width, vocab))]
    targets = jnp.zeros((1, length), jnp.int32)
    weights = jnp.ones((1, length))

    def peak_bytes(chunks: int) -> int:
        def loss(states: jax.Array, matrix: jax.Array) -> jax.Array:
            settings = LossSettings(vocab, chunks=chunks)
            return token_cross_entropy(lambda x: x @ matrix, states, targets, weights, settings).total

        return jax.jit(jax.grad(loss, argnums=(0, 1))).lower(*shapes).compile().memory_analysis().temp_size_in_bytes

    logits_bytes = 4 * length * vocab
    assert peak_bytes(1) >= logits_bytes
    assert peak_bytes(16) < logits_bytes / 4


def test_chunks_are_the_fewest_that_divide_the_length() -> None:
    assert chunks_for(1024, LOGITS_BYTES) == 1
    assert chunks_for(1024, LOGITS_BYTES + 1) == 2
    assert chunks_for(1000, 3 * LOGITS_BYTES) == 4
    assert chunks_for(7, 2 * LOGITS_BYTES) == 7
