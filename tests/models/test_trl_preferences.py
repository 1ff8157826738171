"""DPO, IPO and ORPO against TRL: losses and gradients on the same log-probabilities."""

from collections import defaultdict
from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from t5x_lite.models.preference_losses import PreferenceMethod, preference_losses

torch = pytest.importorskip("torch")
pytest.importorskip("trl")

BETA = 0.3
PAIRS = 5


class FakeModel:
    """A model of TRL whose log-probabilities of tokens are given."""

    def __init__(self, log_probabilities: Any) -> None:
        self.training = True
        self.log_probs = log_probabilities

    def __call__(self, **_: object) -> SimpleNamespace:
        zeros = torch.zeros_like(self.log_probs)
        return SimpleNamespace(log_probs=self.log_probs, entropy=zeros, mean_logits=zeros, is_top1=zeros > 0)


def trl_loss(
    loss_type: str, policy: np.ndarray, reference: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> tuple[float, np.ndarray]:
    """Loss and gradient of TRL for answers of one token each, chosen ones first, `[pairs, 2]`.

    TRL divides the log-probabilities of IPO by the lengths of the answers, and this package does not: for answers of
    one token they agree.
    """
    from trl.trainer import dpo_trainer

    log_probabilities = torch.tensor(policy.T.reshape(-1, 1), requires_grad=True)
    metrics: dict[str, Any] = {"train": defaultdict(list), "eval": defaultdict(list)}
    model = FakeModel(log_probabilities)
    fake = SimpleNamespace(
        model=model,
        ref_model=FakeModel(torch.tensor(reference.T.reshape(-1, 1))),
        accelerator=SimpleNamespace(
            device="cpu", gather_for_metrics=lambda x: x, gather=lambda x: x, unwrap_model=lambda x: x
        ),
        args=SimpleNamespace(gradient_checkpointing_kwargs=None),
        aux_loss_enabled=False,
        ld_alpha=None,
        precompute_ref_logps=False,
        f_divergence_type="reverse_kl",
        loss_types=[loss_type],
        loss_weights=[1.0],
        beta=BETA,
        label_smoothing=0.0,
        use_weighting=False,
        _metrics=metrics,
        _total_train_tokens=0,
        _tp_size=1,
    )
    ids = torch.ones(2 * PAIRS, 2, dtype=torch.long)
    mask = torch.tensor([[0, 1]] * (2 * PAIRS))
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "completion_mask": mask}
    with monkeypatch.context() as patch:
        patch.setattr(dpo_trainer, "disable_gradient_checkpointing", lambda *_: nullcontext())
        loss = dpo_trainer.DPOTrainer._compute_loss(fake, model, inputs, return_outputs=False)
    loss.backward()
    return float(loss.detach()), log_probabilities.grad.numpy().reshape(2, PAIRS).T


def loss_and_gradient(
    method: PreferenceMethod, policy: np.ndarray, reference: np.ndarray, sizes: np.ndarray
) -> tuple[float, np.ndarray]:
    def mean_loss(policy: jax.Array) -> jax.Array:
        return preference_losses(method, BETA, policy, reference, sizes).mean()

    with jax.enable_x64(True):
        loss, gradient = jax.value_and_grad(mean_loss)(jnp.asarray(policy))
    return float(loss), np.asarray(gradient)


@pytest.mark.parametrize(("method", "loss_type"), [("dpo", "sigmoid"), ("ipo", "ipo")])
def test_losses_and_gradients_of_dpo_and_ipo_equal_those_of_trl(
    method: PreferenceMethod, loss_type: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    rng = np.random.default_rng(0)
    policy = -rng.uniform(0.5, 9, (PAIRS, 2))
    reference = -rng.uniform(0.5, 9, (PAIRS, 2))
    expected_loss, expected_gradient = trl_loss(loss_type, policy, reference, monkeypatch)
    loss, gradient = loss_and_gradient(method, policy, reference, np.ones((PAIRS, 2)))
    assert loss == pytest.approx(expected_loss, rel=1e-6)
    np.testing.assert_allclose(gradient, expected_gradient, rtol=1e-5, atol=1e-9)


def test_losses_and_gradients_of_orpo_equal_those_of_trl() -> None:
    """TRL takes mean log-probabilities in float32, and adds -log P of the chosen answer elsewhere."""
    orpo_trainer = pytest.importorskip("trl.experimental.orpo.orpo_trainer")
    rng = np.random.default_rng(1)
    sizes = rng.integers(1, 7, (PAIRS, 2)).astype(np.float64)
    policy = -rng.uniform(0.5, 2, (PAIRS, 2)) * sizes
    tensor = torch.tensor(policy, requires_grad=True)
    means = tensor / torch.tensor(sizes)
    fake = SimpleNamespace(beta=BETA, accelerator=SimpleNamespace(device="cpu"))
    odds_ratio, *_ = orpo_trainer.ORPOTrainer.odds_ratio_loss(fake, means[:, 0], means[:, 1])
    expected = (-means[:, 0] - odds_ratio).mean()
    expected.backward()
    loss, gradient = loss_and_gradient("orpo", policy, np.zeros_like(policy), sizes)
    assert loss == pytest.approx(float(expected.detach()), rel=1e-5)
    np.testing.assert_allclose(gradient, tensor.grad.numpy(), rtol=1e-4, atol=1e-6)
