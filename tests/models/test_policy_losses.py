"""Losses and advantages of policy optimisation, against TRL on the same tensors and the papers' formulas in NumPy."""

from collections import defaultdict
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from t5x_lite.models import policy_losses
from t5x_lite.models.losses import LossSettings, token_log_probabilities
from t5x_lite.objectives.answer_rows import policy_loss
from t5x_lite.objectives.grpo import GRPO
from t5x_lite.objectives.policy_optimization import PolicyOptimization
from t5x_lite.objectives.ppo import PPO
from t5x_lite.verifiers import ExactMatch

ROWS = 6
TOKENS = 5
VOCAB = 7
SIZES = np.array([5, 1, 3, 2, 5, 4])
MASK = (np.arange(TOKENS) < SIZES[:, None]).astype(np.float32)


def random_tokens(seed: int) -> dict[str, np.ndarray]:
    """Log-probabilities by three models, advantages and values, with ratios on both sides of the bounds."""
    rng = np.random.default_rng(seed)
    logits = rng.standard_normal((ROWS, TOKENS, VOCAB))
    answers = rng.integers(0, VOCAB, (ROWS, TOKENS))
    log_probabilities = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    scores = np.take_along_axis(log_probabilities, answers[..., None], -1)[..., 0]
    return {
        "logits": logits,
        "answer": answers,
        "scores": scores,
        "old": scores + 0.4 * rng.standard_normal((ROWS, TOKENS)),
        "reference": scores + 0.5 * rng.standard_normal((ROWS, TOKENS)),
        "advantages": rng.standard_normal(ROWS),
        "entropies": -(np.exp(log_probabilities) * log_probabilities).sum(-1),
    }


class FakeModel:
    """A model whose states are its logits."""

    def logits(self, states: jax.Array) -> jax.Array:
        return states


def jax_loss(objective: GRPO, tokens: dict[str, np.ndarray], logits: jax.Array) -> tuple[jax.Array, Any]:
    mask = jnp.asarray(MASK)
    rows = {
        "answer": tokens["answer"],
        "answer_weights": mask,
        "old_log_probabilities": tokens["old"],
        "reference_log_probabilities": tokens["reference"],
        "advantages": mask * tokens["advantages"][:, None],
        "token_weights": mask / objective._token_divisor(mask.sum(1, keepdims=True)),
        "loss_weights": jnp.ones(ROWS),
    }
    loss = policy_loss(objective, FakeModel(), logits, rows, LossSettings(VOCAB, ROWS))
    return loss.total / loss.weight, loss.means("loss")


def trl_loss(
    loss_type: str, clip_high: float, beta: float, tokens: dict[str, np.ndarray]
) -> tuple[float, np.ndarray, dict[str, float]]:
    """The loss of TRL's GRPO, its gradient by the logits, and its metrics."""
    torch = pytest.importorskip("torch")
    trainer = pytest.importorskip("trl.trainer.grpo_trainer").GRPOTrainer
    logits = torch.tensor(tokens["logits"], requires_grad=True)
    answers = torch.tensor(tokens["answer"])
    scores = torch.log_softmax(logits, -1).gather(-1, answers[..., None])[..., 0]
    metrics: dict[str, Any] = {"train": defaultdict(list)}
    fake = SimpleNamespace(
        _get_per_token_logps_and_entropies=lambda *_, **__: (scores, torch.tensor(tokens["entropies"]), None),
        aux_loss_enabled=False,
        top_entropy_quantile=1.0,
        off_policy_mask_threshold=None,
        importance_sampling_level="token",
        beta=beta,
        epsilon_low=0.2,
        epsilon_high=clip_high,
        args=SimpleNamespace(use_bias_correction_kl=False, delta=None, steps_per_generation=1),
        loss_type=loss_type,
        use_vllm=False,
        current_gradient_accumulation_steps=1,
        max_completion_length=TOKENS,
        _entropy_bonus_enabled=False,
        model=SimpleNamespace(training=True),
        accelerator=SimpleNamespace(gather=lambda x: x, reduce=lambda x, **_: x, num_processes=1),
        _metrics=metrics,
    )
    inputs = {
        "prompt_ids": torch.ones(ROWS, 1, dtype=torch.long),
        "prompt_mask": torch.ones(ROWS, 1),
        "completion_ids": answers,
        "completion_mask": torch.tensor(MASK.astype(np.float64)),
        "advantages": torch.tensor(tokens["advantages"]),
        "old_per_token_logps": torch.tensor(tokens["old"]),
        "ref_per_token_logps": torch.tensor(tokens["reference"]),
        "num_items_in_batch": torch.tensor(MASK.sum()),
    }
    loss = trainer._compute_loss(fake, None, inputs)
    loss.backward()
    values = {name: float(value[0]) for name, value in metrics["train"].items()}
    return float(loss.detach()), logits.grad.numpy(), values


