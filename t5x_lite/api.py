"""A trained model as a Python object: `t5x_lite.load(RUN)`."""

import json
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import jax
import numpy as np

from t5x_lite.adapt.initial_weights import load_weights
from t5x_lite.data.records import TaskData
from t5x_lite.data.tokenizer import Tokenizer
from t5x_lite.decode.fill import fill_masks
from t5x_lite.decode.generate import Generator
from t5x_lite.decode.generate import decoding_settings as decoding
from t5x_lite.errors import UserError
from t5x_lite.evaluate import embed as embedding
from t5x_lite.evaluate.likelihood import Likelihood
from t5x_lite.evaluate.tasks import TaskEvaluation
from t5x_lite.models.components import Learned
from t5x_lite.objectives.features import Pair
from t5x_lite.objectives.framing import encoder_frame
from t5x_lite.objectives.masked import MASK
from t5x_lite.parallel import mesh as meshes
from t5x_lite.run_dir import FOREIGN_CONFIG, Run, open_run
from t5x_lite.train.setup import evaluate_split, loss_function, open_data

BATCH = 16
"""Masks filled at one time."""


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
        begun = self.soft if self.run.own_tokenizer is None else np.concatenate([self.soft, self.beginning])
        return Generator(self.config.model, self.run.blueprint, self.params, self.run.own_tokenizer, begun)

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
            UserError: more tokens than the model has positions; decoder tokens missing or too many; a model that was
                trained to pool texts, or for a task, and predicts no tokens.
        """
        if not self.config.model.outputs:
            raise UserError("this model predicts no tokens (model.outputs: []); `embed` and `evaluate` are for it")
        rows = [np.atleast_2d(np.asarray(part, np.int32)) for part in (tokens, decoder_tokens) if part is not None]
        if (self.config.model.family == "encoder_decoder") != (len(rows) == 2):
            raise UserError(
                f"logits of a model of family {self.config.model.family}: an encoder_decoder, and it alone, "
                "takes inputs and decoder inputs"
            )
        for row in rows:
            self.context(row.shape[1])  # refused if too long
        return np.asarray(self._logits(self.params, rows[0], np.ones_like(rows[0]), *rows[1:]))

    @property
    def rows(self) -> int:
        """Rows of a batch that is evaluated."""
        return self.config.eval.batch_size or self.config.train.batch_size

    @cached_property
    def window(self) -> int:
        """Tokens read at one time: learned positions, or the context of weights from elsewhere, or `train.seq_len`."""
        if isinstance(self.config.model.positions, Learned):
            return self.config.model.positions.length
        stated = self._foreign.get("n_positions") or self._foreign.get("max_position_embeddings")
        return int(stated or self.config.train.seq_len)

    @cached_property
    def _foreign(self) -> dict[str, Any]:
        path = self.run.folder / FOREIGN_CONFIG
        return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}

    @property
    def soft(self) -> np.ndarray:
        """Ids of the soft prompt that an adaptation has learnt: -1, -2, …; they stand before every text."""
        return -1 - np.arange(self.config.method.placeholders, dtype=np.int32)

    @cached_property
    def beginning(self) -> np.ndarray:
        """Ids before every text of a decoder: of weights from elsewhere, what their tokenizer puts there (Llama's <s>).

        None in a run that was trained here: its documents are parted by EOS.
        """
        foreign = self._foreign and self.config.model.family == "decoder"
        return self.tokenizer.beginning() if foreign else np.zeros(0, np.int32)

    @property
    def first(self) -> int:
        """The token that a text begins with where nothing stands before it."""
        return int(self.beginning[-1]) if len(self.beginning) else self.eos

    def encoded(self, text: str) -> np.ndarray:
        """int32 ids as the model reads a text: begun by `beginning` in a decoder, ended by EOS in an encoder_decoder,
        between [CLS] and [SEP] in an encoder. A decoder's text of no token is `first`.
        """
        if self.config.model.family == "encoder_decoder":
            return self.generator.encoded(text)
        if self.config.model.family == "decoder":
            ids = np.concatenate([self.beginning, self.tokenizer.encode(text)])
            return np.concatenate([self.soft, ids if len(ids) else [self.first]]).astype(np.int32)
        frame = encoder_frame(self.tokenizer.vocabulary(), "a text for an encoder")
        return np.concatenate([self.soft, frame.tokens([self.tokenizer.encode(text)])])

    def context(self, wanted: int | None = None) -> int:
        """Tokens to read at one time: `wanted`, or `window`.

        Raises:
            UserError: more than the learned positions.
        """
        length, positions = wanted or self.window, self.config.model.positions
        if isinstance(positions, Learned) and length > positions.length:
            raise UserError(f"{length} tokens are more than the model's {positions.length} learned positions")
        return length

    @cached_property
    def likelihood(self) -> Likelihood:
        """Scores tokens that follow others; see `evaluate.likelihood`."""
        return Likelihood(self.config.model, self.run.blueprint, self.params, self.mesh, self.rows)

    def score(self, texts: Sequence[str], inputs: Sequence[str] | None = None) -> list[float]:
        """Log-probability (nats) of each text, the sum over its tokens.

        Of a decoder: after the token that begins a document and the text of `inputs`. Of an encoder_decoder: with
        EOS, given the text of `inputs` (empty if left out). Of an encoder: each token given all others, hidden one at a
        time (pseudo-log-likelihood, Salazar et al. 2020).

        Raises:
            UserError: `inputs` of another number, or for an encoder; texts longer than the learned positions.
        """
        given = inputs if inputs is not None else [""] * len(texts)
        if len(given) != len(texts):
            raise UserError(f"score: {len(texts)} texts but {len(given)} inputs")
        if self.config.model.family not in {"decoder", "encoder_decoder"}:
            if inputs is not None:
                raise UserError("score: an encoder takes no inputs")
            return [self._score_masked(text) for text in texts]
        pairs = [self._pair(before, text) for before, text in zip(given, texts, strict=True)]
        alone = self.config.model.family == "encoder_decoder"
        longest = max((max(map(len, pair)) if alone else sum(map(len, pair)) - 1 for pair in pairs), default=1)
        return [likely for likely, _ in self.likelihood(pairs, self.context(max(longest, 1)))]

    def _pair(self, before: str, text: str) -> Pair:
        """Inputs and targets; a decoder's are cut from the ids of both together."""
        if self.config.model.family == "encoder_decoder":
            return self.encoded(before), np.append(self.tokenizer.encode(text), self.eos)
        inputs, whole = self.tokenizer.encode_batch([before, before + text])
        return np.append(self.first, inputs), whole[len(inputs) :]

    def embed(self, texts: Sequence[str], pool: str = "mean", layer: int | None = None) -> Any:
        """float32 `[texts, embed]`; with pool `none` a list of `[tokens, embed]`. See `evaluate.embed.embed`."""
        return embedding.embed(self, texts, pool, layer)

    def _score_masked(self, text: str) -> float:
        mask = self.tokenizer.vocabulary().require_token("scores of an encoder", *MASK)
        ids = self.encoded(text)
        places = np.arange(len(self.soft) + 1, len(ids) - 1)
        total = 0.0
        for start in range(0, len(places), BATCH):
            hidden = places[start : start + BATCH]
            rows = np.repeat(ids[None], len(hidden), axis=0)
            rows[np.arange(len(hidden)), hidden] = mask
            logits = self.logits(rows)[np.arange(len(hidden)), hidden]
            likely = np.asarray(jax.nn.log_softmax(logits))
            total += float(likely[np.arange(len(hidden)), ids[hidden]].sum())
        return total

    @property
    def eos(self) -> int:
        """The end-of-document token."""
        if self.tokenizer.eos is None:
            raise UserError("scoring needs a tokenizer with an end-of-document token")
        return self.tokenizer.eos

    def generate(self, prompts: str | Sequence[str], **settings: Any) -> list[str]:
        """The continuation of each prompt (a decoder), or the answer to it (an encoder_decoder).

        `settings` are those of `decode.sampling.Sampling`, or of `decode.beam.Beam` for beam search.
        """
        return self.generator.generate([prompts] if isinstance(prompts, str) else prompts, decoding(**settings))

    def fill(self, text: str, count: int = 5) -> list[list[tuple[str, float]]]:
        """The likeliest tokens, with probabilities, for each [MASK] of a text, by an encoder."""
        return fill_masks(self, text, count)

    def evaluate(self) -> dict[str, float]:
        """On the run's validation split, loss, perplexity and bits per byte (see `evaluate.perplexity`); of a run that
        has learnt tasks, its loss and `<task>/<metric>`, with the predictions in RUN/eval/STEP.
        """
        config = self.config
        data = open_data(config, self.tokenizer)
        loss = loss_function(config, self.run.blueprint, meshes.batch_shards(self.mesh), training=False)
        found = evaluate_split(jax.jit(lambda params, batch: loss(params, batch, None)), self.params, data, self.mesh)
        if isinstance(data, TaskData):
            tasks = TaskEvaluation(data, self.run.blueprint, self.params, self.tokenizer, self.mesh)
            found |= tasks.scores(self.params, self.run.folder / "eval" / str(self.step))
        return found


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
    step, params, _ = load_weights(opened, mesh, step)
    return Model(opened, step, params, mesh)
