"""The first weights of a run that adapts another one, and the checkpoint that its frozen weights come from."""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jaxtyping import Array, PyTree

from t5x_lite import schema
from t5x_lite.adapt.method import AdaptationMethod, ModelPair
from t5x_lite.config import RunConfig
from t5x_lite.errors import UserError, join_first
from t5x_lite.models.config import DECODER_SETTINGS, ModelConfig
from t5x_lite.models.electra import discriminator_weights
from t5x_lite.models.spec import ModelSpec, init_params, model_spec
from t5x_lite.parallel.mesh import shardings
from t5x_lite.run_dir import Run, open_run
from t5x_lite.trees import flatten_names, unflatten_names

MAX_LISTED_PROBLEMS = 4
"""Arrays of a wrong shape that an error message names."""
SETTINGS_WITHOUT_ARRAYS = (
    "family",
    "head",
    "outputs",
    "dropout",
    "variational_dropout",
    "embedding_dropout",
    "init",
    "mup",
    "attention_scale",
    "attention_softcap",
    "logit_softcap",
    "scale_embedding",
    "bfloat16_embedding_scale",
    "scale_output",
    "prefix_lm",
    "kernel",
    "compute",
    "remat",
    "pipeline_microbatches",
    "unroll",
)
"""Settings of models on which the arrays that two models share do not depend."""


@dataclass(frozen=True)
class BaseCheckpoint:
    """A checkpoint of a run that another one adapts, distils or is rewarded by: its step and a hash of its weights."""

    step: int
    fingerprint: str

    @classmethod
    def from_metadata(cls, metadata: dict[str, Any], key: str = "base") -> "BaseCheckpoint | None":
        """Return the `base`, `teacher` or `reward` that the metadata of a checkpoint names; None if there is none."""
        if not metadata.get(key):
            return None
        return cls(**metadata[key])

    @classmethod
    def of_weights(
        cls, step: int, weights: dict[str, Array], expected: "BaseCheckpoint | None", subject: str
    ) -> "BaseCheckpoint":
        """Return the checkpoint that weights are from.

        Args:
            step: its step.
            weights: its weights by name.
            expected: the checkpoint that a run began with, if it is resumed.
            subject: the beginning of the message if it is another one.

        Raises:
            UserError: it is not the expected one.
        """
        source = cls(step, fingerprint(weights))
        if expected is not None and source != expected:
            raise UserError(
                f"{subject}: the weights of step {step} have the fingerprint {source.fingerprint}, and its own was "
                f"{expected.fingerprint}"
            )
        return source


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
    subject = f"adapt.from {config.adapt.source}: is not the base that this run was adapted from"
    source = BaseCheckpoint.of_weights(step, old, base, subject)
    for number, folder in enumerate(method.sources):
        for name, value in _adapter_weights(folder, method, mesh, source).items():
            old[f"{number}:{name}"] = value
    create = _weight_initializer(config, run)
    shapes = flatten_names(spec.shapes)
    created_shapes = jax.eval_shape(create, old)
    _check_shapes(created_shapes, shapes, config, run)
    all_shardings = flatten_names(shardings(mesh, spec.axes, spec.shapes))
    out_shardings = {name: all_shardings[name] for name in created_shapes}
    arrays = jax.jit(create, out_shardings=out_shardings)(old)
    return unflatten_names({name: arrays[name] for name in shapes}), source


def check_source_model(config: RunConfig) -> None:
    """Refuse a run whose model does not become that of a config that adapts it, before data are opened.

    No weights are read.

    Raises:
        UserError: the method has no weights for some arrays, or weights of another shape; names the settings of the
            models that differ.
    """
    run = source_run(config)
    config = with_source_vocab(config, run)
    old = jax.eval_shape(partial(_merge, run), flatten_names(run.spec.shapes))
    for number, folder in enumerate(config.method.sources):
        adapter = _open_adapter(folder, config.method)
        trained = adapter.config.trainable_split(adapter.spec.axes).trained(adapter.spec.shapes)
        for name, shape in flatten_names(trained).items():
            old[f"{number}:{name}"] = shape
    created_shapes = jax.eval_shape(_weight_initializer(config, run), old)
    _check_shapes(created_shapes, flatten_names(model_spec(config.model, config.method.surgery).shapes), config, run)


def with_source_vocab(config: RunConfig, source: Run) -> RunConfig:
    """Return a config whose model has the size of the vocabulary of the run that it adapts, if it names none."""
    if config.model.vocab is not None:
        return config
    return config.replace_model(vocab=source.config.model.vocab)