@pytest.mark.parametrize(
    ("average", "loss_type"), [("answers", "grpo"), ("tokens", "dapo"), ("tokens", "bnpo"), ("length", "dr_grpo")]
)
@pytest.mark.parametrize("clip_high", [0.2, 0.28])
def test_losses_gradients_and_metrics_of_grpo_equal_those_of_trl(
    average: str, loss_type: str, clip_high: float
) -> None:
    tokens = random_tokens(0)
    expected_loss, expected_gradient, expected_metrics = trl_loss(loss_type, clip_high, 0.04, tokens)
    objective = GRPO.model_validate(
        {"verifier": "exact_match", "average": average, "clip_high": clip_high, "answer_len": TOKENS}
    )
    with jax.enable_x64(True):
        (loss, metrics), gradient = jax.value_and_grad(
            lambda logits: jax_loss(objective, tokens, logits), has_aux=True
        )(jnp.asarray(tokens["logits"]))
    assert float(loss) == pytest.approx(expected_loss, rel=1e-6)
    np.testing.assert_allclose(gradient, expected_gradient, rtol=1e-5, atol=1e-9)
    assert float(metrics["kl"]) == pytest.approx(expected_metrics["kl"], rel=1e-6)
    assert float(metrics["entropy"]) == pytest.approx(expected_metrics["entropy"], rel=1e-6)
    assert float(metrics["clipped_share"]) == pytest.approx(expected_metrics["clip_ratio/region_mean"], rel=1e-6)
    assert float(metrics["clipped_share"]) > 0


@pytest.mark.parametrize("scaled", [True, False])
def test_advantages_of_a_group_are_those_of_trl(scaled: bool) -> None:
    rewards = np.array([[1.0, 0.0, 0.0, 1.0], [0.5, 0.5, 0.5, 0.5], [3.0, -1.0, 0.2, 7.0]], np.float32)
    expected = rewards - rewards.mean(1, keepdims=True)
    if scaled:  # as in GRPOTrainer._generate_and_score_completions, with nanstd
        torch = pytest.importorskip("torch")
        nanstd = pytest.importorskip("trl.trainer.utils").nanstd
        expected = expected / (nanstd(torch.tensor(rewards), dim=1).numpy()[:, None] + 1e-4)
    np.testing.assert_allclose(
        policy_losses.group_advantages(jnp.asarray(rewards), scaled=scaled), expected, rtol=1e-5, atol=1e-6
    )


def numpy_advantages(
    rewards: np.ndarray, values: np.ndarray, sizes: np.ndarray, discount: float, decay: float
) -> np.ndarray:
    """Sums of (γλ)^k δ_{t+k} to the end of each answer: Schulman et al. 2016, eq. 16."""
    advantages = np.zeros_like(rewards)
    for row, size in enumerate(sizes):
        for start in range(size):
            for token in range(start, size):
                next_value = values[row, token + 1] if token + 1 < size else 0.0
                error = rewards[row, token] + discount * next_value - values[row, token]
                advantages[row, start] += (discount * decay) ** (token - start) * error
    return advantages


