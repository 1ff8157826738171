"""What the loop needs before its first step: text as rows, and the compiled steps with their shardings."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh
from jaxtyping import PRNGKeyArray

from t5x_lite.config import RunConfig
from t5x_lite.data.open_data import open_data
from t5x_lite.data.tokenizer import Tokenizer
from t5x_lite.data.training_data import PipelineSettings, TrainingData
from t5x_lite.errors import UserError
from t5x_lite.evaluate.perplexity import evaluate_loss
from t5x_lite.models.attention import kernels
from t5x_lite.models.experts.activity import ROUTER_TERM, ROUTER_TERM_WEIGHTS, router_loss
from t5x_lite.models.experts.dispatch import check_dispatch
from t5x_lite.models.layers import WeightAxes
from t5x_lite.models.losses import LossSettings
from t5x_lite.models.pipeline import microbatch_count
from t5x_lite.models.sharding import constrain
from t5x_lite.models.spec import ModelSpec, init_params
from t5x_lite.objectives.objective import ExampleContext
from t5x_lite.parallel import mesh as meshes
from t5x_lite.train import optimizer as optimizers
from t5x_lite.train.state import TrainState
from t5x_lite.train.step import Batch, LossFunction, PartsLossFunction, Sums, TrainingLoss, train_step
from t5x_lite.trees import flatten_names, unflatten_names


def open_run_data(config: RunConfig, tokenizer: Tokenizer) -> TrainingData:
    """Open the data that a run's config names.

    Raises:
        UserError: no text or no records, or a tokenizer that the objective cannot use.
    """
    context = ExampleContext(
        seq_len=config.train.seq_len,
        vocabulary=tokenizer.vocabulary(),
        family=config.model.family,
        placeholders=config.method.placeholders,
    )
    settings = PipelineSettings(
        data=config.data,
        objective=config.require_objective(),
        context=context,
        seed=config.train.seed,
        validation_batch_size=config.eval.batch_size or config.train.batch_size,
        max_validation_batches=config.eval.batches,
    )
    return open_data(settings, tokenizer, config.tasks)


def evaluate_split(step: Callable[[Any, Any], Sums], params: Any, data: TrainingData, mesh: Mesh) -> dict[str, float]:
    """Scores on the validation split; see `evaluate.perplexity`."""
    split = data.validation()
    local = meshes.local_rows(mesh, split.batch_size)
    batches = (meshes.to_global(mesh, batch, split.batch_size) for batch in split.batches(local))
    return evaluate_loss(step, params, batches, data.tokens_per_byte)


def check_mesh(mesh: Mesh, config: RunConfig, of: str) -> dict[str, str]:
    """The attention kernels of a config on a mesh of a platform, and why; see `kernels.planned`.

    Raises:
        UserError: a model, kernel or batch that cannot be had on this mesh.
    """
    sizes, train = mesh.shape, config.train
    rows = train.batch_size // train.microbatches
    key = "train.batch_size" if train.microbatches == 1 else "train.batch_size / train.microbatches"
    meshes.local_rows(mesh, rows, key)
    meshes.local_rows(mesh, config.eval.batch_size or train.batch_size, "eval.batch_size")
    try:
        with jax.set_mesh(mesh):
            config.model.check_mesh(sizes["expert"], sizes["tensor"], sizes["pipeline"])
            check_dispatch(config.model, of)
            if sizes["pipeline"] > 1:
                microbatch_count(config.model.pipeline_microbatches, rows, sizes["pipeline"])
            return kernels.planned_kernels(config.model, train.seq_len, of)
    except ValueError as error:
        raise UserError(str(error)) from None


def loss_function(config: RunConfig, model: ModelSpec, shards: int, *, training: bool) -> LossFunction:
    """The objective's loss; z-loss and label smoothing are for training alone."""
    train = config.train
    rows = train.batch_size // train.microbatches if training else (config.eval.batch_size or train.batch_size)
    settings = LossSettings(
        vocab=config.model.vocab or 1,
        rows=-(-rows // shards),
        chunks=train.loss_chunks,
        z_loss=train.z_loss if training else 0.0,
        label_smoothing=train.label_smoothing if training else 0.0,
    )

    # Then padding comes last if at all, and no query of a causal row sees it: attention needs no mask of segments.
    one_text = (
        config.require_objective().every_token
        and config.data.packing == "stream"
        and not config.data.separate_documents
    )

    def loss(params: Any, batch: Batch, key: PRNGKeyArray | None) -> Sums:
        if one_text:
            batch = {name: array for name, array in batch.items() if name != "segment_ids"}
        module = model.model(jax.tree.map(_gathered, params, model.axes))
        terms = config.require_objective().loss(module, batch, key, settings)
        routers = router_loss(module, config.model)
        return terms if routers is None else {**terms, ROUTER_TERM: routers}

    return loss


def _gathered(array: jax.Array, axes: WeightAxes) -> jax.Array:
    """A matrix over the vocabulary with every channel: gathered here, or each part of the loss would do it again."""
    if "vocab" not in axes.names:
        return array
    return constrain(array, *(name if name == "vocab" else None for name in axes.names))


@dataclass(frozen=True)
class Steps:
    """The steps of one run on one mesh, and the shape that its state has there.

    `evaluate` takes parameters that train and frozen ones as a pair, of which `whole` makes one tree.
    """

    train: Callable[[TrainState, Any], tuple[TrainState, dict[str, jax.Array]]]
    evaluate: Callable[[Any, Any], Sums]
    fresh: Callable[[], TrainState]
    begun: Callable[[Any], TrainState]
    whole: Callable[[Any, Any], Any]
    whole_shapes: Any
    state: TrainState


def _paced(inner: optax.GradientTransformation, config: RunConfig) -> optax.GradientTransformation:
    """The optimizer with the adaptation's rates by depth and time, if it has any."""
    method = config.method

    def factors(progress: Any, params: Any) -> Any:
        found = {name: method.learning_rate_factor(name, config.model, progress) for name in flatten_names(params)}
        return unflatten_names(
            {name: jnp.ones(()) if rate is None else jnp.asarray(rate) for name, rate in found.items()}
        )

    if method.learning_rate_factor("", config.model, 0.0) is None:
        return inner
    return optimizers.with_rates(inner, config.train.steps, factors)


def make_steps(config: RunConfig, model: ModelSpec, mesh: Mesh) -> Steps:
    """Jitted steps with explicit shardings; nothing is allocated or compiled yet."""
    train, shards = config.train, meshes.batch_shards(mesh)
    parts = config.trainable_split(model.axes)
    optimizer = _paced(optimizers.make(config.optimizer, train.steps, parts.trained_leaves(model.axes)), config)

    def begun(params: Any) -> TrainState:
        zero, trained = jnp.zeros((), jnp.int32), parts.trained(params)
        return TrainState(zero, trained, optimizer.init(trained), zero, zero, parts.frozen(params))

    def fresh() -> TrainState:
        return begun(init_params(config.model, jax.random.key(train.seed), config.method.surgery))

    def whole(trained: Any, frozen: Any) -> Any:
        return parts.join(trained, frozen, jnp.concatenate)

    shapes = jax.eval_shape(fresh)
    placed = meshes.state_shardings(mesh, model.axes, shapes, optimizer)
    rows, everywhere = meshes.batch_sharding(mesh), meshes.replicated(mesh)
    loss = loss_function(config, model, shards, training=True)
    loss_of_parts: PartsLossFunction = lambda trained, frozen, *rest: loss(whole(trained, frozen), *rest)  # noqa: E731
    objective = config.require_objective()
    training_loss = TrainingLoss(objective.name, loss_of_parts, {**objective.term_weights, **ROUTER_TERM_WEIGHTS})
    step = partial(train_step, training_loss, optimizer, train.microbatches, train.seed)
    evaluated = loss_function(config, model, shards, training=False)
    return Steps(
        train=jax.jit(step, donate_argnums=0, in_shardings=(placed, rows), out_shardings=(placed, everywhere)),
        evaluate=jax.jit(
            lambda params, batch: evaluated(whole(*params), batch, None),
            in_shardings=((placed.params, placed.frozen), rows),
            out_shardings=everywhere,
        ),
        fresh=jax.jit(fresh, out_shardings=placed),
        begun=jax.jit(begun, donate_argnums=0 if parts.trains_everything else (), out_shardings=placed),
        whole=whole,
        whole_shapes=meshes.shape_structs(model.shapes, meshes.shardings(mesh, model.axes, model.shapes)),
        state=meshes.shape_structs(shapes, placed),
    )
