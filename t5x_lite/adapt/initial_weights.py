"""The first weights of a run that adapts another one, and the base that its frozen weights come from."""

import hashlib
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from t5x_lite.adapt.method import ModelPair
from t5x_lite.config import RunConfig
from t5x_lite.errors import UserError
from t5x_lite.models.transformer import ModelSpec, init_params
from t5x_lite.parallel.mesh import shardings
from t5x_lite.run_dir import Run, open_run
from t5x_lite.trees import flatten_names, unflatten_names


@dataclass(frozen=True)
class BaseCheckpoint:
    """What a run was adapted from: the checkpoint's step, and a fingerprint of its weights."""

    step: int
    fingerprint: str

    @classmethod
    def of(cls, meta: dict[str, Any]) -> "BaseCheckpoint | None":
        """What a checkpoint says."""
        return BaseCheckpoint(**meta["base"]) if meta.get("base") else None


def source_run(config: RunConfig) -> Run:
    """The run that a config adapts.

    Raises:
        UserError: it is not there, or its model is of another family.
    """
    assert config.adapt is not None
    run = open_run(Path(config.adapt.source))
    ours, theirs = config.model.family, run.config.model.family
    if ours != theirs and not (theirs == "electra" and ours == "encoder"):
        raise UserError(f"adapt.from {run.folder}: is a model of family {theirs}, and this config's is {ours}")
    return run


def load_weights(run: Run, mesh: Mesh, step: int | None = None) -> tuple[int, Any, dict[str, Any]]:
    """Step, all weights and the metadata of a run's newest whole checkpoint, or of `step`: what trains, and its base.

    Raises:
        UserError: there is none, or a damaged one; a base that is gone or another.
    """
    parts = run.config.parts(run.blueprint.axes)
    step, trained, meta = run.trained(mesh, step)
    if parts.everything:
        return step, trained, meta
    frozen = parts.frozen(initial_weights(run.config, run.blueprint, mesh, BaseCheckpoint.of(meta))[0])
    return step, parts.together(trained, frozen, jnp.concatenate), meta


def initial_weights(
    config: RunConfig, plan: ModelSpec, mesh: Mesh, base: BaseCheckpoint | None = None
) -> tuple[Any, BaseCheckpoint]:
    """Parameters of the config's model, made from the newest checkpoint of the run that it adapts, or from `base`.

    Raises:
        UserError: arrays that the method cannot make, or of another shape: all of them; a base that has changed.
    """
    assert config.adapt is not None
    run, method = source_run(config), config.adapt.method
    step, old = merged_weights(run, mesh, None if base is None else base.step)
    found = BaseCheckpoint(step, fingerprint(old))
    if base is not None and found != base:
        raise UserError(
            f"adapt.from {run.folder}: is not the base that this run was adapted from: the weights of step {step} have "
            f"the fingerprint {found.fingerprint}, and its own was {base.fingerprint}"
        )
    for number, folder in enumerate(method.sources):
        old |= {f"{number}:{name}": value for name, value in _adapters(Path(folder), mesh, found).items()}
    model = run.config.model
    if model.family == "electra":
        inside, model = "discriminator.", model.model_of_discriminator
        old = {name.removeprefix(inside): value for name, value in old.items() if name.startswith(inside)}

    def surgery(old: Any) -> dict[str, Any]:
        fresh = init_params(config.model, jax.random.key(config.train.seed), config.method.surgery)
        return method.weights(old, flatten_names(fresh), ModelPair(model, config.model), jnp)

    made, wanted = jax.eval_shape(surgery, old), flatten_names(plan.shapes)
    faults = [
        f"{name} is {list(made[name].shape) if name in made else 'missing'}, expected {list(leaf.shape)}"
        for name, leaf in wanted.items()
        if name not in made or made[name].shape != leaf.shape
    ]
    if faults:
        raise UserError(
            f"adapt.from {run.folder}: its weights do not make this config's model: {'; '.join(faults[:4])}"
            + (f" and {len(faults) - 4} more" if len(faults) > 4 else "")
        )
    placed = flatten_names(shardings(mesh, plan.axes, plan.shapes))
    arrays = jax.jit(surgery, out_shardings={name: placed[name] for name in made})(old)
    return unflatten_names({name: arrays[name] for name in wanted}), found


def merged_weights(run: Run, mesh: Mesh, step: int | None = None) -> tuple[int, dict[str, Any]]:
    """Step and weights by name of a run as a plain model: what an adaptation has added is merged into them.

    Raises:
        UserError: it cannot be, as with bottleneck adapters.
    """
    step, params, _ = load_weights(run, mesh, step)
    if run.config.adapt is None:
        return step, flatten_names(params)
    plain = run.config.adapt.method.merged(flatten_names(params), jnp)
    if plain is None:
        raise UserError(
            f"{run.folder}: what its adaptation has added cannot be merged into its weights; take its base "
            f"{run.config.adapt.source}"
        )
    return step, plain


def _adapters(folder: Path, mesh: Mesh, base: BaseCheckpoint) -> dict[str, Any]:
    """What a run has trained, by name.

    Raises:
        UserError: on another base.
    """
    _, trained, meta = open_run(folder).trained(mesh)
    own = BaseCheckpoint.of(meta)
    if own is None or own.fingerprint != base.fingerprint:
        raise UserError(f"adapter {folder}: was trained on another base than adapt.from names, or is not frozen on one")
    return flatten_names(trained)


def fingerprint(weights: dict[str, Any]) -> str:
    """A hash of all values and their places, whatever mesh they lie on."""

    def checksum(x: Any) -> Any:
        bits = jax.lax.bitcast_convert_type(x.astype(jnp.float32), jnp.uint32)
        place = jnp.zeros(x.shape, jnp.uint32)
        for axis, size in enumerate(x.shape):
            place = place * jnp.uint32(size) + jax.lax.broadcasted_iota(jnp.uint32, x.shape, axis)
        return jnp.sum(bits * (2 * place + 1), dtype=jnp.uint32)

    sums = jax.device_get(jax.jit(partial(jax.tree.map, checksum))(weights))
    found = [(name, int(sums[name])) for name in sorted(sums)]
    return hashlib.sha256(repr(found).encode()).hexdigest()[:16]
