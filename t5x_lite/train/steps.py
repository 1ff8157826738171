"""The compiled steps of a run on a mesh, with their shardings."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh
from jax.stages import Wrapped
from jax.typing import DTypeLike
from jaxtyping import Array, Float, PRNGKeyArray, PyTree

from t5x_lite.adapt.trainable import TrainableSplit
from t5x_lite.config import RunConfig
from t5x_lite.models.carry import empty_carry
from t5x_lite.models.experts.activity import ROUTER_TERM_WEIGHTS
from t5x_lite.models.layers import WeightAxes
from t5x_lite.models.loss_terms import PENALTY_TERM_WEIGHTS, Batch, LossTerms
from t5x_lite.models.spec import ModelSpec, init_params
from t5x_lite.objectives.distillation import add_token_weights
from t5x_lite.objectives.token_prediction import TokenPrediction
from t5x_lite.parallel import mesh as meshes
from t5x_lite.parallel.compiler_options import compiler_options
from t5x_lite.run_loss import carrying_loss_function, distillation_loss_function, loss_function, make_rollout_preparer
from t5x_lite.run_teacher import Teacher, open_teacher
from t5x_lite.train.accumulation import Accumulation, Replicas
from t5x_lite.train.optimization import make_optimizer, scale_learning_rates
from t5x_lite.train.parameter_update import ParameterUpdate, is_matrix_or_table
from t5x_lite.train.policy_step import UpdateStep, policy_step
from t5x_lite.train.state import TrainState
from t5x_lite.train.step import train_step
from t5x_lite.train.training_loss import TrainingLoss
from t5x_lite.trees import flatten_names, unflatten_names


@dataclass(frozen=True)
class Steps:
    """The jitted functions of one run on one mesh.

    Attributes:
        train: maps a state, which it consumes, and a batch to the next state and a dict of metrics.
        evaluate: maps a pair of trained and frozen parameters and a batch to the terms of the loss.
        create_state: returns the state of step 0 with fresh weights; without those of a teacher.
        create_state_from: returns the state of step 0 with the given weights, the whole tree of the model; without
            those of a teacher.
        join: returns the whole tree of weights from its trained and its frozen parameters.
        state: shapes and shardings of the state.
    """

    train: Wrapped
    evaluate: Callable[[tuple[PyTree, PyTree], Batch], LossTerms]
    create_state: Callable[[], TrainState]
    create_state_from: Callable[[PyTree], TrainState]
    join: Callable[[PyTree, PyTree], PyTree]
    state: TrainState


def make_steps(config: RunConfig, spec: ModelSpec, mesh: Mesh) -> Steps:
    """Return jitted steps with explicit shardings. Nothing is allocated or compiled yet."""
    split = config.trainable_split(spec.axes)
    teacher = open_teacher(config)
    update = _make_update(config, spec, split)
    masked = [name for name, axes in flatten_names(spec.axes).items() if config.method.prunes(name, axes)]

    def create_state_from(params: PyTree) -> TrainState:
        carry = {}
        if config.data.order == "consecutive":
            carry = empty_carry(config.model, config.train.batch_size)
        return _first_state(params, split, update, masked, carry)

    def create_state() -> TrainState:
        return create_state_from(init_params(config.model, jax.random.key(config.train.seed), config.method.surgery))

    evaluation_loss = loss_function(config, spec, meshes.batch_shards(mesh), training=False)

    def evaluate(params: tuple[PyTree, PyTree], batch: Batch) -> LossTerms:
        return evaluation_loss(split.join(*params), batch, None)

    update_step = partial(
        train_step,
        _training_loss(config, spec, mesh, split, teacher),
        update,
        _accumulation(config, spec, mesh, split),
        config.train.seed,
    )
    shapes = jax.eval_shape(create_state)
    first_shardings = meshes.state_shardings(mesh, spec.axes, shapes, update.init)
    state_shardings = first_shardings
    if teacher is not None:
        shapes = replace(shapes, teacher=teacher.spec.shapes)
        teacher_shardings = meshes.shardings(mesh, teacher.spec.axes, teacher.spec.shapes)
        state_shardings = replace(first_shardings, teacher=teacher_shardings)
    batch_sharding = meshes.batch_sharding(mesh)
    replicated = meshes.replicated(mesh)
    return Steps(
        train=jax.jit(
            _step_of_run(config, spec, mesh, split, update_step),
            donate_argnums=0,
            in_shardings=(state_shardings, batch_sharding),
            out_shardings=(state_shardings, replicated),
            compiler_options=compiler_options(config.train.compiler_options, mesh),
        ),
        evaluate=jax.jit(
            evaluate,
            in_shardings=((state_shardings.params, state_shardings.frozen), batch_sharding),
            out_shardings=replicated,
        ),
        create_state=jax.jit(create_state, out_shardings=first_shardings),
        create_state_from=jax.jit(
            create_state_from, donate_argnums=0 if split.trains_everything else (), out_shardings=first_shardings
        ),
        join=split.join,
        state=meshes.shape_structs(shapes, state_shardings),
    )


def _accumulation(config: RunConfig, spec: ModelSpec, mesh: Mesh, split: TrainableSplit) -> Accumulation:
    """Return how a run adds up the gradients of a batch on a mesh."""
    train = config.train
    dtype = jnp.dtype(train.gradient_dtype)
    if train.data_reduction == "microbatch" or mesh.shape["data"] == 1:
        return Accumulation(train.microbatches, dtype)
    matrix_dtype = jnp.float32 if train.reduction_dtype == "float32" else jnp.dtype(config.model.compute)

    def reduce_dtype(axes: WeightAxes) -> DTypeLike:
        """Return the type of a parameter's gradient after one microbatch: biases of positions have float32."""
        return matrix_dtype if is_matrix_or_table(axes) and "buckets" not in axes.names else jnp.float32

    reduce_dtypes = jax.tree.map(reduce_dtype, split.trained_leaves(spec.axes))
    return Accumulation(train.microbatches, dtype, Replicas(mesh.shape["data"], reduce_dtypes))


