"""A trained model as a Python object: `t5x_lite.load(RUN)`."""

from collections.abc import Sequence
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from t5x_lite.data.pipeline import Validation
from t5x_lite.data.tokenizer import Tokenizer
from t5x_lite.decode.fill import fill_masks
from t5x_lite.decode.generate import Generator, Sampling
from t5x_lite.errors import UserError
from t5x_lite.evaluate.perplexity import evaluate
from t5x_lite.models.config import START, Learned
from t5x_lite.objectives.masked import CLS, MASK, SEP
from t5x_lite.parallel import mesh as meshes
from t5x_lite.run import Run, open_run
from t5x_lite.train.setup import loss_function, open_data
from t5x_lite.train.step import eval_step

BATCH = 16
"""Texts scored at one time."""


class Model:
    """A run's weights, tokenizer and config, ready to score and to generate."""

    def __init__(self, run: Run, step: int, params: Any, mesh: Any) -> None:
        self.run, self.step, self.params, self.mesh = run, step, params, mesh
        self.config = run.config
        self._logits = jax.jit(self._forward)

    @property
    def tokenizer(self) -> Tokenizer:
        """The run's tokenizer."""
        return self.run.tokenizer

    @cached_property
    def generator(self) -> Generator:
        """The compiled decoding loop."""
        return Generator(self.config.model, self.run.blueprint, self.params, self.run.own_tokenizer)

    def _forward(self, params: Any, tokens: Any, segment_ids: Any, decoder_tokens: Any | None = None) -> Any:
        model = self.run.blueprint.model(params)
        if decoder_tokens is not None:
            return model.logits(model(tokens, decoder_tokens, segment_ids=segment_ids))
        model = getattr(model, "discriminator", model)
        states = model(tokens, segment_ids=segment_ids)
        return model.logits(states) if "tokens" in self.config.model.outputs else model.detection(states)

    def logits(self, tokens: Any, decoder_tokens: Any | None = None) -> np.ndarray:
        """float32 scores for int tokens `[batch, length]` (or one row).

        Of a decoder: of the next token, `[batch, length, vocab]`. Of an encoder: of the token at each place. Of an
        encoder_decoder: of the token after each of `decoder_tokens`, which begin with 0. Of ELECTRA's discriminator
        `[batch, length]`: above 0 where a token seems replaced.

        Raises:
            UserError: more tokens than the model has positions; decoder tokens missing or too many.
        """
        rows = [np.atleast_2d(np.asarray(part, np.int32)) for part in (tokens, decoder_tokens) if part is not None]
        if (self.config.model.family == "encoder_decoder") != (len(rows) == 2):
            raise UserError(
                f"logits of a model of family {self.config.model.family}: an encoder_decoder, and it alone, "
                "takes inputs and decoder inputs"
            )
        for row in rows:
            self._check_length(row.shape[1])
        first, *second = (jnp.asarray(row) for row in rows)
        return np.asarray(self._logits(self.params, first, jnp.ones_like(first), *second))

    def score(self, texts: Sequence[str], inputs: Sequence[str] | None = None) -> list[float]:
        """Log-probability (nats) of each text, the sum over its tokens.

        Of a decoder: the first token given an end-of-document token. Of an encoder_decoder: with EOS, given the text of
        `inputs` (empty if left out). Of an encoder: each token given all others, hidden one at a time
        (pseudo-log-likelihood, Salazar et al. 2020).
        """
        given = inputs if inputs is not None else [""] * len(texts)
        if len(given) != len(texts):
            raise UserError(f"score: {len(texts)} texts but {len(given)} inputs")
        score = {"decoder": self._score, "encoder_decoder": self._score_targets}.get(self.config.model.family)
        if score is None:
            return [self._score_masked(text) for text in texts]
        starts = range(0, len(texts), BATCH)
        return [value for at in starts for value in score(texts[at : at + BATCH], given[at : at + BATCH])]

    def _score(self, texts: Sequence[str], given: Sequence[str]) -> list[float]:
        eos = self._eos()
        rows = [np.concatenate([[eos], self.tokenizer.encode(text)]) for text in texts]
        tokens, inside = _right_padded(rows)
        self._check_length(tokens.shape[1] - 1)
        logits = self._logits(self.params, jnp.asarray(tokens[:, :-1]), jnp.asarray(inside[:, :-1]))
        return _sum_chosen(logits, tokens[:, 1:], inside[:, 1:])

    def _score_targets(self, texts: Sequence[str], given: Sequence[str]) -> list[float]:
        inputs, read = _right_padded([self.generator.encoded(text) for text in given])
        targets, inside = _right_padded([np.append(self.tokenizer.encode(text), self._eos()) for text in texts])
        for row in (inputs, targets):
            self._check_length(row.shape[1])
        shifted = np.concatenate([np.full_like(targets[:, :1], START), targets[:, :-1]], axis=1)
        logits = self._logits(self.params, jnp.asarray(inputs), jnp.asarray(read), jnp.asarray(shifted))
        return _sum_chosen(logits, targets, inside)

    def _score_masked(self, text: str) -> float:
        vocabulary = self.tokenizer.vocabulary()
        cls, sep, mask = (vocabulary.one_of("masked", *names) for names in (CLS, SEP, MASK))
        ids = np.concatenate([[cls], self.tokenizer.encode(text), [sep]])
        places = np.arange(1, len(ids) - 1)
        total = 0.0
        for start in range(0, len(places), BATCH):
            hidden = places[start : start + BATCH]
            rows = np.repeat(ids[None], len(hidden), axis=0)
            rows[np.arange(len(hidden)), hidden] = mask
            logits = self.logits(rows)[np.arange(len(hidden)), hidden]
            total += sum(_sum_chosen(logits[:, None], ids[hidden][:, None], np.ones((len(hidden), 1))))
        return total

    def _eos(self) -> int:
        if self.tokenizer.eos is None:
            raise UserError("scoring needs a tokenizer with an end-of-document token")
        return self.tokenizer.eos

    def generate(self, prompts: str | Sequence[str], **settings: Any) -> list[str]:
        """The continuation of each prompt (a decoder), or the answer to it (an encoder_decoder).

        `settings` are those of `decode.generate.Sampling`.
        """
        return self.generator.generate([prompts] if isinstance(prompts, str) else prompts, Sampling(**settings))

    def fill(self, text: str, count: int = 5) -> list[list[tuple[str, float]]]:
        """The likeliest tokens, with probabilities, for each [MASK] of a text, by an encoder."""
        return fill_masks(self, text, count)

    def evaluate(self) -> dict[str, float]:
        """Loss, perplexity and bits per byte on the run's validation split (see `evaluate.perplexity`)."""
        config = self.config
        data = open_data(config, self.tokenizer)
        validation: Validation = data.validation()
        shards = meshes.batch_shards(self.mesh)
        loss = loss_function(config, self.run.blueprint, shards, training=False)
        local = meshes.local_rows(self.mesh, validation.batch_size)
        batches = (meshes.to_global(self.mesh, b, validation.batch_size) for b in validation.batches(local))
        return evaluate(jax.jit(partial(eval_step, loss)), self.params, batches, data.tokens_per_byte)

    def _check_length(self, length: int) -> None:
        positions = self.config.model.positions
        if isinstance(positions, Learned) and length > positions.length:
            raise UserError(f"{length} tokens are more than the model's {positions.length} learned positions")


