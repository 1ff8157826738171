"""The train step: properties that do not depend on the model."""

import re
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jaxtyping import PyTree

from t5x_lite.config import RunConfig
from t5x_lite.models.loss_terms import LossTerms
from t5x_lite.models.losses import LossSums
from t5x_lite.models.spec import init_params, model_spec
from t5x_lite.models.weight_gradients import product_of_rows
from t5x_lite.objectives import Causal
from t5x_lite.parallel.mesh import make_mesh
from t5x_lite.run_loss import loss_function
from t5x_lite.train.accumulation import Accumulation
from t5x_lite.train.parameter_update import ParameterUpdate
from t5x_lite.train.state import TrainState
from t5x_lite.train.step import train_step
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


ToyLoss: TypeAlias = Callable[[jax.Array, dict[str, jax.Array], jax.Array], LossSums]
"""Maps parameters, a batch and a key to the sums of a loss."""


def toy_step(
    loss: ToyLoss, optimizer: optax.GradientTransformation, microbatches: int = 1, seed: int = 0
) -> Callable[[TrainState, dict[str, jax.Array]], tuple[TrainState, dict[str, jax.Array]]]:
    """Return the step of a loss on parameters [1, 2], which adds 1 to a carried state."""

    def loss_terms(
        params: jax.Array, state: TrainState, batch: dict[str, jax.Array], key: jax.Array
    ) -> tuple[LossTerms, PyTree]:
        return {"loss": loss(params, batch, key)}, jax.tree.map(lambda memory: memory + 1, state.carry)

    training_loss = TrainingLoss("toy", loss_terms, {"loss": "loss_weights"})
    return partial(train_step, training_loss, ParameterUpdate(optimizer), Accumulation(microbatches), seed)


def toy_state(optimizer: optax.GradientTransformation, step: int = 0) -> TrainState:
    params = jnp.array([1.0, 2.0])
    zero = jnp.zeros((), jnp.int32)
    carry = {"memory": jnp.full(3, 7.0)}
    return TrainState(jnp.int32(step), params, optimizer.init(params), zero, zero, {}, carry=carry)


def toy_sums(total: jax.Array, batch: dict[str, jax.Array]) -> LossSums:
    return LossSums.of_loss(total, batch["loss_weights"].sum())


def test_random_keys_differ_by_seed_step_and_microbatch() -> None:
    def random_loss(params: jax.Array, batch: dict[str, jax.Array], key: jax.Array) -> LossSums:
        number = jax.random.uniform(key)
        sums = toy_sums(number + 0 * params.sum(), batch)
        return replace(sums, correct=jnp.square(number))

    optimizer = optax.sgd(0.0)
    batch = {"loss_weights": jnp.ones(4)}

    def random_number(seed: int, step: int) -> float:
        _, metrics = toy_step(random_loss, optimizer, seed=seed)(toy_state(optimizer, step), batch)
        return float(metrics["loss"])

    assert random_number(seed=0, step=5) == random_number(seed=0, step=5)
    assert len({random_number(seed, step) for seed in (0, 1) for step in (5, 6, 7)}) == 6
    _, metrics = toy_step(random_loss, optimizer, microbatches=4)(toy_state(optimizer), batch)
    # The mean of the squares is that of the numbers squared only if all are equal. All metrics are divided by 4.
    assert float(metrics["accuracy"]) > 1.05 * float(metrics["loss"]) ** 2


def test_dropout_follows_the_seed_of_the_run_and_evaluation_draws_no_random_numbers() -> None:
    config = RunConfig.model_validate(
        {
            "model": {"layers": 1, "embed": 8, "heads": 2, "vocab": 40, "dropout": 0.5},
            "optimizer": {"method": "sgd"},
            "train": {"steps": 4, "batch_size": 8, "seq_len": 12, "seed": 12345},
        }
    )
    steps = make_steps(config, model_spec(config.model), make_mesh(config.mesh))
    train_program = str(jax.make_jaxpr(steps.train)(steps.state, causal_batch()))
    assert re.findall(r"random_seed\[.*\] (\S+)", train_program) == ["12345:i32[]"]
    assert "random_bits" in train_program
    program = jax.make_jaxpr(steps.evaluate)((steps.state.params, steps.state.frozen), causal_batch())
    assert "random_bits" not in str(program)


