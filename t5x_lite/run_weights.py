"""The first weights of a run that adapts another one, and the checkpoint that its frozen weights come from."""

import hashlib
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jaxtyping import Array, PyTree

from t5x_lite.adapt.method import AdaptationMethod, ModelPair
from t5x_lite.config import RunConfig
from t5x_lite.errors import UserError
from t5x_lite.models.electra import discriminator_weights
from t5x_lite.models.spec import ModelSpec, init_params
from t5x_lite.parallel.mesh import shardings
from t5x_lite.run_dir import Run, open_run
from t5x_lite.trees import flatten_names, unflatten_names

MAX_LISTED_PROBLEMS = 4
"""Arrays of a wrong shape that an error message names."""


@dataclass(frozen=True)
class BaseCheckpoint:
    """A checkpoint that a run was adapted from, or distils: its step, and a fingerprint of its weights."""

    step: int
    fingerprint: str

    @classmethod
    def from_metadata(cls, metadata: dict[str, Any], key: str = "base") -> "BaseCheckpoint | None":
        """Return the `base` or the `teacher` that the metadata of a checkpoint names; None if there is none."""
        if not metadata.get(key):
            return None
        return cls(**metadata[key])


def source_run(config: RunConfig) -> Run:
    """Open the run that a config adapts.

    Raises:
        UserError: there is no such run, or its model is of another family.
    """
    assert config.adapt is not None
    run = open_run(config.adapt.source)
    family = config.model.family
    source_family = run.config.model.family
    takes_encoder = source_family in {"electra", "encoder_decoder"} and family == "encoder"
    if family != source_family and not takes_encoder:
        raise UserError(
            f"adapt.from {config.adapt.source}: is a model of family {source_family}, and this config's is {family}"
        )
    return run


def load_weights(run: Run, mesh: Mesh, step: int | None = None) -> tuple[int, PyTree[Array], dict[str, Any]]:
    """Load all weights of a run's newest whole checkpoint, or of `step`: those that train, and those of its base.

    Returns:
        The step, the weights, and the metadata of the checkpoint.

    Raises:
        UserError: there is no checkpoint, or a damaged one; its base is gone or has changed.
    """
    split = run.config.trainable_split(run.spec.axes)
    step, trained, metadata = run.trained_weights(mesh, step)
    if split.trains_everything:
        return step, trained, metadata
    base = BaseCheckpoint.from_metadata(metadata)
    try:
        weights, _ = initial_weights(run.config, run.spec, mesh, base)
    except UserError as error:
        raise UserError(f"{run.config.run_dir}: needs the weights of the run that it adapts: {error}") from None
    return step, split.join(trained, split.frozen(weights)), metadata


def initial_weights(
    config: RunConfig, spec: ModelSpec, mesh: Mesh, base: BaseCheckpoint | None = None
) -> tuple[PyTree[Array], BaseCheckpoint]:
    """Return the first weights of an adapted model, from the newest checkpoint of its source or from `base`.

    Raises:
        UserError: the method has no weights for some arrays, or weights of another shape; the base has changed.
    """
    assert config.adapt is not None
    run = source_run(config)
    method = config.adapt.method
    base_step = None if base is None else base.step
    step, old = merged_weights(run, mesh, base_step)
    source = BaseCheckpoint(step, fingerprint(old))
    if base is not None and source != base:
        raise UserError(
            f"adapt.from {config.adapt.source}: is not the base that this run was adapted from: the weights of step "
            f"{step} have the fingerprint {source.fingerprint}, and its own was {base.fingerprint}"
        )
    for number, folder in enumerate(method.sources):
        for name, value in _adapter_weights(folder, method, mesh, source).items():
            old[f"{number}:{name}"] = value
    old_model = run.config.model
    if old_model.family == "electra":
        old_model = old_model.discriminator_model
        old = discriminator_weights(old)

    def create(old: dict[str, Array]) -> dict[str, Array]:
        fresh = init_params(config.model, jax.random.key(config.train.seed), config.method.surgery)
        return method.initial_weights(old, flatten_names(fresh), ModelPair(old_model, config.model))

    shapes = flatten_names(spec.shapes)
    created_shapes = jax.eval_shape(create, old)
    _check_shapes(created_shapes, shapes, str(run.config.run_dir))
    all_shardings = flatten_names(shardings(mesh, spec.axes, spec.shapes))
    out_shardings = {name: all_shardings[name] for name in created_shapes}
    arrays = jax.jit(create, out_shardings=out_shardings)(old)
    return unflatten_names({name: arrays[name] for name in shapes}), source