def _right_padded(rows: Sequence[np.ndarray]) -> np.ndarray:
    """Tokens and whether they are real, `[2, rows, longest]`."""
    padded = np.zeros((2, len(rows), max(map(len, rows))), np.int32)
    for number, row in enumerate(rows):
        padded[:, number, : len(row)] = row, np.ones(len(row))
    return padded


def _sum_chosen(logits: Any, targets: np.ndarray, inside: np.ndarray) -> list[float]:
    """Of each row, the sum of the log-probabilities of its real targets."""
    log_probabilities = np.asarray(jax.nn.log_softmax(logits))
    chosen = np.take_along_axis(log_probabilities, targets[..., None], axis=-1)[..., 0]
    return [float(value) for value in (chosen * inside).sum(-1)]


def load(run: str | Path, *, step: int | None = None, overrides: Sequence[str] = ()) -> Model:
    """The model of a run directory, at its newest whole checkpoint or that of `step`.

    `RUN/checkpoints/STEP` names a step too.

    Raises:
        UserError: not a run directory, no checkpoint, or a damaged one.
    """
    folder = Path(run)
    if folder.parent.name == "checkpoints" and folder.name.isdigit():
        folder, step = folder.parent.parent, int(folder.name)
    opened = open_run(folder, list(overrides))
    mesh = meshes.make_mesh(opened.config.mesh)
    step, params = opened.params(mesh, step)
    return Model(opened, step, params, mesh)
