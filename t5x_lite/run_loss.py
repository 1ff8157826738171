"""The loss of a run: its objective's terms and those of its routers, on a batch."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, PRNGKeyArray, PyTree

from t5x_lite.config import RunConfig
from t5x_lite.integers import ceil_div
from t5x_lite.models.carry import final_states, set_initial_states
from t5x_lite.models.distillation_losses import StatesAndLogits
from t5x_lite.models.experts.activity import ROUTER_TERM, router_loss
from t5x_lite.models.layers import WeightAxes
from t5x_lite.models.loss_terms import PENALTY_TERM, Batch, LossFunction, LossTerms, Penalty
from t5x_lite.models.losses import LossSettings
from t5x_lite.models.quantization import quantized_products
from t5x_lite.models.sharding import gather
from t5x_lite.models.spec import ModelSpec
from t5x_lite.models.transformer import Decoder
from t5x_lite.models.weight_gradients import float32_weight_gradients
from t5x_lite.objectives.features import CONTINUES
from t5x_lite.objectives.token_prediction import TokenPrediction
from t5x_lite.trees import flatten_names

CarryingLossFunction: TypeAlias = Callable[[PyTree, PyTree, Batch, PRNGKeyArray | None], tuple[LossTerms, PyTree]]
"""Maps parameters, carried states, a batch and a dropout key to terms of the loss and the states after the batch."""


def loss_function(config: RunConfig, spec: ModelSpec, batch_shards: int, *, training: bool) -> LossFunction:
    """Return the loss of a run's model on rows that each begin with empty states; see `carrying_loss_function`."""
    compute = carrying_loss_function(config, spec, batch_shards, training=training)

    def compute_loss(params: PyTree, batch: Batch, key: PRNGKeyArray | None) -> LossTerms:
        terms, _ = compute(params, {}, batch, key)
        return terms

    return compute_loss


def carrying_loss_function(
    config: RunConfig, spec: ModelSpec, batch_shards: int, *, training: bool
) -> CarryingLossFunction:
    """Return the loss of a run's model, and the states of its recurrent layers after a batch.

    Args:
        config: the run.
        spec: its model without the weights.
        batch_shards: parts into which the rows of a batch are split over the devices.
        training: z-loss and label smoothing, which are for training alone, are added, and products are quantized.
    """
    objective = config.require_objective()
    settings = _loss_settings(config, batch_shards, training=training)
    keeps_segments = needs_segments(config)

    def compute_loss(params: PyTree, carry: PyTree, batch: Batch, key: PRNGKeyArray | None) -> tuple[LossTerms, PyTree]:
        segment_ids = batch.get("segment_ids")
        if not keeps_segments:
            batch = _without_segments(batch)
        module = _training_module(spec, params)
        if carry:
            assert isinstance(module, Decoder)
            assert segment_ids is not None
            set_initial_states(module, carry, batch[CONTINUES], segment_ids)
        with _training_arithmetic(config, training=training):
            terms: LossTerms = objective.loss(module, batch, key, settings)
        terms = _with_further_terms(terms, module, config, params, training=training)
        if not carry:
            return terms, {}
        assert isinstance(module, Decoder)
        return terms, final_states(module)

    return compute_loss


def distillation_loss_function(
    config: RunConfig, spec: ModelSpec, teacher: ModelSpec, batch_shards: int
) -> Callable[[PyTree, PyTree, Batch, PRNGKeyArray | None], LossTerms]:
    """Return the training loss of a run with a teacher: parameters, those of the teacher, a batch and a key to terms.

    Args:
        config: the run.
        spec: its model without the weights.
        teacher: the teacher's model without the weights.
        batch_shards: parts into which the rows of a batch are split over the devices.
    """
    objective = config.require_objective()
    distillation = config.distillation
    assert distillation is not None
    assert isinstance(objective, TokenPrediction)
    settings = _loss_settings(config, batch_shards, training=True)
    keeps_segments = needs_segments(config)

    def compute_loss(params: PyTree, teacher_params: PyTree, batch: Batch, key: PRNGKeyArray | None) -> LossTerms:
        if not keeps_segments:
            batch = _without_segments(batch)
        student_module = _training_module(spec, params)
        teacher_module = _training_module(teacher, teacher_params)
        teacher_states = jax.lax.stop_gradient(objective.states(teacher_module, batch, None))
        reference = StatesAndLogits(teacher_states, teacher_module.logits)
        with _training_arithmetic(config, training=True):
            terms: LossTerms = distillation.loss(objective, student_module, reference, batch, key, settings)
        return _with_further_terms(terms, student_module, config, params, training=True)

    return compute_loss


