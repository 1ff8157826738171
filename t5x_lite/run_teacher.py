"""The teacher of a run that distils another one: its model, whether it fits the run, and its frozen weights."""

from dataclasses import dataclass, replace

from jax.sharding import Mesh
from jaxtyping import PyTree

from t5x_lite.config import RunConfig
from t5x_lite.data.tokenizer import Tokenizer
from t5x_lite.errors import UserError
from t5x_lite.models.spec import ModelSpec, model_spec
from t5x_lite.run_dir import Run, open_run, split_step
from t5x_lite.run_weights import BaseCheckpoint, merged_weights
from t5x_lite.trees import unflatten_names


@dataclass(frozen=True)
class Teacher:
    """A teacher without its weights.

    Attributes:
        run: the run that the teacher is from.
        step: the step that `distillation.teacher` names; None for the newest.
        spec: its model, in which what an adaptation has added is merged.
    """

    run: Run
    step: int | None
    spec: ModelSpec


def open_teacher(config: RunConfig) -> Teacher | None:
    """Open the teacher of a run; None if it has none.

    Raises:
        UserError: there is no such run, or its model cannot teach this config's model.
    """
    if config.distillation is None:
        return None
    folder, step = split_step(config.distillation.teacher)
    key = f"distillation.teacher {config.distillation.teacher}"
    try:
        run = open_run(folder)
    except UserError as error:
        raise UserError(f"distillation.teacher {error}") from None
    model = run.config.model
    if model.family != config.model.family:
        raise UserError(f"{key}: is a model of family {model.family}, and this config's is {config.model.family}")
    if "tokens" not in model.outputs:
        raise UserError(f"{key}: does not predict tokens (model.outputs: {list(model.outputs)})")
    if config.distillation.cosine and model.embed != config.model.embed:
        raise UserError(
            f"{key}: its states have width {model.embed}, and this config's model.embed is {config.model.embed}, so "
            "that they have no cosine: set distillation.cosine=0"
        )
    longest = max(stage.seq_len for stage in config.stages)
    if model.max_length is not None and longest > model.max_length:
        raise UserError(f"{key}: its model has {model.max_length} positions; shorten train.seq_len {longest}")
    if 0 < model.token_types < config.model.token_types:
        raise UserError(
            f"{key}: knows {model.token_types} token types, and this config's model.token_types is "
            f"{config.model.token_types}"
        )
    if model.start_token != config.model.start_token:
        raise UserError(
            f"{key}: its decoder begins with token {model.start_token}; set model.start_token to it, now "
            f"{config.model.start_token}"
        )
    return Teacher(run, step, replace(model_spec(model), character_ids=run.spec.character_ids))


def check_teacher(config: RunConfig, tokenizer: Tokenizer) -> None:
    """Check that the teacher of a run reads and predicts the same tokens, before anything is written or loaded.

    Raises:
        UserError: it has another tokenizer or a vocabulary of another size; see also `open_teacher`.
    """
    teacher = open_teacher(config)
    if teacher is None:
        return
    assert config.distillation is not None
    key = f"distillation.teacher {config.distillation.teacher}"
    if teacher.run.tokenizer.fingerprint != tokenizer.fingerprint:
        raise UserError(
            f"{key}: has another tokenizer than this run; take the teacher's, by adapt.from or tokenizer.file.path"
        )
    vocab = config.model.vocab or tokenizer.vocab
    if teacher.run.config.model.vocab != vocab:
        raise UserError(
            f"{key}: predicts {teacher.run.config.model.vocab} tokens, and this run's model {vocab}; set model.vocab="
            f"{teacher.run.config.model.vocab}"
        )


def load_teacher(
    config: RunConfig, mesh: Mesh, expected: BaseCheckpoint | None = None
) -> tuple[PyTree, BaseCheckpoint | None]:
    """Load the weights of the teacher onto the mesh; none, and None, if the run has no teacher.

    Args:
        config: the run.
        mesh: its devices.
        expected: the checkpoint of the teacher that the run began with, if it is resumed.

    Returns:
        The weights, and the checkpoint that they are from.

    Raises:
        UserError: the teacher has no checkpoint, or its weights have changed since the run began.
    """
    teacher = open_teacher(config)
    if teacher is None:
        return {}, None
    step = teacher.step if expected is None else expected.step
    step, weights = merged_weights(teacher.run, mesh, step)
    subject = f"distillation.teacher {teacher.run.config.run_dir}: is not the teacher that this run began with"
    return unflatten_names(weights), BaseCheckpoint.of_weights(step, weights, expected, subject)
