"""The first state of a run that prunes another one: the early state of the dense run, with masks."""

from contextlib import closing
from dataclasses import dataclass, replace

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jaxtyping import PyTree

from t5x_lite import config as configuration
from t5x_lite.adapt.lottery import Lottery, magnitude_masks
from t5x_lite.checkpoint import JsonObject
from t5x_lite.config import RunConfig
from t5x_lite.errors import UserError
from t5x_lite.parallel import mesh as meshes
from t5x_lite.run_dir import Run
from t5x_lite.run_weights import BaseCheckpoint, fingerprint, initial_weights, source_run, with_source_vocab
from t5x_lite.train.masks import apply_masks
from t5x_lite.train.state import TrainState
from t5x_lite.train.steps import Steps
from t5x_lite.trees import flatten_names, unflatten_names


@dataclass(frozen=True)
class RewoundState:
    """The first state of a pruned run.

    Attributes:
        state: weights, optimizer and step of the dense run at `rewind_step`, with the masks.
        base: the checkpoint whose weights were compared.
        metadata: of the early checkpoint; None at step 0.
        remaining: share of the weights with masks that is left.
    """

    state: TrainState
    base: BaseCheckpoint
    metadata: JsonObject | None
    remaining: float


def rewind(config: RunConfig, mesh: Mesh, steps: Steps) -> RewoundState:
    """Prune the run that `adapt.from` names, and return the state that the next round begins with.

    Raises:
        UserError: the runs differ in more than the adaptation, the run freezes weights, or a checkpoint is missing.
    """
    assert isinstance(config.method, Lottery)
    source = source_run(config)
    dense = _check_source(source, config)
    step, trained, _ = source.trained_weights(mesh)
    old_masks = steps.state.masks
    weights = flatten_names(trained)
    if isinstance(source.config.method, Lottery):
        with closing(source.checkpoints) as checkpoints:
            restored = checkpoints.restore(old_masks, step, prefix="masks.")
        assert restored is not None
        masks = flatten_names(restored[1])
    else:
        masks = {
            name: jnp.ones(mask.shape, bool, device=mask.sharding) for name, mask in flatten_names(old_masks).items()
        }
    if not masks:
        raise UserError(f"adapt.method lottery.targets {config.method.targets!r}: no matrix of this model matches")
    axes = flatten_names(source.spec.axes)
    pruned = {name: weights[name] for name in masks}
    depths = {name: axes[name].stack_depth(array) for name, array in pruned.items()}
    masks = magnitude_masks(pruned, masks, depths, config.method.fraction, config.method.scope, meshes.replicated(mesh))
    early, metadata = _early_state(dense, config.method.rewind_step, mesh, steps)
    state = _masked(early, unflatten_names(masks), steps)
    left = sum(int(mask.sum()) for mask in masks.values())
    remaining = left / sum(mask.size for mask in masks.values())
    return RewoundState(state, BaseCheckpoint(step, fingerprint(weights)), metadata, remaining)


def check_rewind(config: RunConfig) -> None:
    """Refuse a run that cannot be pruned, before data are opened.

    Raises:
        UserError: the runs differ in more than the adaptation, or the run freezes weights.
    """
    source = source_run(config)
    _check_source(source, with_source_vocab(config, source))


def _check_source(source: Run, config: RunConfig) -> Run:
    """Check that a config prunes a run, and return the run at the beginning of the rounds that led to it."""
    subject = f"adapt.from {source.config.run_dir}"
    if not source.config.trainable_split(source.spec.axes).trains_everything:
        raise UserError(f"{subject}: lottery prunes runs that train all weights, and its method freezes some")
    dense = _dense_run(source)
    _check_same_config(dense, config)
    return dense


def _dense_run(run: Run) -> Run:
    """Return the run at the beginning of the rounds that led to a run."""
    while isinstance(run.config.method, Lottery):
        run = source_run(run.config)
    return run


def _check_same_config(dense: Run, config: RunConfig) -> None:
    # The tokenizer is that of the dense run.
    differences = configuration.describe_differences(dense.config, config, ("adapt", "tokenizer"))
    if differences:
        raise UserError(
            f"adapt.method lottery: {dense.config.run_dir} is the run of another config: {differences}; a "
            "round of pruning has the config of the dense run, with another run_dir and `adapt`"
        )


def _early_state(dense: Run, step: int, mesh: Mesh, steps: Steps) -> tuple[TrainState, JsonObject | None]:
    """Return the state of the dense run after a step, without masks."""
    if step == 0:
        if dense.config.adapt is None:
            return steps.create_state(), None
        params, _ = initial_weights(dense.config, dense.spec, mesh, _base_of(dense))
        return steps.create_state_from(params), None
    if step >= dense.config.train.steps:
        raise UserError(
            f"adapt.method lottery.rewind_step {step} leaves nothing of train.steps {dense.config.train.steps}"
        )
    with closing(dense.checkpoints) as checkpoints:
        restored = checkpoints.restore(replace(steps.state.saved(), masks={}), step)
    assert restored is not None
    return restored[1], restored[2]


def _base_of(run: Run) -> BaseCheckpoint | None:
    """Return the checkpoint that an adapted run has its first weights from, as its newest checkpoint says."""
    with closing(run.checkpoints) as checkpoints:
        return BaseCheckpoint.from_metadata(checkpoints.meta(max(checkpoints.steps())))


def _masked(state: TrainState, masks: PyTree, steps: Steps) -> TrainState:
    """Return a state with masks, and zeros where they are false."""

    def sharding(struct: jax.ShapeDtypeStruct) -> jax.sharding.Sharding | None:
        return struct.sharding

    shardings = jax.tree.map(sharding, (steps.state.params, steps.state.masks))

    def mask(params: PyTree, masks: PyTree) -> tuple[PyTree, PyTree]:
        return apply_masks(params, masks), masks

    params, masks = jax.jit(mask, out_shardings=shardings)(state.params, masks)
    return replace(state, params=params, masks=masks)
