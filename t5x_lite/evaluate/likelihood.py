"""Log-likelihood of tokens that follow others: the base of few-shot tasks, perplexity and `score`."""

from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, PyTree

from t5x_lite.decode.generate import truncate_prompt
from t5x_lite.errors import UserError
from t5x_lite.integers import ceil_div
from t5x_lite.models.config import ModelConfig
from t5x_lite.models.gather_positions import gather_positions
from t5x_lite.models.losses import LossSettings, map_over_chunks
from t5x_lite.models.sharding import num_shards
from t5x_lite.models.spec import ModelSpec
from t5x_lite.objectives.features import Pair
from t5x_lite.parallel.batched_function import Features


class TargetScore(NamedTuple):
    """The score of the targets of one pair.

    Attributes:
        log_likelihood: log-probability of all targets together, in nats.
        is_greedy: every target is the most likely token at its position.
    """

    log_likelihood: float
    is_greedy: bool


class TargetScorer(Protocol):
    """Scores targets given inputs.

    Attributes:
        truncated_inputs: the number of inputs so far that were too long and lost their first tokens.
    """

    truncated_inputs: int

    def tokens_read(self, pair: Pair) -> int:
        """Return the tokens that the model reads to score a pair, on the longer side of an encoder_decoder."""

    def __call__(self, pairs: Sequence[Pair], window: int) -> list[TargetScore]:
        """Score each pair; the model receives at most `window` tokens."""


class Likelihood:
    """Computes the log-likelihood of targets given inputs.

    In a decoder the targets follow the soft prompt and the inputs; a prefix language model attends to the inputs both
    ways. In an encoder_decoder the inputs are the encoder's.

    Args:
        config: the model's config.
        apply_to_rows: applies a function to rows with the model's weights; see `LoadedModel.apply_to_rows`.
        soft_prompt: ids of virtual tokens before the inputs of a decoder; the inputs of an encoder_decoder begin with
            them already.

    Attributes:
        truncated_inputs: the number of inputs so far that were too long and lost their first tokens.
    """

    def __init__(
        self,
        config: ModelConfig,
        apply_to_rows: Callable[..., list[PyTree[np.ndarray]]],
        soft_prompt: Int[np.ndarray, "_"],
    ) -> None:
        self.family = config.family
        self.soft_prompt = soft_prompt
        self.start_token = config.start_token
        self.vocab = config.vocab or 1
        self.truncated_inputs = 0
        self._apply_to_rows = apply_to_rows

    def tokens_read(self, pair: Pair) -> int:
        """Return the tokens that the model reads to score a pair, on the longer side of an encoder_decoder."""
        inputs, targets = pair
        if self.family == "encoder_decoder":
            return max(len(inputs), len(targets))
        return len(self.soft_prompt) + len(inputs) + len(targets) - 1

    def __call__(self, pairs: Sequence[Pair], window: int) -> list[TargetScore]:
        """Score each pair.

        Args:
            pairs: inputs, at least one token for a decoder, and targets.
            window: tokens that the model reads, on each side of an encoder_decoder. Inputs that are too long lose their
                first tokens after the soft ones.

        Raises:
            UserError: more targets than the window, or no room beside virtual tokens.
        """
        features = [self._build_features(inputs, np.asarray(targets, np.int32), window) for inputs, targets in pairs]
        rows = self._apply_to_rows(_score_targets, features, "scoring", self.vocab)
        scores = []
        for (log_probs, is_argmax), (_, targets) in zip(rows, pairs, strict=True):
            # What follows the targets is padding.
            log_likelihood = float(log_probs[: len(targets)].sum(dtype=np.float64))
            is_greedy = bool(is_argmax[: len(targets)].all())
            scores.append(TargetScore(log_likelihood, is_greedy))
        return scores

    def _build_features(self, inputs: Int[np.ndarray, "_"], targets: Int[np.ndarray, "_"], window: int) -> Features:
        if len(targets) > window:
            raise UserError(f"{len(targets)} tokens to score are more than the window of {window}")
        if self.family == "encoder_decoder":
            inputs = self._truncate(inputs, window)
            shifted_targets = np.concatenate([[self.start_token], targets])[: len(targets)].astype(np.int32)
            return {
                "tokens": inputs,
                "segment_ids": np.ones_like(inputs),
                "decoder_tokens": shifted_targets,
                "targets": targets,
            }
        # The last target is predicted and not read.
        inputs = self._truncate(np.concatenate([self.soft_prompt, inputs]), window + 1 - len(targets))
        length = max(len(inputs) + len(targets) - 1, 1)
        tokens = np.concatenate([inputs, targets])[:length]
        is_prefix = np.arange(len(tokens)) < len(inputs)
        return {
            "tokens": tokens,
            "segment_ids": np.ones_like(tokens),
            "prefix": is_prefix.astype(np.int32),
            "predicting_positions": len(inputs) - 1 + np.arange(len(targets), dtype=np.int32),
            "targets": targets,
        }

    def _truncate(self, inputs: Int[np.ndarray, "_"], limit: int) -> Int[np.ndarray, "_"]:
        """Keep the virtual tokens and the last of the others, `limit` in all."""
        if len(inputs) > limit:
            self.truncated_inputs += 1
        return truncate_prompt(np.asarray(inputs, np.int32), inputs[inputs < 0], limit)


def _score_targets(
    spec: ModelSpec, vocab: int, params: PyTree[Array], batch: dict[str, Array]
) -> tuple[Float[Array, "b t"], Bool[Array, "b t"]]:
    """Return the log-probability of every target, and whether it is the most likely token."""
    module = spec.model(params)
    targets = batch["targets"]
    if "decoder_tokens" in batch:
        states = module(batch["tokens"], batch["decoder_tokens"], segment_ids=batch["segment_ids"])
    else:
        states = module(batch["tokens"], segment_ids=batch["segment_ids"], prefix=batch["prefix"])
        states = gather_positions(states, batch["predicting_positions"])

    def score_chunk(
        states: Float[Array, "b l d"], targets: Int[Array, "b l"]
    ) -> tuple[Float[Array, "b l"], Bool[Array, "b l"]]:
        logits = module.logits(states)
        target_logits = jnp.take_along_axis(logits, targets[..., None], axis=-1)[..., 0]
        log_probs = target_logits - jax.nn.logsumexp(logits, axis=-1)
        return log_probs, logits.argmax(-1) == targets

    # All logits together can be larger than the model.
    settings = LossSettings(vocab, rows=ceil_div(len(targets), num_shards("batch")))
    return map_over_chunks(score_chunk, (states, targets), settings)
