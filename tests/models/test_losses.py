"""Cross-entropy against the formula written out in float64 NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from t5x_lite.models.losses import LOGITS_BYTES, Losses, chunks_for


@pytest.fixture
def case() -> tuple[np.ndarray, ...]:
    rng = np.random.default_rng(0)
    weights = (rng.random((2, 6)) > 0.3).astype(np.float32)
    return rng.normal(size=(2, 6, 4)), rng.normal(size=(4, 9)), rng.integers(0, 9, (2, 6)), weights


def reference(case: tuple[np.ndarray, ...], z: float, smoothing: float) -> tuple[float, float, float]:
    hidden, matrix, targets, weights = case
    logits = hidden @ matrix
    log_z = np.log(np.exp(logits).sum(-1))
    log_p = logits - log_z[..., None]
    wanted = (1 - smoothing) * np.eye(9)[targets] + smoothing / 9
    total = -(wanted * log_p).sum(-1) + z * log_z**2
    plain = -np.take_along_axis(log_p, targets[..., None], -1)[..., 0]
    hits = logits.argmax(-1) == targets
    return (weights * total).sum(), (weights * plain).sum(), (weights * hits).sum()


@pytest.mark.parametrize("chunks", [1, 2, 3, 6])
@pytest.mark.parametrize(("z", "smoothing"), [(0.0, 0.0), (0.01, 0.0), (0.01, 0.1)])
def test_sums_and_gradients_equal_the_formula(case: tuple, chunks: int, z: float, smoothing: float) -> None:
    hidden, matrix, targets, weights = (jnp.asarray(x) for x in case)
    of = lambda h, m, n: Losses(9, chunks=n, z_loss=z, label_smoothing=smoothing).tokens(  # noqa: E731
        lambda x: x @ m, h, targets, weights
    )
    found = of(hidden, matrix, chunks)
    total, plain, hits = reference(case, z, smoothing)
    np.testing.assert_allclose([found.total, found.loss, found.correct], [total, plain, hits], rtol=1e-5)
    assert float(found.weight) == weights.sum()
    gradient = jax.grad(lambda h, m: of(h, m, chunks).total, argnums=(0, 1))(hidden, matrix)
    step = 1e-4
    moved = case[0].copy()
    moved[1, 2, 3] += step
    slope = (reference((moved, *case[1:]), z, smoothing)[0] - total) / step
    assert float(gradient[0][1, 2, 3]) == pytest.approx(slope, rel=2e-3, abs=1e-4)


def test_logits_of_a_large_vocabulary_are_never_whole_in_memory() -> None:
    length, vocab, width = 512, 32768, 8
    shapes = [jax.ShapeDtypeStruct(s, jnp.float32) for s in ((1, length, width), (width, vocab))]
    targets, weights = jnp.zeros((1, length), jnp.int32), jnp.ones((1, length))

    def peak(chunks: int) -> int:
        def loss(h: jax.Array, m: jax.Array) -> jax.Array:
            return Losses(vocab, chunks=chunks).tokens(lambda x: x @ m, h, targets, weights).total

        return jax.jit(jax.grad(loss, argnums=(0, 1))).lower(*shapes).compile().memory_analysis().temp_size_in_bytes

    whole = 4 * length * vocab
    assert peak(1) >= whole
    assert peak(16) < whole / 4


def test_parts_are_the_fewest_that_divide_the_length() -> None:
    assert chunks_for(1024, LOGITS_BYTES) == 1
    assert chunks_for(1024, LOGITS_BYTES + 1) == 2
    assert chunks_for(1000, 3 * LOGITS_BYTES) == 4
    assert chunks_for(7, 2 * LOGITS_BYTES) == 7
