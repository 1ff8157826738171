"""A trained model as a Python object: `t5x_lite.load(RUN)`."""

from collections.abc import Callable, Hashable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import jax
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int, PyTree
from numpy.typing import ArrayLike

from t5x_lite.config import RunConfig
from t5x_lite.data.tokenizer import Tokenizer
from t5x_lite.data.training_data import TrainingData
from t5x_lite.decode.beam import Beam
from t5x_lite.decode.chat import Chat, chat_prompts, check_chat
from t5x_lite.decode.fill import Candidates, fill_masks
from t5x_lite.decode.generate import Generator, decoding_settings
from t5x_lite.decode.sampling import Sampling, default_tokens
from t5x_lite.errors import UserError
from t5x_lite.evaluate import embed as embedding
from t5x_lite.evaluate import score as scoring
from t5x_lite.evaluate.embed import Embeddings
from t5x_lite.evaluate.evaluators import Evaluator
from t5x_lite.evaluate.likelihood import Likelihood, TargetScorer
from t5x_lite.evaluate.masked_tokens import build_token_masker
from t5x_lite.evaluate.pseudo_likelihood import PseudoLikelihood
from t5x_lite.evaluate.tasks import TaskEvaluation
from t5x_lite.evaluate.words import WordStarts
from t5x_lite.generation_settings import end_tokens
from t5x_lite.models.int8_weights import quantize_weights
from t5x_lite.models.loss_terms import Batch, LossFunction, LossTerms
from t5x_lite.models.spec import ModelSpec
from t5x_lite.objectives.objective import ExampleContext
from t5x_lite.objectives.special_tokens import input_start, task_template, text_start, virtual_tokens
from t5x_lite.parallel import mesh as meshes
from t5x_lite.parallel.batched_function import Features, compile_once
from t5x_lite.run_data import example_context, open_run_data
from t5x_lite.run_dir import Run, open_run, split_step
from t5x_lite.run_loss import loss_function
from t5x_lite.run_rewards import RewardSource, open_rewards
from t5x_lite.run_weights import BaseCheckpoint, initial_weights, load_weights


