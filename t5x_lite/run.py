"""A run directory: the resolved config, the tokenizer, and what is needed to open the model again."""

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import yaml
from jax.sharding import Mesh

from t5x_lite import config as configuration
from t5x_lite import schema
from t5x_lite.checkpoint import Checkpoints
from t5x_lite.config import RunConfig
from t5x_lite.data import tokenizer as tokenizers
from t5x_lite.data.tokenizer import Tokenizer
from t5x_lite.errors import UserError
from t5x_lite.models.transformer import Blueprint, blueprint
from t5x_lite.parallel.mesh import shardings


@dataclass(frozen=True)
class Run:
    """What a run directory holds, its weights still on disk."""

    folder: Path
    config: RunConfig
    tokenizer: Tokenizer
    blueprint: Blueprint

    @property
    def checkpoints(self) -> Checkpoints:
        """The run's checkpoints."""
        return Checkpoints(self.folder / "checkpoints", self.config.checkpoint)

    def params(self, mesh: Mesh, step: int | None = None) -> tuple[int, Any]:
        """Step and weights of the newest whole checkpoint, or of `step`.

        Raises:
            UserError: there is none, or the one of `step` is damaged.
        """
        shapes = self.blueprint.shapes
        placed = jax.tree.map(
            lambda s, sharding: jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=sharding),
            shapes,
            shardings(mesh, self.blueprint.axes, shapes),
        )
        found = self.checkpoints.restore(placed, step, prefix="params.")
        if found is None:
            raise UserError(f"{self.folder}: has no checkpoint yet; train it first")
        return found[0], found[1]


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


def create(config: RunConfig, tokenizer: Tokenizer) -> Run:
    """Make the run directory, or enter the one that is there.

    Raises:
        UserError: it belongs to another config; the differing keys are named.
    """
    config = with_vocab(config, tokenizer)
    folder = Path(str(config.run_dir))
    if jax.process_index() == 0:
        kept = folder / "config.yaml"
        if kept.is_file():
            _refuse_another(kept, config)
        folder.mkdir(parents=True, exist_ok=True)
        kept.with_suffix(".tmp").write_text(configuration.dump(config), encoding="utf-8")
        kept.with_suffix(".tmp").replace(kept)
        tokenizer.save(folder)
    return Run(folder, config, tokenizer, blueprint(config.model))


def _refuse_another(kept: Path, config: RunConfig) -> None:
    differences = configuration.changed(_read(kept), config)
    if differences and not config.train.allow_changed_config:
        shown = "; ".join(f"{key} was {old!r}, is {new!r}" for key, (old, new) in differences.items())
        raise UserError(
            f"{kept.parent}: is the run of another config: {shown}; give another run_dir, or "
            "train.allow_changed_config=true to go on with the new values"
        )


def _read(path: Path) -> RunConfig:
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, yaml.YAMLError) as error:
        raise UserError(f"{path}: cannot be read: {error}") from None
    return schema.validate(RunConfig, schema.Sources(values, {key: str(path) for key in values}))


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
    return Run(folder, config, tokenizers.load(folder), blueprint(config.model))


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold a run directory against a second training process on this machine; the lock ends with the process."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(f"{folder}: another process trains this run; wait for it or give another run_dir") from None
        yield
