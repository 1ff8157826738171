"""A run directory: the resolved config, the tokenizer, and what is needed to open the model again."""

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
from jax.sharding import Mesh

from t5x_lite import config as configuration
from t5x_lite import schema
from t5x_lite.checkpoint import Checkpoints
from t5x_lite.config import RunConfig
from t5x_lite.data import tokenizer as tokenizers
from t5x_lite.data.tokenizer import Tokenizer
from t5x_lite.errors import UserError, write_file
from t5x_lite.models.transformer import ModelSpec, model_spec
from t5x_lite.parallel.mesh import shape_structs, shardings

FOREIGN_CONFIG = "config.huggingface.json"
"""In a run of imported weights: the config that they came with."""


@dataclass(frozen=True)
class Run:
    """What a run directory holds, its weights still on disk."""

    folder: Path
    config: RunConfig
    blueprint: ModelSpec
    own_tokenizer: Tokenizer | None = None

    @property
    def tokenizer(self) -> Tokenizer:
        """The run's tokenizer.

        Raises:
            UserError: imported weights that came without one.
        """
        if self.own_tokenizer is None:
            raise UserError(f"{self.folder}: has no tokenizer; put tokenizer.json or tokenizer.model there")
        return self.own_tokenizer

    @property
    def checkpoints(self) -> Checkpoints:
        """The run's checkpoints."""
        own = self.config.checkpoint
        return Checkpoints(own.folder or self.folder / "checkpoints", own)

    def trained(self, mesh: Mesh, step: int | None = None) -> tuple[int, Any, dict[str, Any]]:
        """Step, weights that train, and metadata of the newest whole checkpoint, or of `step`.

        Of a run that began from nothing these are all weights; see `adapt.initial_weights.loaded`.

        Raises:
            UserError: there is none, or the one of `step` is damaged.
        """
        parts = self.config.parts(self.blueprint.axes)
        shapes = jax.eval_shape(parts.trained, self.blueprint.shapes)
        where = shardings(mesh, parts.names_trained(self.blueprint.axes), shapes)
        found = self.checkpoints.restore(shape_structs(shapes, where), step, prefix="params.")
        if found is None:
            raise UserError(f"{self.folder}: has no checkpoint yet; train it first")
        return found


def with_vocab(config: RunConfig, tokenizer: Tokenizer) -> RunConfig:
    """The config with the model's vocabulary filled in from the tokenizer.

    Raises:
        UserError: the model has fewer rows than the tokenizer has ids.
    """
    vocab = config.model.vocab or tokenizer.vocab
    if vocab < tokenizer.vocab:
        raise UserError(
            f"model.vocab {vocab} is below the tokenizer's {tokenizer.vocab} ids; leave it out or make it larger"
        )
    return config.model_copy(update={"model": config.model.model_copy(update={"vocab": vocab})})


def check_run_dir(config: RunConfig) -> None:
    """Refuse a run directory that belongs to another config, before any work is done for it.

    Raises:
        UserError: the differing keys, each with both values.
    """
    kept = Path(str(config.run_dir)) / "config.yaml"
    if config.train.allow_changed_config or not kept.is_file():
        return
    differences = configuration.changed(schema.validate(RunConfig, schema.read(RunConfig, kept)), config)
    if config.model.vocab is None:  # filled in from the tokenizer, whose own settings are compared
        differences.pop("model.vocab", None)
    if differences:
        shown = "; ".join(f"{key} was {old!r}, is {new!r}" for key, (old, new) in differences.items())
        raise UserError(
            f"{kept.parent}: is the run of another config: {shown}; give another run_dir, or "
            "train.allow_changed_config=true to go on with the new values"
        )


def create_run_dir(config: RunConfig, tokenizer: Tokenizer) -> Run:
    """Make the run directory, or enter the one that is there: its config and tokenizer are written."""
    config = with_vocab(config, tokenizer)
    folder = Path(str(config.run_dir))
    if jax.process_index() == 0:
        write_file(folder / "config.yaml", configuration.dump(config))
        tokenizer.save(folder)
    return Run(folder, config, model_spec(config.model, config.method.surgery), tokenizer)


def open_run(folder: Path, overrides: list[str] | None = None) -> Run:
    """Open a run directory for evaluation or generation, with overrides of its config.

    Raises:
        UserError: not a run directory.
    """
    path = folder / "config.yaml"
    if not path.is_file():
        raise UserError(f"{folder}: is not a run directory (no config.yaml); `t5x-lite train CONFIG` makes one")
    sources = schema.read(RunConfig, path, overrides or [])
    config = schema.validate(RunConfig, sources).model_copy(update={"run_dir": str(folder)})
    has = any((folder / name).is_file() for name in tokenizers.FILES)
    return Run(
        folder, config, model_spec(config.model, config.method.surgery), tokenizers.load(folder) if has else None
    )


@contextmanager
def lock_dir(folder: Path, busy: str, key: str = "") -> Iterator[None]:
    """Make a folder and hold it against other jobs on this machine, until this one's first process ends.

    `busy` is said where one has it, and the `key` of the config that names it where it cannot be made.

    Raises:
        UserError: one has it, or the folder cannot be made.
    """
    if jax.process_index() > 0:
        yield
        return
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = (folder / ".lock").open("w")
    except OSError as error:
        raise UserError(f"{key}{folder}: cannot be made or written: {error.strerror}") from None
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(f"{folder}: {busy}") from None
        yield
