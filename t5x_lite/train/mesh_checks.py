"""Checks that a run can train on a mesh: its batches, model, kernels and teacher."""

import jax
from jax.sharding import Mesh

from t5x_lite.config import RunConfig
from t5x_lite.data.stages import Stage, title
from t5x_lite.errors import UserError
from t5x_lite.extras import require_library
from t5x_lite.models.attention import kernels
from t5x_lite.models.experts.dispatch import check_dispatch
from t5x_lite.models.mesh_sizes import check_mesh_sizes
from t5x_lite.models.pipeline import check_microbatch_count
from t5x_lite.objectives.dummy_example import LARGEST_VOCAB, dummy_context
from t5x_lite.objectives.mixed_rows import largest_lengths
from t5x_lite.parallel import mesh as meshes
from t5x_lite.parallel.memory import check_host_offload
from t5x_lite.run_loss import needs_segments
from t5x_lite.run_teacher import open_teacher


def check_mesh(mesh: Mesh, config: RunConfig, platform: str) -> dict[str, str]:
    """Check that a run can train on a mesh, and return its attention kernels.

    Args:
        mesh: the devices.
        config: the run.
        platform: platform of the devices, such as `tpu`.

    Returns:
        The kernel of each kind of attention, and why it was chosen; see `kernels.planned_kernels`.

    Raises:
        UserError: the model, a kernel or the batch does not fit the mesh, or a package is missing.
    """
    train = config.train
    if train.quantization is not None:
        require_library("train.quantization", "qwix", "quantization")
    if config.model.remat == "offload":
        check_host_offload(mesh)
    sizes = mesh.shape
    rows = train.batch_size // train.microbatches
    rows_key = "train.batch_size"
    if train.microbatches > 1:
        rows_key = "train.batch_size / train.microbatches"
    meshes.check_rows(mesh, rows, rows_key)
    objective = config.policy_objective
    if objective is not None:
        answers_key = f"{rows_key} · answers to a prompt / objective.{objective.name}.minibatches"
        meshes.check_rows(mesh, objective.loss_rows(rows), answers_key)
    meshes.check_rows(mesh, config.eval.batch_size or train.batch_size, "eval.batch_size")
    meshes.check_length(mesh, train.seq_len, "train.seq_len")
    try:
        with jax.set_mesh(mesh):
            check_mesh_sizes(config.model, sizes["expert"], sizes["tensor"], sizes["pipeline"])
            _check_teacher_sizes(mesh, config)
            config.method.check_stages(sizes["pipeline"])
            check_dispatch(config.model, platform)
            if sizes["pipeline"] > 1:
                check_microbatch_count(config.model.pipeline_microbatches, rows)
                if objective is not None:
                    check_microbatch_count(config.model.pipeline_microbatches, objective.loss_rows(rows))
            for stage in config.stages:
                if stage.name:
                    _check_stage(mesh, config, stage, platform)
            return _plan_kernels(config, train.seq_len, platform)
    except ValueError as error:
        raise UserError(str(error)) from None


def _check_stage(mesh: Mesh, config: RunConfig, stage: Stage, platform: str) -> None:
    """Check that the batches of a stage fit the mesh, or raise UserError or ValueError."""
    rows = stage.batch_size // config.train.microbatches
    meshes.check_rows(mesh, rows, f"{title(stage)}: batch_size / train.microbatches")
    meshes.check_length(mesh, stage.seq_len, f"{title(stage)}: seq_len")
    if mesh.shape["pipeline"] > 1:
        check_microbatch_count(config.model.pipeline_microbatches, rows)
    _plan_kernels(config, stage.seq_len, platform)


def _plan_kernels(config: RunConfig, seq_len: int, platform: str) -> dict[str, str]:
    """Return the kernel of each kind of attention in rows of `seq_len` tokens, or raise ValueError."""
    context = dummy_context(LARGEST_VOCAB, seq_len, config.model.family)
    targets = largest_lengths(config.row_objectives, context).targets
    documents = needs_segments(config)
    return kernels.planned_kernels(config.model, seq_len, platform, targets, documents=documents)


def _check_teacher_sizes(mesh: Mesh, config: RunConfig) -> None:
    """Check that the teacher of a run fits the mesh, or raise UserError."""
    teacher = open_teacher(config)
    if teacher is None:
        return
    sizes = mesh.shape
    try:
        check_mesh_sizes(teacher.run.config.model, sizes["expert"], sizes["tensor"], sizes["pipeline"])
    except ValueError as error:
        raise UserError(f"distillation.teacher {teacher.run.config.run_dir}: {error}") from None