@pytest.mark.parametrize(("discount", "decay"), [(1.0, 0.95), (0.9, 0.5), (1.0, 1.0), (0.99, 0.0)])
def test_generalised_advantages_are_the_sums_of_the_paper(discount: float, decay: float) -> None:
    rng = np.random.default_rng(1)
    rewards = rng.standard_normal((ROWS, TOKENS)) * MASK
    values = rng.standard_normal((ROWS, TOKENS))
    with jax.enable_x64(True):
        advantages, returns = policy_losses.generalised_advantages(rewards, values, MASK, discount, decay)
    expected = numpy_advantages(rewards, values, SIZES, discount, decay)
    np.testing.assert_allclose(advantages, expected, rtol=1e-6, atol=1e-9)
    np.testing.assert_allclose(returns, expected + values * MASK, rtol=1e-6, atol=1e-9)


def test_the_reward_of_an_answer_comes_at_its_last_token_and_every_token_pays_for_its_distance() -> None:
    scores = np.log([[0.5, 0.25, 0.5], [0.5, 0.5, 0.5]])
    reference = np.log([[0.25, 0.5, 0.5], [0.5, 0.25, 0.5]])
    weights = np.array([[1.0, 1.0, 0.0], [1.0, 1.0, 1.0]])
    rewards = policy_losses.token_rewards(np.array([3.0, -1.0]), scores, reference, weights, 0.1)
    log2 = 0.1 * np.log(2)
    np.testing.assert_allclose(rewards, [[-log2, 3 + log2, 0], [0, -log2, -1]], atol=1e-6)


def test_losses_of_ppo_and_their_gradients_are_the_formulas_of_the_paper() -> None:
    """Schulman et al. 2017, eq. 7 and 9, with the clipped values of the code, differentiated by PyTorch."""
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(2)
    names = ("scores", "old", "advantages", "values", "old_values", "returns")
    arrays = {name: 0.5 * rng.standard_normal((ROWS, TOKENS)) for name in names}
    tensors = {name: torch.tensor(value, requires_grad=True) for name, value in arrays.items()}
    mask = torch.tensor(MASK.astype(np.float64))
    ratio = torch.exp(tensors["scores"] - tensors["old"])
    surrogate = torch.minimum(
        ratio * tensors["advantages"], torch.clip(ratio, 1 - 0.2, 1 + 0.2) * tensors["advantages"]
    )
    near = tensors["old_values"] + torch.clip(tensors["values"] - tensors["old_values"], -0.2, 0.2)
    squares = torch.maximum((tensors["values"] - tensors["returns"]) ** 2, (near - tensors["returns"]) ** 2)
    expected = ((-surrogate + 0.1 * 0.5 * squares) * mask).sum() / mask.sum()
    expected.backward()

    def loss(scores: jax.Array, values: jax.Array) -> jax.Array:
        losses, _ = policy_losses.clipped_policy_losses(scores, arrays["old"], arrays["advantages"], 0.2, 0.2)
        value_losses = policy_losses.clipped_value_losses(values, arrays["old_values"], arrays["returns"], 0.2)
        return (jnp.sum(losses * MASK) + 0.1 * jnp.sum(value_losses * MASK)) / MASK.sum()

    with jax.enable_x64(True):
        value, gradients = jax.value_and_grad(loss, argnums=(0, 1))(
            jnp.asarray(arrays["scores"]), jnp.asarray(arrays["values"])
        )
    assert float(value) == pytest.approx(float(expected.detach()), rel=1e-6)
    np.testing.assert_allclose(gradients[0], tensors["scores"].grad, rtol=1e-5, atol=1e-9)
    np.testing.assert_allclose(gradients[1], tensors["values"].grad, rtol=1e-5, atol=1e-9)


def test_whitened_advantages_have_mean_zero_and_variance_one_over_the_tokens() -> None:
    advantages = np.random.default_rng(3).standard_normal((ROWS, TOKENS)).astype(np.float32) * 4 + 2
    whitened = np.asarray(policy_losses.whiten(jnp.asarray(advantages), jnp.asarray(MASK)))
    kept_tokens = whitened[MASK > 0]
    assert kept_tokens.mean() == pytest.approx(0, abs=1e-5)
    assert kept_tokens.var() == pytest.approx(1, rel=1e-4)
    assert not whitened[MASK == 0].any()