def _weight_initializer(config: RunConfig, source: Run) -> Callable[[dict[str, Array]], dict[str, Array]]:
    """Return the function from the weights of a run, and of adapters, to the first weights of a config's model.

    Raises:
        UserError: the method does not make this model of that one.
    """
    old_model = source.config.model
    is_electra = old_model.family == "electra"
    if is_electra:
        old_model = old_model.discriminator_model

    models = ModelPair(old_model, config.model)
    try:
        config.method.check_models(models)
    except ValueError as error:
        raise UserError(f"adapt.from {source.config.run_dir}: {error}") from None

    def create(old: dict[str, Array]) -> dict[str, Array]:
        if is_electra:
            old = discriminator_weights(old)
        fresh = init_params(config.model, jax.random.key(config.train.seed), config.method.surgery)
        return config.method.initial_weights(old, flatten_names(fresh), models)

    return create


def _check_shapes(created: dict[str, Any], expected: dict[str, Any], config: RunConfig, source: Run) -> None:
    """Raise a UserError for weights that are missing or have another shape than expected.

    It names the settings of the models that differ, or the arrays if none does that arrays depend on.
    """
    problems = []
    for name, leaf in expected.items():
        if name not in created:
            problems.append(f"{name} is missing, expected {list(leaf.shape)}")
        elif created[name].shape != leaf.shape:
            problems.append(f"{name} is {list(created[name].shape)}, expected {list(leaf.shape)}")
    if not problems:
        return
    subject = f"adapt.from {source.config.run_dir}: its weights do not make this config's model"
    differences = _differing_settings(config, source.config)
    if differences:
        raise UserError(f"{subject}: {'; '.join(differences)}")
    raise UserError(f"{subject}: {join_first(problems, MAX_LISTED_PROBLEMS, '; ')}")


def _differing_settings(config: RunConfig, source: RunConfig) -> list[str]:
    """Return the settings on which arrays depend and that differ between two models, with both values."""
    ignored = (*SETTINGS_WITHOUT_ARRAYS, *config.method.changed_settings)
    if source.model.family != config.model.family:
        ignored += DECODER_SETTINGS
    described = []
    for key, (old, new) in schema.differences(source.model, config.model).items():
        if key.partition(".")[0] not in ignored:
            old_value = _size(source.model, key, old)
            value = _size(config.model, key, new)
            described.append(f"model.{key} is {old_value!r} there, {value!r} here")
    return described


def _size(model: ModelConfig, key: str, value: object) -> object:
    """Return the value of a setting of a model, or of a size that follows from others, which is written as null."""
    return getattr(model, key, None) if value is None else value


def merged_weights(run: Run, mesh: Mesh, step: int | None = None) -> tuple[int, dict[str, Array]]:
    """Return the step and the weights by name of a run as a plain model, with what an adaptation has added merged.

    Raises:
        UserError: the addition cannot be merged, as with bottleneck adapters.
    """
    step, params, _ = load_weights(run, mesh, step)
    return step, _merge(run, flatten_names(params))


def _merge(run: Run, weights: dict[str, Array]) -> dict[str, Array]:
    """Return the weights of a run as those of a plain model; see `merged_weights`."""
    if run.config.adapt is None:
        return weights
    merged = run.config.adapt.method.merged_weights(weights)
    if merged is None:
        raise UserError(
            f"{run.config.run_dir}: what its adaptation has added cannot be merged into its weights; take its base "
            f"{run.config.adapt.source}"
        )
    return merged


def _adapter_weights(folder: str, method: AdaptationMethod, mesh: Mesh, base: BaseCheckpoint) -> dict[str, Array]:
    """Return what a run has trained that is a source of a method, by name.

    Raises:
        UserError: it was trained on another base, or is nothing that the method combines.
    """
    run = _open_adapter(folder, method)
    _, trained, metadata = run.trained_weights(mesh)
    adapter_base = BaseCheckpoint.from_metadata(metadata)
    if adapter_base is None or adapter_base.fingerprint != base.fingerprint:
        raise UserError(f"adapter {folder}: was trained on another base than adapt.from names, or is not frozen on one")
    return flatten_names(trained)


def _open_adapter(folder: str, method: AdaptationMethod) -> Run:
    """Open a run that is a source of a method.

    Raises:
        UserError: it is nothing that the method combines.
    """
    run = open_run(folder)
    try:
        method.check_source(run.config.method)
    except ValueError as error:
        raise UserError(f"adapter {folder}: {error}") from None
    return run


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