def _step_of_run(
    config: RunConfig, spec: ModelSpec, mesh: Mesh, split: TrainableSplit, update_step: UpdateStep
) -> UpdateStep:
    """Return the step on the batches of a run: one update, or with sampled answers several."""
    if config.policy_objective is not None:
        return _policy_step(config, spec, mesh, split, update_step)
    if config.distillation is not None:
        return _with_token_weights(update_step)
    return update_step


def _policy_step(
    config: RunConfig, spec: ModelSpec, mesh: Mesh, split: TrainableSplit, update_step: UpdateStep
) -> UpdateStep:
    """Return the step on prompts with sampled answers and their rewards, which makes several updates."""
    objective = config.require_policy_objective()
    answer_rows = make_rollout_preparer(config, spec, meshes.batch_shards(mesh))

    def prepare(state: TrainState, batch: Batch) -> Batch:
        return answer_rows(split.join(state.params, state.frozen), batch)

    return partial(policy_step, objective, prepare, update_step, config.train.seed)


def _make_update(config: RunConfig, spec: ModelSpec, split: TrainableSplit) -> ParameterUpdate:
    """Return the optimizer with the types in which its parameters are stored."""
    optimizer = _make_optimizer(config, spec, split)
    if config.train.param_dtype == "float32":
        return ParameterUpdate(optimizer, average=config.optimizer.method.average())
    in_bfloat16 = jax.tree.map(is_matrix_or_table, split.trained_leaves(spec.axes))
    return ParameterUpdate(optimizer, in_bfloat16, has_master_copy=config.optimizer.master_weights)


def _make_optimizer(config: RunConfig, spec: ModelSpec, split: TrainableSplit) -> optax.GradientTransformation:
    """Return the optimizer, with the learning-rate factors of the adaptation method if it has any."""
    steps = config.train.steps
    optimizer = make_optimizer(config.optimizer, steps, split.trained_leaves(spec.axes), config.updates_per_step)
    method = config.method
    if method.learning_rate_factor("", config.model, 0.0) is None:
        return optimizer

    def factors(progress: Float[Array, ""], params: PyTree) -> PyTree:
        by_name = {}
        for name in flatten_names(params):
            factor = method.learning_rate_factor(name, config.model, progress)
            by_name[name] = jnp.ones(()) if factor is None else jnp.asarray(factor)
        return unflatten_names(by_name)

    return scale_learning_rates(optimizer, steps * config.updates_per_step, factors)


def _first_state(
    params: PyTree, split: TrainableSplit, update: ParameterUpdate, masked: Sequence[str], carry: PyTree
) -> TrainState:
    """Return the state of step 0; the parameters named in `masked` have masks, under which nothing is pruned yet."""
    zero = jnp.zeros((), jnp.int32)
    trained = split.trained(params)
    arrays = flatten_names(trained)
    return TrainState(
        step=zero,
        params=update.stored(trained),
        opt_state=update.init(trained),
        skipped=zero,
        skipped_in_a_row=zero,
        frozen=split.frozen(params),
        masks=unflatten_names({name: jnp.ones(arrays[name].shape, bool) for name in masked}),
        carry=carry,
    )


def _training_loss(
    config: RunConfig, spec: ModelSpec, mesh: Mesh, split: TrainableSplit, teacher: Teacher | None
) -> TrainingLoss:
    """Return the loss of a run; one with a teacher carries no states from batch to batch."""
    objective = config.require_objective()
    batch_shards = meshes.batch_shards(mesh)
    if teacher is None:
        carrying_loss = carrying_loss_function(config, spec, batch_shards, training=True)

        def loss_terms(trained: PyTree, state: TrainState, batch: Batch, key: PRNGKeyArray) -> tuple[LossTerms, PyTree]:
            return carrying_loss(split.join(trained, state.frozen), state.carry, batch, key)

        term_weights = objective.term_weights
    else:
        assert config.distillation is not None
        assert isinstance(objective, TokenPrediction)
        distillation_loss = distillation_loss_function(config, spec, teacher.spec, batch_shards)

        def loss_terms(trained: PyTree, state: TrainState, batch: Batch, key: PRNGKeyArray) -> tuple[LossTerms, PyTree]:
            return distillation_loss(split.join(trained, state.frozen), state.teacher, batch, key), {}

        term_weights = config.distillation.term_weights(objective)
    return TrainingLoss(objective.name, loss_terms, {**term_weights, **ROUTER_TERM_WEIGHTS, **PENALTY_TERM_WEIGHTS})


def _with_token_weights(step: UpdateStep) -> UpdateStep:
    """Return the step on batches that lack the weights of soft targets and states."""

    def weighted_step(state: TrainState, batch: Batch) -> tuple[TrainState, dict[str, Array]]:
        return step(state, add_token_weights(batch))

    return weighted_step