def test_the_norm_of_the_gradient_is_that_before_clipping() -> None:
    """The gradient of 3 x + 4 y has norm 5, and clipped to 1 it is (0.6, 0.8)."""
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.sgd(0.5))

    def loss(params: jax.Array, batch: dict[str, jax.Array], key: jax.Array) -> LossSums:
        return toy_sums(batch["loss_weights"].sum() * (params * jnp.array([3.0, 4.0])).sum(), batch)

    state, metrics = toy_step(loss, optimizer)(toy_state(optimizer), {"loss_weights": jnp.ones(4)})
    assert float(metrics["grad_norm"]) == pytest.approx(5)
    np.testing.assert_allclose(state.params, [1 - 0.5 * 0.6, 2 - 0.5 * 0.8], rtol=1e-6)


@pytest.mark.parametrize("part", ["loss", "gradient"])
def test_a_skipped_update_keeps_the_parameters_the_optimizer_and_the_carried_state(part: str) -> None:
    """The square root of 0 has a loss of 0, and a gradient that is not finite."""
    optimizer = optax.adam(0.1)

    def loss(params: jax.Array, batch: dict[str, jax.Array], key: jax.Array) -> LossSums:
        total = params.sum()
        if part == "loss":
            return toy_sums(total + batch["infinite"].sum(), batch)
        return toy_sums(total + jnp.sqrt(params[0] * (1 - batch["spoils"].max())), batch)

    spoilt = {"loss_weights": jnp.ones(4), "infinite": jnp.full(4, jnp.inf), "spoils": jnp.ones(4)}
    sound = {"loss_weights": jnp.ones(4), "infinite": jnp.zeros(4), "spoils": jnp.zeros(4)}
    step = toy_step(loss, optimizer)
    before, metrics = step(toy_state(optimizer), sound)
    assert int(metrics["skipped"]) == 0
    assert before.carry["memory"].tolist() == [8.0] * 3
    after, metrics = step(before, spoilt)
    assert (int(after.step), int(metrics["skipped"])) == (2, 1)
    assert np.isfinite(float(metrics["grad_norm"])) == (part == "loss")
    for name in ("params", "opt_state", "carry"):
        jax.tree.map(np.testing.assert_array_equal, getattr(after, name), getattr(before, name))


def test_z_loss_and_label_smoothing_are_a_part_of_the_training_loss_alone() -> None:
    """Chowdhery et al. 2022, §5, and Szegedy et al. 2016, §7, in NumPy from the logits."""
    config = RunConfig.model_validate(
        {
            "model": {"layers": 1, "embed": 8, "heads": 2, "vocab": 40},
            "train": {"steps": 1, "batch_size": 8, "seq_len": 12, "z_loss": 0.03, "label_smoothing": 0.2},
        }
    )
    spec = model_spec(config.model)
    params = jax.tree.map(lambda array: 10 * array, init_params(config.model, jax.random.key(0)))
    batch = causal_batch()

    @jax.jit
    def compute(params: PyTree) -> tuple[jax.Array, LossTerms, LossTerms]:
        model = spec.model(params)
        states = model(batch["tokens"], positions=batch["positions"], segment_ids=batch["segment_ids"])
        training, evaluation = (
            loss_function(config, spec, 1, training=is_training)(params, batch, None) for is_training in (True, False)
        )
        return model.logits(states), training, evaluation

    computed_logits, training, evaluation = compute(params)
    logits = np.asarray(computed_logits, np.float64)
    log_z = np.log(np.exp(logits).sum(-1))
    target_logits = np.take_along_axis(logits, batch["targets"][..., None], -1)[..., 0]
    loss = log_z - target_logits
    minimised = 0.8 * loss + 0.2 * (log_z - logits.mean(-1)) + 0.03 * log_z**2
    for terms, expected in ((training, minimised), (evaluation, loss)):
        assert float(terms["loss"].total) == pytest.approx((batch["loss_weights"] * expected).sum(), rel=1e-4)
        assert float(terms["loss"].loss) == pytest.approx((batch["loss_weights"] * loss).sum(), rel=1e-4)


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