def needs_segments(config: RunConfig) -> bool:
    """Return whether attention needs a mask of segments.

    It needs none where padding comes last if at all, and no query of a causal row sees it.
    """
    packings = {config.data.of_source(source).packing for source in config.data.sources}
    every_token = all(objective.every_token for objective in config.row_objectives)
    return not every_token or packings != {"stream"} or config.data.separate_documents


def _without_segments(batch: Batch) -> Batch:
    return {name: feature for name, feature in batch.items() if name != "segment_ids"}


@contextmanager
def _training_arithmetic(config: RunConfig, *, training: bool) -> Iterator[None]:
    """Quantize products, and sum the gradients of weights in float32, in training where the config says so."""
    quantization = config.train.quantization if training else None
    in_float32 = training and config.train.reduction_dtype == "float32"
    with quantized_products(quantization), float32_weight_gradients(enabled=in_float32):
        yield


def _with_further_terms(
    terms: LossTerms, module: nnx.Module, config: RunConfig, params: PyTree, *, training: bool
) -> LossTerms:
    """Return the terms of an objective with those of routers, and in training with the penalty of `adapt.method`."""
    router_term = router_loss(module, config.model)
    if router_term is not None:
        terms = {**terms, ROUTER_TERM: router_term}
    penalty = config.method.penalty(flatten_names(params)) if training else None
    if penalty is not None:
        terms = {**terms, PENALTY_TERM: Penalty(penalty, jnp.ones_like(penalty))}
    return terms


def make_rollout_preparer(
    config: RunConfig, spec: ModelSpec, batch_shards: int
) -> Callable[[PyTree, Batch], Mapping[str, Array]]:
    """Return a function of parameters and of a batch of prompts, answers and rewards: the features of the policy loss.

    The objective's `prepare` says which features, with their shapes.

    Args:
        config: the run, whose objective is a `PolicyOptimization`.
        spec: its model without the weights.
        batch_shards: parts into which the rows of a batch are split over the devices.
    """
    objective = config.require_policy_objective()
    prompts = ceil_div(config.train.batch_size, batch_shards)
    settings = LossSettings(
        vocab=config.model.vocab or 1, rows=prompts * objective.group_size, chunks=config.train.loss_chunks
    )

    def prepare(params: PyTree, batch: Batch) -> Mapping[str, Array]:
        module = _training_module(spec, params)
        return jax.lax.stop_gradient(objective.prepare(module, batch, settings))

    return prepare


def _loss_settings(config: RunConfig, batch_shards: int, *, training: bool) -> LossSettings:
    train = config.train
    if training:
        rows = config.require_objective().loss_rows(train.batch_size // train.microbatches)
    else:
        rows = config.eval.batch_size or train.batch_size
    return LossSettings(
        vocab=config.model.vocab or 1,
        rows=ceil_div(rows, batch_shards),
        chunks=train.loss_chunks,
        z_loss=train.z_loss if training else 0.0,
        label_smoothing=train.label_smoothing if training else 0.0,
    )


def _training_module(spec: ModelSpec, params: PyTree) -> Any:
    """Return the model of a loss. It has the matrix of its output whole, or each chunk would gather it again."""

    def gather_output(array: Array, axes: WeightAxes) -> Array:
        return gather(array, axes.names, "embed") if spec.is_output(axes) else array

    return spec.model(jax.tree.map(gather_output, params, spec.axes))