@pytest.mark.parametrize("chunks", [1, 5])
def test_log_probabilities_and_entropies_of_tokens_are_those_of_scipy(chunks: int) -> None:
    special = pytest.importorskip("scipy.special")
    stats = pytest.importorskip("scipy.stats")
    tokens = random_tokens(4)
    scores, entropies = token_log_probabilities(
        lambda states: states,
        jnp.asarray(tokens["logits"], jnp.float32),
        jnp.asarray(tokens["answer"]),
        LossSettings(VOCAB, ROWS, chunks=chunks),
        temperature=0.7,
    )
    expected = special.log_softmax(tokens["logits"] / 0.7, axis=-1)
    np.testing.assert_allclose(
        scores, np.take_along_axis(expected, tokens["answer"][..., None], -1)[..., 0], rtol=1e-5, atol=1e-5
    )
    np.testing.assert_allclose(entropies, stats.entropy(np.exp(expected), axis=-1), rtol=1e-5, atol=1e-5)


def test_an_objective_without_a_source_of_rewards_or_with_two_is_refused() -> None:
    assert issubclass(GRPO, PolicyOptimization)
    with pytest.raises(ValueError, match=r"grpo needs one reward: `verifier` .* or `reward_run`, found neither"):
        GRPO()
    with pytest.raises(ValueError, match=r"grpo needs one reward: `verifier` .* or `reward_run`, found both"):
        GRPO(verifier=ExactMatch(), reward_run="runs/reward")


@dataclass
class TableModel:
    """A model of token pairs: a table has the logits after each token and, in its last column, the value."""

    table: np.ndarray
    reference: "TableModel | None" = None

    def __call__(self, tokens: jax.Array, **_: object) -> jax.Array:
        return jnp.asarray(self.table)[tokens]

    def logits(self, states: jax.Array) -> jax.Array:
        return states[..., :-1]

    def head(self, states: jax.Array, key: None) -> jax.Array:
        return states[..., -1:]


def table_model() -> TableModel:
    tables = np.random.default_rng(5).standard_normal((2, VOCAB, VOCAB + 1))
    return TableModel(tables[0], TableModel(tables[1]))


PROMPTS = {
    "prompt": np.array([[0, 2, 5], [1, 3, 4]], np.int32),
    "prompt_segments": np.array([[0, 1, 1], [1, 1, 1]], np.int32),
}
ANSWER_SIZES = np.array([2, 1, 3, 2])
ANSWERS = np.array([[[1, 6, -1], [2, -1, -1]], [[0, 0, 6], [3, 6, -1]]], np.int32)
"""Two answers to each prompt."""
TOKENS_BEFORE = np.array([[5, 1, 6], [5, 2, 0], [4, 0, 0], [4, 3, 6]])
"""The token before each token of an answer; beyond the answer any."""


def answer_mask(sizes: np.ndarray) -> np.ndarray:
    return (np.arange(3) < sizes[:, None]).astype(np.float32)


def scores_by_table(table: np.ndarray, answers: np.ndarray, before: np.ndarray) -> np.ndarray:
    """Return the log-probability of each token of the answers after the token before it."""
    logits = table[before, :VOCAB]
    scores = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    return np.take_along_axis(scores, np.maximum(answers, 0)[..., None], -1)[..., 0]


