"""The first weights of a run that adapts another one."""

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from t5x_lite.adapt.method import Models
from t5x_lite.checkpoint import flat
from t5x_lite.config import RunConfig
from t5x_lite.errors import UserError
from t5x_lite.models.transformer import Blueprint, initial
from t5x_lite.parallel.mesh import shardings
from t5x_lite.run import Run, open_run


def source_of(config: RunConfig) -> Run:
    """The run that a config adapts.

    Raises:
        UserError: it is not there, or its model is of another family.
    """
    assert config.adapt is not None
    run = open_run(Path(config.adapt.source))
    ours, theirs = config.model.family, run.config.model.family
    if ours != theirs:
        raise UserError(f"adapt.from {run.folder}: is a model of family {theirs}, and this config's is {ours}")
    return run


def adapted(config: RunConfig, plan: Blueprint, mesh: Mesh) -> Any:
    """Parameters of the config's model, made from the newest checkpoint of the run that it adapts.

    Raises:
        UserError: arrays that the method cannot make, or of another shape: all of them.
    """
    assert config.adapt is not None
    run = source_of(config)
    _, old = run.params(mesh)
    method, models = config.adapt.method, Models(run.config.model, config.model)

    def surgery(old: Any) -> dict[str, Any]:
        fresh = initial(config.model, jax.random.key(config.train.seed))
        return method.weights(flat(old), flat(fresh), models, jnp)

    made, wanted = jax.eval_shape(surgery, old), flat(plan.shapes)
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
    placed = dict(zip(wanted, jax.tree.leaves(shardings(mesh, plan.axes, plan.shapes)), strict=True))
    arrays = jax.jit(surgery, out_shardings={name: placed[name] for name in made})(old)
    return jax.tree.unflatten(jax.tree.structure(plan.shapes), [arrays[name] for name in wanted])
