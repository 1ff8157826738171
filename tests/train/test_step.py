"""The train step: properties that do not depend on the model."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from t5x_lite.config import RunConfig
from t5x_lite.models.config import ModelConfig
from t5x_lite.models.loss_terms import LossTerms
from t5x_lite.models.losses import TokenLoss
from t5x_lite.models.spec import init_params, model_spec
from t5x_lite.objectives import Causal
from t5x_lite.objectives.objective import ExampleLengths
from t5x_lite.parallel.mesh import make_mesh
from t5x_lite.train.flops import flops_per_example
from t5x_lite.train.state import TrainState
from t5x_lite.train.step import train_step
from t5x_lite.train.steps import Steps, make_steps
from t5x_lite.train.training_loss import TrainingLoss
from tests.objectives.vocabulary import context, row


def small_steps(**train: object) -> Steps:
    config = RunConfig.model_validate(
        {
            "model": {"layers": 2, "embed": 32, "heads": 2, "vocab": 40},
            "optimizer": {"learning_rate": 0.01, "schedule": "constant", "weight_decay": 0.0},
            "train": {"steps": 200, "batch_size": 8, "seq_len": 12} | train,
        }
    )
    return make_steps(config, model_spec(config.model), make_mesh(config.mesh))


def causal_batch(seed: int = 0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    segments = np.repeat([1, 2, 0], [6, 5, 2]).astype(np.int32)
    tokens = rng.integers(1, 40, (8, 13), dtype=np.int32)
    # Documents begin with different tokens, so that a model can tell them apart.
    tokens[:, 0] = np.arange(1, 9)
    tokens[:, 6] = np.arange(11, 19)
    examples = [Causal().example(row(text, segments.tolist()), context(12), rng) for text in tokens]
    return {name: np.stack([example[name] for example in examples]) for name in examples[0]}


def test_one_batch_is_learnt_by_heart() -> None:
    steps = small_steps()
    state = steps.create_state()
    metrics: dict[str, jax.Array] = {}
    for _ in range(150):
        state, metrics = steps.train(state, causal_batch())
    assert float(metrics["loss"]) < 0.01


def test_four_microbatches_equal_one_batch() -> None:
    steps_of_one = small_steps()
    steps_of_four = small_steps(microbatches=4)
    one_state, one_metrics = steps_of_one.train(steps_of_one.create_state(), causal_batch())
    four_state, four_metrics = steps_of_four.train(steps_of_four.create_state(), causal_batch())
    np.testing.assert_allclose(one_metrics["loss"], four_metrics["loss"], rtol=1e-6)
    np.testing.assert_allclose(one_metrics["grad_norm"], four_metrics["grad_norm"], rtol=1e-5)
    # Adam's first update is the sign of the gradient, so that rounding of a gradient near zero can turn it.
    one_moments = jax.tree.leaves(one_state.opt_state[1].mu)
    four_moments = jax.tree.leaves(four_state.opt_state[1].mu)
    for one_moment, four_moment in zip(one_moments, four_moments, strict=True):
        np.testing.assert_allclose(one_moment, four_moment, rtol=1e-4, atol=1e-8)


def test_the_loss_is_a_mean_over_target_tokens_of_the_whole_batch() -> None:
    steps = small_steps(microbatches=4)
    batch = causal_batch()
    batch["loss_weights"][:6] = 0
    _, metrics = steps.train(steps.create_state(), batch)
    config = RunConfig.model_validate(
        {
            "model": {"layers": 2, "embed": 32, "heads": 2, "vocab": 40},
            "train": {"steps": 1, "batch_size": 8, "seq_len": 12},
        }
    )
    model = model_spec(config.model).model(init_params(config.model, jax.random.key(0)))
    states = model(batch["tokens"], positions=batch["positions"], segment_ids=batch["segment_ids"])
    log_p = np.asarray(jax.nn.log_softmax(model.logits(states)), np.float64)
    target_log_p = np.take_along_axis(log_p, batch["targets"][..., None], -1)[..., 0]
    assert float(metrics["loss"]) == pytest.approx(-target_log_p[batch["loss_weights"] > 0].mean(), rel=1e-5)


def test_a_batch_without_the_declared_weights_of_a_term_is_refused() -> None:
    steps = small_steps()
    batch = causal_batch()
    del batch["loss_weights"]
    message = "objective causal: the loss term 'loss' takes its weights from the feature 'loss_weights', but"
    with pytest.raises(ValueError, match=message):
        steps.train(steps.create_state(), batch)


def test_a_term_whose_weights_are_not_declared_is_refused() -> None:
    def loss_terms(params: jax.Array, frozen: dict, batch: dict[str, jax.Array], key: jax.Array) -> LossTerms:
        weights = batch["loss_weights"]
        zero = jnp.zeros(())
        loss = TokenLoss(params * weights.sum(), zero, zero, zero, weights.sum())
        return {"loss": loss, "second": loss}

    optimizer = optax.sgd(0.1)
    params = jnp.ones(())
    count = jnp.zeros((), jnp.int32)
    state = TrainState(count, params, optimizer.init(params), count, count, {})
    batch = {"loss_weights": jnp.ones(4)}
    declared = TrainingLoss("toy", loss_terms, {"loss": "loss_weights", "second": "loss_weights"})
    new_state, _ = train_step(declared, optimizer, 1, 0, state, batch)
    assert float(new_state.params) == pytest.approx(1 - 0.1 * 2)
    undeclared = TrainingLoss("toy", loss_terms, {"loss": "loss_weights"})
    with pytest.raises(ValueError, match="objective toy: the weights of the loss term 'second' are not declared"):
        train_step(undeclared, optimizer, 1, 0, state, batch)


def test_an_update_that_is_not_finite_is_skipped_and_counted() -> None:
    steps = small_steps()
    state = steps.create_state()
    infinite = dict(causal_batch(), loss_weights=np.full((8, 12), np.inf, np.float32))
    before = jax.tree.map(np.asarray, state.params)
    state, metrics = steps.train(state, infinite)
    state, metrics = steps.train(state, infinite)
    assert (int(metrics["skipped"]), int(metrics["skipped_in_a_row"]), int(state.step)) == (2, 2, 2)
    jax.tree.map(np.testing.assert_array_equal, before, jax.tree.map(np.asarray, state.params))
    state, metrics = steps.train(state, causal_batch())
    assert (int(metrics["skipped"]), int(metrics["skipped_in_a_row"])) == (2, 0)


def test_compute_in_bfloat16_keeps_float32_parameters() -> None:
    config = RunConfig.model_validate(
        {
            "model": {"layers": 2, "embed": 32, "heads": 2, "vocab": 40, "compute": "bfloat16"},
            "train": {"steps": 10, "batch_size": 8, "seq_len": 12},
        }
    )
    steps = make_steps(config, model_spec(config.model), make_mesh(config.mesh))
    state, metrics = steps.train(steps.create_state(), causal_batch())
    assert {leaf.dtype for leaf in jax.tree.leaves(state.params)} == {jnp.dtype("float32")}
    assert float(metrics["loss"]) == pytest.approx(np.log(40), rel=0.02)


def first_weight(seed: int) -> np.ndarray:
    return np.asarray(jax.tree.leaves(small_steps(seed=seed).create_state().params)[0])


def test_the_seed_decides_the_weights() -> None:
    np.testing.assert_array_equal(first_weight(seed=3), first_weight(seed=3))
    assert np.abs(first_weight(seed=3) - first_weight(seed=4)).max() > 1e-3


def test_flops_of_gpt2_by_hand() -> None:
    """PaLM, appendix B: 6N and 12·L·H·Q·T a token, attention counted half because it is causal."""
    config = ModelConfig.model_validate({"layers": 12, "embed": 768, "heads": 12, "vocab": 50257})
    weights = 12 * 12 * 768**2 + 50257 * 768
    flops = flops_per_example(config, model_spec(config), ExampleLengths(1024, 1024))
    assert flops == 1024 * (6 * weights + 6 * 12 * 12 * 64 * 1024)


def test_flops_of_t5_by_hand() -> None:
    """Encoder weights see the inputs, decoder weights the targets; cross-attention's keys and values the inputs."""
    config = ModelConfig.model_validate(
        {
            "family": "encoder_decoder",
            "layers": 2,
            "embed": 8,
            "heads": 2,
            "mlp": 16,
            "vocab": 32,
            "positions": "relative",
        }
    )
    attention = 4 * 8 * 8
    mlp = 2 * 8 * 16
    inputs = 20
    targets = 6
    weight_uses = inputs * 2 * (attention + mlp) + targets * 2 * (attention + mlp) + 2 * 2 * 64 * (inputs + targets)
    query_key_pairs = 2 * (inputs**2 + targets**2 / 2 + inputs * targets)
    flops = flops_per_example(config, model_spec(config), ExampleLengths(inputs, targets, targets))
    assert flops == 6 * weight_uses + 6 * 32 * 8 * targets + 12 * 8 * query_key_pairs


def test_flops_of_shared_layers_count_every_pass() -> None:
    settings = {"layers": 3, "embed": 8, "heads": 2, "vocab": 32}
    shared = ModelConfig.model_validate(settings | {"shared_layers": True})
    separate = ModelConfig.model_validate(settings | {"shared_layers": False})
    lengths = ExampleLengths(16, 16)
    assert model_spec(shared).parameters < model_spec(separate).parameters
    assert flops_per_example(shared, model_spec(shared), lengths) == flops_per_example(
        separate, model_spec(separate), lengths
    )
