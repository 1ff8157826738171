"""The train step: properties that do not depend on the model."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from t5x_lite.config import RunConfig
from t5x_lite.models.loss_terms import LossTerms
from t5x_lite.models.losses import LossSums
from t5x_lite.models.spec import init_params, model_spec
from t5x_lite.models.weight_gradients import product_of_rows
from t5x_lite.objectives import Causal
from t5x_lite.parallel.mesh import make_mesh
from t5x_lite.train.parameter_update import ParameterUpdate
from t5x_lite.train.state import TrainState
from t5x_lite.train.step import Accumulation, train_step
from t5x_lite.train.steps import Steps, make_steps
from t5x_lite.train.training_loss import TrainingLoss
from tests.objectives.vocabulary import context, row


def small_steps(**train: object) -> Steps:
    """Return the steps of a small decoder with settings of `train`."""
    config = RunConfig.model_validate(
        {
            "model": {"layers": 2, "embed": 32, "heads": 2, "vocab": 40},
            "optimizer": {"learning_rate": 0.01, "schedule": "constant", "weight_decay": 0.0},
            "train": {"steps": 200, "batch_size": 8, "seq_len": 12} | train,
        }
    )
    return make_steps(config, model_spec(config.model), make_mesh(config.mesh))


def causal_batch() -> dict[str, np.ndarray]:
    """Return eight rows of two documents and padding."""
    rng = np.random.default_rng(0)
    segments = np.repeat([1, 2, 0], [6, 5, 2]).astype(np.int32)
    tokens = rng.integers(1, 40, (8, 13), dtype=np.int32)
    # Documents begin with different tokens, so that a model can tell them apart.
    tokens[:, 0] = np.arange(1, 9)
    tokens[:, 6] = np.arange(11, 19)
    examples = [Causal().example(row(text, segments.tolist()), context(12), rng) for text in tokens]
    return {name: np.stack([example[name] for example in examples]) for name in examples[0]}


def test_a_model_memorises_one_batch() -> None:
    steps = small_steps()
    state = steps.create_state()
    metrics: dict[str, jax.Array] = {}
    for _ in range(150):
        state, metrics = steps.train(state, causal_batch())
    assert float(metrics["loss"]) < 0.01


def test_four_microbatches_equal_one_batch() -> None:
    steps = small_steps()
    microbatch_steps = small_steps(microbatches=4)
    state, metrics = steps.train(steps.create_state(), causal_batch())
    microbatch_state, microbatch_metrics = microbatch_steps.train(microbatch_steps.create_state(), causal_batch())
    np.testing.assert_allclose(metrics["loss"], microbatch_metrics["loss"], rtol=1e-6)
    np.testing.assert_allclose(metrics["grad_norm"], microbatch_metrics["grad_norm"], rtol=1e-5)
    # Adam's first update is the sign of the gradient, so that rounding can reverse that of a gradient near zero.
    moments = jax.tree.leaves(state.opt_state[1].mu)
    microbatch_moments = jax.tree.leaves(microbatch_state.opt_state[1].mu)
    for moment, microbatch_moment in zip(moments, microbatch_moments, strict=True):
        np.testing.assert_allclose(moment, microbatch_moment, rtol=1e-4, atol=1e-8)


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
    log_probabilities = np.asarray(jax.nn.log_softmax(model.logits(states)), np.float64)
    target_log_probabilities = np.take_along_axis(log_probabilities, batch["targets"][..., None], -1)[..., 0]
    is_target = batch["loss_weights"] > 0
    assert float(metrics["loss"]) == pytest.approx(-target_log_probabilities[is_target].mean(), rel=1e-5)


def test_a_batch_without_the_declared_weights_of_a_term_is_refused() -> None:
    steps = small_steps()
    batch = causal_batch()
    del batch["loss_weights"]
    message = "objective causal: the loss term 'loss' takes its weights from the feature 'loss_weights', but"
    with pytest.raises(ValueError, match=message):
        steps.train(steps.create_state(), batch)


def test_a_term_whose_weights_are_not_declared_is_refused() -> None:
    def loss_terms(
        params: jax.Array, state: TrainState, batch: dict[str, jax.Array], key: jax.Array
    ) -> tuple[LossTerms, dict]:
        weights = batch["loss_weights"]
        zero = jnp.zeros(())
        loss = LossSums(params * weights.sum(), zero, zero, zero, weights.sum())
        return {"loss": loss, "second": loss}, state.carry

    optimizer = optax.sgd(0.1)
    params = jnp.ones(())
    count = jnp.zeros((), jnp.int32)
    state = TrainState(count, params, optimizer.init(params), count, count, {})
    batch = {"loss_weights": jnp.ones(4)}
    declared = TrainingLoss("toy", loss_terms, {"loss": "loss_weights", "second": "loss_weights"})
    new_state, _ = train_step(declared, ParameterUpdate(optimizer), Accumulation(1), 0, state, batch)
    assert float(new_state.params) == pytest.approx(1 - 0.1 * 2)
    undeclared = TrainingLoss("toy", loss_terms, {"loss": "loss_weights"})
    with pytest.raises(ValueError, match="objective toy: the weights of the loss term 'second' are not declared"):
        train_step(undeclared, ParameterUpdate(optimizer), Accumulation(1), 0, state, batch)


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


def test_gradients_of_matrices_are_summed_in_float32_where_it_is_set() -> None:
    """A product of bfloat16 operands with a float32 result has bits that bfloat16 has not."""
    x = jax.random.normal(jax.random.key(0), (3, 50, 8)).astype(jnp.bfloat16)
    matrix = jax.random.normal(jax.random.key(1), (8, 4))

    def loss(matrix: jax.Array, x: jax.Array) -> jax.Array:
        return jnp.square(product_of_rows(x, matrix, jnp.bfloat16).astype(jnp.float32)).sum()

    matrix_gradient, x_gradient = jax.grad(loss, argnums=(0, 1))(matrix, x)
    rounded_matrix = np.asarray(matrix.astype(jnp.bfloat16), np.float64)
    rows = np.asarray(x, np.float64)
    outputs = np.asarray(x @ matrix.astype(jnp.bfloat16), np.float64)
    np.testing.assert_allclose(matrix_gradient, np.einsum("bld,blf->df", rows, 2 * outputs), rtol=1e-5, atol=1e-4)
    np.testing.assert_allclose(
        np.asarray(x_gradient, np.float64), 2 * outputs @ rounded_matrix.T, rtol=2**-7, atol=2**-5
    )
    assert (matrix_gradient.astype(jnp.bfloat16) != matrix_gradient).any()


@pytest.mark.parametrize("reduction", ["compute", "float32"])
def test_the_train_step_takes_the_type_of_the_reduction(reduction: str) -> None:
    """Per layer: query, key, value, output and the two matrices of the feed-forward."""
    config = RunConfig.model_validate(
        {
            "model": {"layers": 2, "embed": 32, "heads": 2, "vocab": 40, "compute": "bfloat16", "mlp": 96},
            "train": {"steps": 1, "batch_size": 8, "seq_len": 12, "reduction_dtype": reduction},
        }
    )
    steps = make_steps(config, model_spec(config.model), make_mesh(config.mesh))
    text = str(jax.make_jaxpr(steps.train)(steps.state, causal_batch()))
    expected = {"compute": 0, "float32": 6}
    products = re.findall(r"f32\[(\d+),(\d+)\] = dot_general\[", text)
    matrices = [shape for shape in products if set(shape) <= {"32", "96"}]
    assert len(matrices) == expected[reduction]
