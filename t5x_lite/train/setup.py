"""What the loop needs before its first step: text as rows, and the compiled steps with their shardings."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
import optax
from jax.sharding import Mesh

from t5x_lite.config import RunConfig
from t5x_lite.data import mixture
from t5x_lite.data.corpus import Corpus, prepare
from t5x_lite.data.pipeline import TrainingRows, Validation
from t5x_lite.data.tokenizer import Tokenizer
from t5x_lite.errors import UserError
from t5x_lite.models import losses
from t5x_lite.models.losses import TokenLoss
from t5x_lite.models.transformer import Blueprint, initial
from t5x_lite.parallel import mesh as meshes
from t5x_lite.train import optimizer as optimizers
from t5x_lite.train.state import TrainState, new_state
from t5x_lite.train.step import LossFunction, eval_step, train_step


@dataclass(frozen=True)
class Data:
    """Training rows and validation batches of a config, cut from its token corpora."""

    folders: list[Path]
    training: list[Corpus]
    held_out: list[Corpus]
    config: RunConfig

    def rows(self) -> TrainingRows:
        """The endless global order of training rows."""
        data, train = self.config.data, self.config.train
        shares = mixture.weights(data.sources, [corpus.tokens for corpus in self.training], data.mixture_alpha)
        return TrainingRows(self.training, shares, data, self.config.objective, train.seq_len, train.seed)

    def validation(self) -> Validation:
        """The whole held-out split, or its first `eval.batches`."""
        if not sum(corpus.tokens for corpus in self.held_out):
            raise UserError(
                "no document fell into the validation split; raise data.validation_fraction, name "
                "data.validation_files, or split by data.validation_by=position"
            )
        run = self.config
        size = run.eval.batch_size or run.train.batch_size
        return Validation(self.held_out, run.data, run.objective, run.train.seq_len, size, run.eval.batches)

    @property
    def tokens_per_byte(self) -> float:
        """Tokens of the validation split for one byte of its text."""
        return sum(c.tokens for c in self.held_out) / max(sum(c.text_bytes for c in self.held_out), 1)


def open_data(config: RunConfig, tokenizer: Tokenizer) -> Data:
    """Find or make the token corpora of every source."""
    folders = [prepare(source, config.data, tokenizer) for source in config.data.sources]
    return Data(
        folders, [Corpus.open(f, "train") for f in folders], [Corpus.open(f, "validation") for f in folders], config
    )


def loss_function(config: RunConfig, model: Blueprint, shards: int, *, training: bool) -> LossFunction:
    """The objective's loss with the run's cross-entropy: z-loss and label smoothing in training alone."""
    train = config.train
    rows = train.batch_size // train.microbatches if training else (config.eval.batch_size or train.batch_size)
    logits_bytes = 4 * -(-rows // shards) * train.seq_len * (config.model.vocab or 1)
    cross_entropy = partial(
        losses.cross_entropy,
        z_loss=train.z_loss if training else 0.0,
        label_smoothing=train.label_smoothing if training else 0.0,
        chunks=train.loss_chunks or losses.chunks_for(train.seq_len, logits_bytes),
    )
    return lambda params, batch, key: config.objective.loss(model.model(params), batch, key, cross_entropy)


@dataclass(frozen=True)
class Steps:
    """The steps of one run on one mesh, and the shape that its state has there."""

    train: Callable[[TrainState, Any], tuple[TrainState, dict[str, jax.Array]]]
    evaluate: Callable[[Any, Any], TokenLoss]
    fresh: Callable[[], TrainState]
    state: TrainState


def make_steps(config: RunConfig, model: Blueprint, mesh: Mesh) -> Steps:
    """Jitted steps with explicit shardings; nothing is allocated or compiled yet."""
    train, shards = config.train, meshes.batch_shards(mesh)
    optimizer: optax.GradientTransformation = optimizers.make(config.optimizer, train.steps, model.axes)

    def fresh() -> TrainState:
        return new_state(initial(config.model, jax.random.key(train.seed)), optimizer)

    shapes = jax.eval_shape(fresh)
    placed = meshes.state_shardings(mesh, model.axes, shapes)
    rows, whole = meshes.batch_sharding(mesh), meshes.replicated(mesh)
    step = partial(
        train_step, loss_function(config, model, shards, training=True), optimizer, train.microbatches, train.seed
    )
    return Steps(
        train=jax.jit(step, donate_argnums=0, in_shardings=(placed, rows), out_shardings=(placed, whole)),
        evaluate=jax.jit(
            partial(eval_step, loss_function(config, model, shards, training=False)),
            in_shardings=(placed.params, rows),
            out_shardings=whole,
        ),
        fresh=jax.jit(fresh, out_shardings=placed),
        state=jax.tree.map(lambda s, p: jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=p), shapes, placed),
    )


def matrix_parameters(model: Blueprint) -> int:
    """Weights that every token is multiplied with: all matrices, and the token table where it is the output too."""
    tied = "output" not in model.shapes
    sizes = jax.tree.map(
        lambda a, s: s.size if a.inputs or (tied and a.names[0] == "vocab") else 0,
        model.axes,
        model.shapes,
        is_leaf=lambda leaf: hasattr(leaf, "inputs"),
    )
    return int(np.sum(jax.tree.leaves(sizes)))
