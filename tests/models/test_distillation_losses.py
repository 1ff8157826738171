"""Losses between a student and a teacher against PyTorch's, on the same tensors."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from t5x_lite.models.distillation_losses import StatesAndLogits, cosine_loss, soft_target_loss
from t5x_lite.models.losses import LossSettings, LossSums

torch = pytest.importorskip("torch", reason="reference implementations need the extra hf: pip install -e '.[hf]'")

ROWS, LENGTH, VOCAB = 2, 6, 11
SETTINGS = LossSettings(VOCAB)


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)


def identity(logits: jax.Array) -> jax.Array:
    return logits


def soft_total(student: np.ndarray, teacher: np.ndarray, weights: np.ndarray, settings: LossSettings) -> LossSums:
    return soft_target_loss(
        StatesAndLogits(student, identity), StatesAndLogits(teacher, identity), weights, settings, temperature=3.0
    )


@pytest.mark.parametrize("chunks", [0, 3])
def test_soft_targets_and_their_gradient_equal_torch(rng: np.random.Generator, chunks: int) -> None:
    student = rng.normal(size=(ROWS, LENGTH, VOCAB)).astype(np.float32)
    teacher = 2 * rng.normal(size=(ROWS, LENGTH, VOCAB)).astype(np.float32)
    is_token = np.arange(LENGTH) < np.array([[6], [4]])
    theirs = torch.tensor(student, requires_grad=True)
    scores = torch.log_softmax(theirs[torch.tensor(is_token)] / 3, dim=-1)
    probabilities = torch.softmax(torch.tensor(teacher[is_token]) / 3, dim=-1)
    expected = torch.nn.KLDivLoss(reduction="batchmean")(scores, probabilities) * 9
    expected.backward()

    def mean(student: jax.Array) -> jax.Array:
        settings = replace(SETTINGS, chunks=chunks)
        term = soft_total(student, teacher, is_token.astype(np.float32), settings)
        return term.total / term.weight

    value, gradient = jax.value_and_grad(mean)(student)
    assert float(value) == pytest.approx(expected.item(), rel=1e-5)
    np.testing.assert_allclose(gradient, theirs.grad.numpy(), atol=1e-6)


def test_no_gradient_reaches_the_teacher(rng: np.random.Generator) -> None:
    student, teacher = rng.normal(size=(2, ROWS, LENGTH, VOCAB)).astype(np.float32)
    weights = np.ones((ROWS, LENGTH), np.float32)
    gradient = jax.grad(lambda logits: soft_total(student, logits, weights, SETTINGS).total)(teacher)
    np.testing.assert_array_equal(gradient, 0)


def test_soft_accuracy_counts_tokens_whose_best_is_the_teachers() -> None:
    student = np.eye(4, dtype=np.float32)[None]
    teacher = np.eye(4, dtype=np.float32)[[0, 1, 3, 2]][None]
    term = soft_total(student, teacher, np.array([[1, 1, 1, 0]], np.float32), LossSettings(4))
    assert float(term.means("soft")["soft_accuracy"]) == pytest.approx(2 / 3)


def test_cosine_loss_and_its_gradient_equal_torch_also_of_states_of_zeros(rng: np.random.Generator) -> None:
    student, teacher = rng.normal(size=(2, ROWS, LENGTH, 5)).astype(np.float32)
    student[0, 2] = 0
    is_token = np.arange(LENGTH) < np.array([[5], [3]])
    theirs = torch.tensor(student, requires_grad=True)
    mask = torch.tensor(is_token)
    same = torch.ones(int(is_token.sum()))
    expected = torch.nn.CosineEmbeddingLoss(reduction="mean")(theirs[mask], torch.tensor(teacher)[mask], same)
    expected.backward()

    def mean(student: jax.Array) -> jax.Array:
        term = cosine_loss(student, jnp.asarray(teacher), is_token.astype(np.float32))
        return term.total / term.weight

    value, gradient = jax.value_and_grad(mean)(student)
    assert float(value) == pytest.approx(expected.item(), rel=1e-5)
    is_zero = np.zeros((ROWS, LENGTH), bool)
    is_zero[0, 2] = True  # where the gradient is 1e12 times a direction
    np.testing.assert_allclose(gradient[~is_zero], theirs.grad.numpy()[~is_zero], atol=1e-6)
    np.testing.assert_allclose(gradient[is_zero], theirs.grad.numpy()[is_zero], rtol=1e-3)


def test_a_factor_scales_what_is_minimised_and_not_what_is_reported(rng: np.random.Generator) -> None:
    student, teacher = rng.normal(size=(2, ROWS, LENGTH, 5)).astype(np.float32)
    term = cosine_loss(student, teacher, np.ones((ROWS, LENGTH), np.float32))
    scaled = term.scaled(5.0)
    assert float(scaled.total) == pytest.approx(5 * float(term.total))
    assert scaled.means("cosine") == term.means("cosine")
    assert set(scaled.means("cosine")) == {"cosine_loss"}