class Model:
    """A run's weights, tokenizer and config.

    Attributes:
        run: the opened run.
        step: the step of the weights.
        mesh: the mesh of the weights.
        config: the run's config.
    """

    def __init__(self, run: Run, step: int, params: PyTree[Array], mesh: Mesh) -> None:
        self.run = run
        self.step = step
        self.mesh = mesh
        self.config: RunConfig = run.config
        self._params = params
        self._logits = jax.jit(self._compute_logits)
        self._batched_function = compile_once(mesh, self.eval_batch_size, run.spec)

    @property
    def params(self) -> PyTree[Array]:
        """The weights, a nested dict of arrays."""
        return self._params

    @property
    def spec(self) -> ModelSpec:
        """The model without its weights."""
        return self.run.spec

    @property
    def tokenizer(self) -> Tokenizer:
        """The run's tokenizer.

        Raises:
            UserError: imported weights that came without one.
        """
        return self.run.tokenizer

    @property
    def eos(self) -> int:
        """The end-of-document token.

        Raises:
            UserError: the tokenizer has none.
        """
        if self.tokenizer.eos is None:
            raise UserError("scoring needs a tokenizer with an end-of-document token")
        return self.tokenizer.eos

    @cached_property
    def example_context(self) -> ExampleContext:
        """The settings that an example of the run depends on, the tokenizer's vocabulary among them."""
        return example_context(self.config, self.tokenizer)

    @property
    def soft_prompt_ids(self) -> Int[np.ndarray, "_"]:
        """Ids of the soft prompt that an adaptation has learnt: -1, -2, and so on. They come before every text."""
        return virtual_tokens(self.config.method.num_virtual_tokens)

    @cached_property
    def bos_ids(self) -> Int[np.ndarray, "_"]:
        """Ids that the tokenizer of a decoder or an encoder_decoder puts before every text, such as Llama's `<s>`.

        A tokenizer that was trained here puts none: EOS separates the documents of a decoder.
        """
        return np.array(text_start(self.example_context), np.int32)

    @property
    def prefix_token_id(self) -> int:
        """The token that a text is predicted from where nothing precedes it: the last of `bos_ids`, or else EOS."""
        if len(self.bos_ids):
            return int(self.bos_ids[-1])
        return self.eos

    @property
    def empty_context(self) -> Int[np.ndarray, "_"]:
        """Context of a text that is scored without a prompt: `[prefix_token_id]`; empty for pseudo-log-likelihood."""
        if self.config.scores_left_to_right:
            return np.array([self.prefix_token_id], np.int32)
        return np.zeros(0, np.int32)

    @property
    def eval_batch_size(self) -> int:
        """Rows of a batch in evaluation."""
        return self.config.eval.batch_size or self.config.train.batch_size

    @cached_property
    def window(self) -> int:
        """Tokens that the model reads at one time.

        This is the number of positions, where the model has a limit; else the context length of imported weights, or
        `train.seq_len`.
        """
        if self.config.model.max_length is not None:
            return self.config.model.max_length
        foreign = self.run.huggingface_config
        context_length = foreign.get("n_positions") or foreign.get("max_position_embeddings")
        return int(context_length or self.config.train.seq_len)

    def resolve_window(self, requested: int | None = None) -> int:
        """Return the tokens to read at one time: `requested`, or else `window`.

        Raises:
            UserError: more than the positions of the model.
        """
        length = requested or self.window
        max_length = self.config.model.max_length
        if max_length is not None and length > max_length:
            limit = self.config.model.positions.max_length_setting
            raise UserError(f"{length} tokens are more than the model's {max_length} positions ({limit})")
        return length

    def encode_text(self, text: str) -> Int[np.ndarray, "_"]:
        """Return the int32 ids of a text as the model reads it, after the soft prompt.

        In a decoder the text follows `bos_ids`; where both have no tokens, EOS stands for them. EOS ends the text if
        the model gives texts vectors, as it has learnt them. In an encoder_decoder the text is between `bos_ids` and
        the tokenizer's `suffix_tokens`, in an encoder between [CLS] and [SEP].
        """
        if self.config.model.family == "encoder_decoder":
            return self.generator.encode_prompt(text)
        token_ids = self.tokenizer.encode(text)
        if self.config.model.adds_special_tokens:
            token_ids = task_template(self.example_context, "a text").tokens([token_ids])
        else:
            token_ids = np.concatenate([self.bos_ids, token_ids])
        if not len(token_ids):
            token_ids = np.array([self.eos], np.int32)
        return np.concatenate([self.soft_prompt_ids, token_ids])

    def logits(
        self, tokens: ArrayLike, decoder_tokens: ArrayLike | None = None, mask: ArrayLike | None = None
    ) -> Float[np.ndarray, "b l v"] | Float[np.ndarray, "b l"]:
        """Return float32 logits for int tokens `[batch, length]` (or one row).

        * A decoder scores the next token, `[batch, length, vocab]`.
        * An encoder scores the token at each position.
        * An encoder_decoder scores the token after each of `decoder_tokens`, which begin with 0.
        * ELECTRA's discriminator returns `[batch, length]`: above 0 where a token seems to be replaced.

        The tokens of a run with a soft prompt begin with `soft_prompt_ids`. Without a `mask`, all tokens are text. With
        one, `[batch, length]` like `tokens`, those where it is 0 are padding, which no text attends to.

        Raises:
            UserError: more tokens than the model has positions; `decoder_tokens` missing or not wanted; a mask of
                another shape; a model that was trained to pool texts, or for a task, and predicts no tokens.
        """
        if not self.config.model.outputs:
            raise UserError("this model predicts no tokens (model.outputs: []); `embed` and `eval` are for it")
        if "neighbours" in self.config.model.outputs:
            raise UserError("this model predicts tokens around each (model.outputs: [neighbours]); `embed` is for it")
        family = self.config.model.family
        if (family == "encoder_decoder") != (decoder_tokens is not None):
            raise UserError(
                f"logits of a model of family {family}: an encoder_decoder, and it alone, takes inputs and decoder "
                "inputs"
            )
        tokens = np.atleast_2d(np.asarray(tokens, np.int32))
        if not tokens.size:
            raise UserError("logits: there are no tokens")
        self.resolve_window(tokens.shape[1])
        if decoder_tokens is not None:
            decoder_tokens = np.atleast_2d(np.asarray(decoder_tokens, np.int32))
            self.resolve_window(decoder_tokens.shape[1])
        segment_ids = np.ones_like(tokens)
        if mask is not None:
            segment_ids = np.atleast_2d(np.asarray(mask, np.int32))
        if segment_ids.shape != tokens.shape:
            raise UserError(f"logits: the mask has the shape {segment_ids.shape}, and the tokens {tokens.shape}")
        return np.asarray(self._logits(self.params, tokens, segment_ids, decoder_tokens))

    @property
    def generator(self) -> Generator:
        """The compiled generation of the model.

        Raises:
            UserError: a model that does not generate.
        """
        self._generator.params = self.params
        return self._generator

    @cached_property
    def _generator(self) -> Generator:
        prompt_prefix = self.soft_prompt_ids
        if self.run.stored_tokenizer is not None:
            prompt_prefix = input_start(self.example_context)
        tokenizer = self.run.stored_tokenizer
        return Generator(self.config.model, self.spec, self.params, tokenizer, prompt_prefix, end_tokens(self.run))

    def apply_to_rows(
        self, function: Callable[..., PyTree[Array]], rows: Sequence[Features], verb: str, *settings: Hashable
    ) -> list[PyTree[np.ndarray]]:
        """Return the result of a function for each row; see `LoadedModel.apply_to_rows`."""
        return self._batched_function(function, *settings)(self.params, rows, verb)

    @cached_property
    def likelihood(self) -> TargetScorer:
        """Scores target tokens given input tokens; see `evaluate.likelihood` and `evaluate.pseudo_likelihood`.

        Raises:
            UserError: the tokenizer has no token for what is hidden, or the model predicts no tokens.
        """
        if self.config.scores_left_to_right:
            return Likelihood(self.config.model, self.apply_to_rows, self.soft_prompt_ids)
        word_starts = None
        if self.config.eval.likelihood == "pseudo_word":
            word_starts = WordStarts(self.tokenizer)
        masker = build_token_masker(self.config, self.example_context)
        return PseudoLikelihood(masker, self.apply_to_rows, word_starts=word_starts)

    @cached_property
    def data(self) -> TrainingData:
        """The data of the run; its validation split is evaluated."""
        return open_run_data(self.config, self.tokenizer)

    def loss_terms(self, batch: Batch) -> LossTerms:
        """Return the terms of the loss of a batch, as in evaluation."""
        return self._compiled_loss(self.params, batch, None)

    @cached_property
    def _compiled_loss(self) -> LossFunction:
        return jax.jit(loss_function(self.config, self.spec, meshes.batch_shards(self.mesh), training=False))

    @cached_property
    def task_evaluation(self) -> TaskEvaluation:
        """Evaluates the tasks of the run; see `evaluate.tasks`.

        Raises:
            UserError: the run has none.
        """
        return TaskEvaluation(self)

    @cached_property
    def rewards(self) -> RewardSource:
        """Rewards answers, as in the training of a run whose objective samples them.

        Raises:
            UserError: a reward run that this run cannot use.
        """
        return open_rewards(self.config, self.tokenizer, self.mesh)

    def generate(self, prompts: str | Sequence[str], **settings: Any) -> list[str]:
        """Return the continuation of each prompt (a decoder), or the answer to it (an encoder_decoder).

        `settings` are those of `decode.sampling.Sampling`, or of `decode.beam.Beam` for beam search.
        """
        return self.generator.generate(_as_list(prompts), self._decoding(settings))

    def chat(self, conversations: Sequence[Chat], **settings: Any) -> list[str]:
        """Return the assistant's next turn in each conversation.

        A conversation is a list of messages with `role` and `content`, which the tokenizer's chat template writes as
        text. `settings` are those of `generate`.
        """
        try:
            chats = [check_chat(messages) for messages in conversations]
        except ValueError as error:
            raise UserError(f"chat: {error}") from None
        return self.generator.generate(chat_prompts(self, chats), self._decoding(settings))

    def _decoding(self, settings: Mapping[str, Any]) -> Sampling | Beam:
        return decoding_settings(**{"tokens": default_tokens(self.config.model.max_length), **settings})

    def fill(self, text: str, count: int = 5) -> list[Candidates]:
        """Return the most likely tokens with their probabilities for each [MASK] of a text, predicted by an encoder."""
        return fill_masks(self, text, count)

    def score(self, texts: str | Sequence[str], inputs: str | Sequence[str] | None = None) -> list[float]:
        """Return the log-probability of each text in nats; see `evaluate.score.score`."""
        return scoring.score(self, _as_list(texts), None if inputs is None else _as_list(inputs))

    def embed(
        self, texts: str | Sequence[str], pool: str | None = None, layer: int | Sequence[int] | None = None
    ) -> Embeddings:
        """Return float32 `[texts, embed]`; with pool `none` a list of `[tokens, embed]`. See `evaluate.embed.embed`."""
        return embedding.embed(self, _as_list(texts), pool, layer)

    def evaluate(self, *evaluators: Evaluator) -> dict[str, float]:
        """Return metrics of the model.

        Args:
            *evaluators: see `evaluate.evaluators`. Without any they are those of the run: the loss on the validation
                split, the tasks that the run was trained on, and `eval.evaluators` of its config.

        Returns:
            Metrics by their names in `metrics.jsonl`, without `eval/`: `loss`, `perplexity` and `bits_per_byte` of the
            validation split, `<task>/<metric>` of a task.
        """
        metrics: dict[str, float] = {}
        for evaluator in evaluators or self.config.evaluators:
            for name, value in evaluator.run(self).metrics.items():
                metrics[name.removeprefix("eval/")] = value
        return metrics

    def before_adaptation(self) -> "Model":
        """Return the model that an adapted run began with: the adapted weights, and fresh ones for what is new.

        Raises:
            UserError: the adapted run is missing or has changed.
        """
        base = BaseCheckpoint.from_metadata(self.run.checkpoints.meta(self.step))
        params, _ = initial_weights(self.config, self.spec, self.mesh, base)
        return Model(self.run, 0, params, self.mesh)

    def _compute_logits(
        self,
        params: PyTree[Array],
        tokens: Int[Array, "b l"],
        segment_ids: Int[Array, "b l"],
        decoder_tokens: Int[Array, "b t"] | None = None,
    ) -> Float[Array, "b _ v"] | Float[Array, "b l"]:
        module = self.spec.model(params)
        if decoder_tokens is not None:
            states = module(tokens, decoder_tokens, segment_ids=segment_ids)
            return module.logits(states)
        module = module.text_model
        states = module(tokens, segment_ids=segment_ids)
        if "tokens" in self.config.model.outputs:
            return module.logits(states)
        return module.detection(states)