def _check_shapes(created: dict[str, Any], expected: dict[str, Any], folder: str) -> None:
    """Raise a UserError for weights that are missing or have another shape than expected."""
    problems = []
    for name, leaf in expected.items():
        if name not in created:
            problems.append(f"{name} is missing, expected {list(leaf.shape)}")
        elif created[name].shape != leaf.shape:
            problems.append(f"{name} is {list(created[name].shape)}, expected {list(leaf.shape)}")
    if not problems:
        return
    listed = "; ".join(problems[:MAX_LISTED_PROBLEMS])
    remaining = len(problems) - MAX_LISTED_PROBLEMS
    if remaining > 0:
        listed += f" and {remaining} more"
    raise UserError(f"adapt.from {folder}: its weights do not make this config's model: {listed}")


def merged_weights(run: Run, mesh: Mesh, step: int | None = None) -> tuple[int, dict[str, Array]]:
    """Return the step and the weights by name of a run as a plain model, with what an adaptation has added merged.

    Raises:
        UserError: the addition cannot be merged, as with bottleneck adapters.
    """
    step, params, _ = load_weights(run, mesh, step)
    weights = flatten_names(params)
    if run.config.adapt is None:
        return step, weights
    merged = run.config.adapt.method.merged_weights(weights)
    if merged is None:
        raise UserError(
            f"{run.config.run_dir}: what its adaptation has added cannot be merged into its weights; take its base "
            f"{run.config.adapt.source}"
        )
    return step, merged


def _adapter_weights(folder: str, method: AdaptationMethod, mesh: Mesh, base: BaseCheckpoint) -> dict[str, Array]:
    """Return what a run has trained that is a source of a method, by name.

    Raises:
        UserError: it was trained on another base, or is nothing that the method combines.
    """
    run = open_run(folder)
    try:
        method.check_source(run.config.method)
    except ValueError as error:
        raise UserError(f"adapter {folder}: {error}") from None
    _, trained, metadata = run.trained_weights(mesh)
    adapter_base = BaseCheckpoint.from_metadata(metadata)
    if adapter_base is None or adapter_base.fingerprint != base.fingerprint:
        raise UserError(f"adapter {folder}: was trained on another base than adapt.from names, or is not frozen on one")
    return flatten_names(trained)


def fingerprint(weights: dict[str, Array]) -> str:
    """Return a hash of all values and their positions, which does not depend on the mesh."""
    sums = jax.device_get(jax.jit(partial(jax.tree.map, _checksum))(weights))
    named_sums = [(name, int(sums[name])) for name in sorted(sums)]
    return hashlib.sha256(repr(named_sums).encode()).hexdigest()[:16]


def _checksum(x: Array) -> Array:
    """Return the sum of the bits of all values, each times an odd number that depends on its position."""
    bits = jax.lax.bitcast_convert_type(x.astype(jnp.float32), jnp.uint32)
    position = jnp.zeros(x.shape, jnp.uint32)
    for axis, size in enumerate(x.shape):
        position = position * jnp.uint32(size) + jax.lax.broadcasted_iota(jnp.uint32, x.shape, axis)
    return jnp.sum(bits * (2 * position + 1), dtype=jnp.uint32)
