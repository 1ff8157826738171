"""Fit a run to the devices and the memory of its job before anything is prepared or allocated."""

import logging

import jax
from jax.sharding import Mesh

from t5x_lite.config import RunConfig
from t5x_lite.models.spec import model_spec
from t5x_lite.parallel.memory import local_memory
from t5x_lite.parallel.mesh import batch_shards, make_mesh
from t5x_lite.planner.example import example_lengths
from t5x_lite.planner.memory import modelled_memory
from t5x_lite.planner.remat_choice import resolve_remat, with_assumed_vocab
from t5x_lite.planner.workload import Workload
from t5x_lite.train.mesh_checks import check_mesh
from t5x_lite.train.steps import make_steps

logger = logging.getLogger(__name__)

BYTES_PER_TOKEN = 4
REMEDY = "choose a smaller model or batch, or more devices and a mesh that shards over them (mesh.fsdp)"


def fit_to_devices(config: RunConfig) -> RunConfig:
    """Return the config of a run on the devices of this job; warn if it probably does not fit. See `judge_fit`."""
    config, warning = judge_fit(config)
    if warning is not None and jax.process_index() == 0:
        logger.warning(warning)
    return config


def judge_fit(config: RunConfig) -> tuple[RunConfig, str | None]:
    """Return the config of a run on the devices of this job, with a policy in place of `model.remat: auto`.

    Weights, optimizer state, gradients and the tokens of one batch are exact and are in memory together: a run is
    refused if these alone do not fit. Activations are estimated.

    Returns:
        The config, and a warning if the run probably does not fit.

    Raises:
        UserError: the run does not fit; see also `check_mesh`.
    """
    mesh = make_mesh(config.mesh)
    check_mesh(mesh, config, mesh.devices.flat[0].platform)
    config = resolve_remat(config)
    return config, _check_memory(config, mesh)


def _check_memory(config: RunConfig, mesh: Mesh) -> str | None:
    """Refuse a run that cannot fit into memory; return a warning of one that probably does not."""
    eval_batch_size = config.eval.batch_size or 0
    eval_seq_len = config.train.seq_len
    config = with_assumed_vocab(config.of_stage(config.largest_stage))
    spec = model_spec(config.model, config.method.surgery)
    lengths = example_lengths(config)
    with jax.set_mesh(mesh):
        state = make_steps(config, spec, mesh).state
    modelled = modelled_memory(Workload(config, spec, lengths, mesh), state, mesh.devices.flat[0].platform)

    token_bytes = BYTES_PER_TOKEN / batch_shards(mesh)
    training_bytes = modelled["gradients_bytes"] + config.train.batch_size * config.train.seq_len * token_bytes
    evaluation_bytes = eval_batch_size * eval_seq_len * token_bytes
    exact_bytes = modelled["state_bytes"] + max(training_bytes, evaluation_bytes)
    memory = local_memory(mesh)
    subject = f"weights, optimizer state and gradients of {spec.parameters:,} parameters, and one batch"
    memory.check(exact_bytes, subject, REMEDY)
    if not memory.lacks(modelled["memory_bytes"]):
        return None
    needed = memory.describe(modelled["memory_bytes"])
    return f"a train step takes about {needed}; model.remat=full or train.microbatches lower it"