def load(
    run: str | Path,
    *,
    step: int | None = None,
    overrides: Sequence[str] = (),
    quantization: Literal["int8"] | None = None,
) -> Model:
    """Load the model of a run directory, at its newest complete checkpoint or at that of `step`.

    Args:
        run: a run directory, or `RUN/checkpoints/STEP`, which names a step too.
        step: a step of a checkpoint.
        overrides: `key=value` settings that replace those of the run's config.
        quantization: type that the matrices of attention and feed-forward layers are stored in, for generation.

    Raises:
        UserError: not a run directory, no checkpoint, or a damaged one; two steps; weights that cannot be quantized.
    """
    if quantization not in {None, "int8"}:
        raise UserError(f"quantization {quantization!r}: is none of int8 and None")
    run_dir, step = split_step(str(run), step)
    opened = open_run(run_dir, list(overrides))
    mesh = meshes.make_mesh(opened.config.mesh)
    loaded_step, params, _ = load_weights(opened, mesh, step)
    if quantization is not None:
        params = quantize_weights(opened.config.model, opened.spec.axes, params)
    return Model(opened, loaded_step, params, mesh)


def _as_list(texts: str | Sequence[str]) -> Sequence[str]:
    """Return texts; of a single text, a list of it."""
    return [texts] if isinstance(texts, str) else texts