@pytest.mark.parametrize("average", ["answers", "tokens", "length"])
def test_the_rows_of_grpo_have_the_advantages_and_weights_computed_by_hand(average: str) -> None:
    """Two rewards that differ by d have advantages of ±d/2, and their standard deviation is d/√2."""
    objective = GRPO.model_validate({"verifier": "exact_match", "group": 2, "average": average, "answer_len": 3})
    model = table_model()
    rewards = np.array([[1.0, 0.0], [3.0, 7.0]], np.float32)
    with jax.enable_x64(True):
        batch = {**PROMPTS, "answers": ANSWERS, "rewards": rewards}
        rows = jax.device_get(objective.prepare(model, batch, LossSettings(VOCAB, 4)))
    mask = answer_mask(ANSWER_SIZES)
    advantages = np.array([0.5, -0.5, -2.0, 2.0])
    if average != "length":
        advantages = advantages / (np.array([1, 1, 4, 4]) / np.sqrt(2) + 1e-4)
    divisors = {"answers": ANSWER_SIZES, "tokens": np.ones(4), "length": np.full(4, 3)}
    np.testing.assert_allclose(rows["advantages"], mask * advantages[:, None], rtol=1e-6)
    np.testing.assert_allclose(rows["token_weights"], mask / divisors[average][:, None], rtol=1e-6)
    np.testing.assert_array_equal(rows["answer_weights"], mask)
    answers = ANSWERS.reshape(4, 3)
    assert model.reference is not None
    for name, table in (("old", model.table), ("reference", model.reference.table)):
        expected = scores_by_table(table, answers, TOKENS_BEFORE)
        np.testing.assert_allclose(mask * rows[f"{name}_log_probabilities"], mask * expected, rtol=1e-6)


def test_the_rows_of_ppo_have_the_advantages_returns_and_values_of_the_papers() -> None:
    """Rewards of Stiennon et al. 2020, §3.4, with β = 0.3; advantages of Schulman et al. 2016, whitened."""
    objective = PPO.model_validate(
        {"verifier": "exact_match", "answer_len": 3, "beta": 0.3, "discount": 0.9, "decay": 0.5}
    )
    model = table_model()
    assert model.reference is not None
    rewards = np.array([2.0, -1.0])
    batch = {**PROMPTS, "answers": ANSWERS[:, :1], "rewards": rewards[:, None]}
    with jax.enable_x64(True):
        rows = jax.device_get(objective.prepare(model, batch, LossSettings(VOCAB, 2)))
    sizes = ANSWER_SIZES[::2]
    answers = ANSWERS[:, 0]
    before = TOKENS_BEFORE[::2]
    mask = answer_mask(sizes)
    scores = scores_by_table(model.table, answers, before)
    reference_scores = scores_by_table(model.reference.table, answers, before)
    token_rewards = -0.3 * mask * (scores - reference_scores)
    token_rewards[0, 1] += 2.0
    token_rewards[1, 2] -= 1.0
    values = model.table[before, VOCAB]
    advantages = numpy_advantages(token_rewards, values, sizes, 0.9, 0.5)
    kept_tokens = advantages[mask > 0]
    whitened = mask * (advantages - kept_tokens.mean()) / kept_tokens.std()
    np.testing.assert_allclose(rows["advantages"], whitened, rtol=1e-5)
    np.testing.assert_allclose(rows["returns"], advantages + mask * values, rtol=1e-5)
    np.testing.assert_allclose(mask * rows["old_values"], mask * values, rtol=1e-6)
    np.testing.assert_array_equal(rows["token_weights"], mask)
    np.testing.assert_allclose(mask * rows["old_log_probabilities"], mask * scores, rtol=1e-6)
    np.testing.assert_allclose(mask * rows["reference_log_probabilities"], mask * reference_scores, rtol=1e-6)


def test_without_a_weight_of_the_divergence_the_rewards_of_ppo_are_those_of_the_answers() -> None:
    """With γ = λ = 1 the return of every token is then the reward of its answer."""
    objective = PPO(verifier=ExactMatch(), answer_len=3, beta=0.0, decay=1.0)
    batch = {**PROMPTS, "answers": ANSWERS[:, :1], "rewards": np.array([[2.0], [-1.0]], np.float32)}
    rows = objective.prepare(TableModel(table_model().table), batch, LossSettings(VOCAB, 2))
    assert "reference_log_probabilities" not in rows
    np.testing.assert_allclose(rows["returns"], [[2, 2, 0], [-1, -1, -1]], atol=1e-5)
