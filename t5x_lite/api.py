"""A trained model as a Python object: `t5x_lite.load(RUN)`."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from t5x_lite.data.pipeline import Validation
from t5x_lite.decode.generate import Decoder, Sampling
from t5x_lite.errors import UserError
from t5x_lite.evaluate.perplexity import evaluate
from t5x_lite.models.config import Learned
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
        self.tokenizer, self.config = run.tokenizer, run.config
        self.decoder = Decoder(run.blueprint, params, run.tokenizer)
        self._logits = jax.jit(self._forward)

    def _forward(self, params: Any, tokens: Any, segment_ids: Any) -> Any:
        model = self.run.blueprint.model(params)
        return model.logits(model(tokens, segment_ids=segment_ids))

    def logits(self, tokens: Any) -> np.ndarray:
        """float32 `[batch, length, vocab]` for int tokens `[batch, length]` (or one row): scores of the next token.

        Raises:
            UserError: more tokens than the model has positions.
        """
        tokens = np.atleast_2d(np.asarray(tokens, np.int32))
        self._check_length(tokens.shape[1])
        return np.asarray(self._logits(self.params, jnp.asarray(tokens), jnp.ones_like(tokens)))

    def score(self, texts: Sequence[str]) -> list[float]:
        """Log-probability (nats) of each text: the sum over its tokens, the first given an end-of-document token."""
        return [value for start in range(0, len(texts), BATCH) for value in self._score(texts[start : start + BATCH])]

    def _score(self, texts: Sequence[str]) -> list[float]:
        if self.tokenizer.eos is None:
            raise UserError("scoring needs a tokenizer with an end-of-document token to begin from")
        rows = [np.concatenate([[self.tokenizer.eos], self.tokenizer.encode(text)]) for text in texts]
        longest = max(map(len, rows))
        self._check_length(longest - 1)
        tokens, inside = np.zeros((2, len(rows), longest), np.int32)
        for number, row in enumerate(rows):
            tokens[number, : len(row)], inside[number, : len(row)] = row, 1
        logits = self._logits(self.params, jnp.asarray(tokens[:, :-1]), jnp.asarray(inside[:, :-1]))
        log_probabilities = np.asarray(jax.nn.log_softmax(logits))
        chosen = np.take_along_axis(log_probabilities, tokens[:, 1:, None], axis=-1)[..., 0]
        return [float(value) for value in (chosen * inside[:, 1:]).sum(-1)]

    def generate(self, prompts: str | Sequence[str], **settings: Any) -> list[str]:
        """The continuation of each prompt; `settings` are those of `decode.generate.Sampling`."""
        return self.decoder.generate([prompts] if isinstance(prompts, str) else prompts, Sampling(**settings))

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
