"""Loss of a model on text: nats per predicted token, perplexity and bits per byte."""

import itertools
import math
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import jax
import numpy as np
from jaxtyping import Int

from t5x_lite.data import sources, unit_readers
from t5x_lite.data.config import SourceConfig
from t5x_lite.errors import UserError
from t5x_lite.evaluate.evaluation_model import EvaluationModel
from t5x_lite.models.loss_terms import Batch, LossTerms, add_loss_terms, loss_metrics
from t5x_lite.objectives.features import Pair

DEFAULT_WINDOW = 1024
"""Tokens of a window where none is given. Batches of longer ones take long, and most of a batch may be padding."""
LARGEST_EXPONENT = 700.0
"""Larger ones overflow a float64."""


def sum_loss_terms(compute_terms: Callable[[Batch], LossTerms], batches: Iterable[Batch]) -> LossTerms:
    """Return the sums of the terms of the loss over all batches.

    Args:
        compute_terms: returns the terms of the loss of a batch.
        batches: the validation batches.
    """
    terms: LossTerms = {}
    for batch in batches:
        terms = add_loss_terms(terms, compute_terms(batch))
    return terms


def loss_scores(terms: LossTerms, tokens_per_byte: float | None, *, predicts_tokens: bool) -> dict[str, float]:
    """Return the means of terms of the loss, and what follows from them.

    Args:
        terms: sums over all batches.
        tokens_per_byte: tokens of the validation split per UTF-8 byte of its text, if every token is predicted.
        predicts_tokens: the loss is that of tokens, and not of labels, scores or comparisons.

    Returns:
        `loss` (nats per target), `perplexity` (its exponential, if the targets are tokens), `bits_per_byte` (loss /
        ln 2 · `tokens_per_byte`; comparable between tokenizers), `accuracy` (fraction of targets that are the
        most likely), `tokens` (number of targets), and the means of the objective's other terms and of the routers.

    Raises:
        UserError: nothing is predicted.
    """
    if "loss" not in terms or not terms["loss"].weight:
        raise UserError(
            "no token of the validation text is predicted: its documents are too short; give longer ones "
            "(data.validation_files), or raise data.validation_fraction"
        )
    scores = {}
    for name, mean in jax.device_get(loss_metrics(terms)).items():
        is_scalar = not mean.shape
        if is_scalar and name != "z_loss":
            scores[name] = float(mean)
    if predicts_tokens:
        scores["perplexity"] = _exponential(scores["loss"])
    if tokens_per_byte is not None:
        scores["bits_per_byte"] = scores["loss"] / math.log(2) * tokens_per_byte
    scores["tokens"] = float(terms["loss"].weight)
    return scores


def scoring_windows(token_ids: Int[np.ndarray, "_"], first: int, window: int, stride: int) -> list[Pair]:
    """Cut a document into inputs and targets such that each token is a target once.

    The first pair starts with the token `first` and predicts all that fits into the window. Each later pair predicts
    the next `stride` tokens (the last pair perhaps fewer), and its inputs are as many of the preceding tokens as fit:
    at least `window - stride`, and the one before the first target. This is the strided evaluation of GPT-2 (Radford et
    al. 2019); with a stride of `window` it is that of lm-evaluation-harness.

    Args:
        token_ids: the document.
        first: the token that precedes the document.
        window: tokens that the model reads at one time.
        stride: targets of each pair but the first.
    """
    if not len(token_ids):
        return []
    tokens = np.concatenate([[first], token_ids]).astype(np.int32)
    ends = [0, *range(window, len(token_ids), stride), len(token_ids)]
    pairs = []
    for previous_end, end in itertools.pairwise(ends):
        inputs = tokens[max(end - window, 0) : previous_end + 1]
        targets = tokens[previous_end + 1 : end + 1]
        pairs.append((inputs, targets))
    return pairs


def score_texts(
    model: EvaluationModel, texts: Sequence[str], window: int | None = None, stride: int | None = None
) -> dict[str, float]:
    """Measure how well a decoder predicts documents, each by itself.

    The end of a document is not predicted.

    Args:
        model: a decoder.
        texts: documents; empty ones are left out.
        window: tokens that the model reads at one time, by default all that it can up to `DEFAULT_WINDOW`.
        stride: see `scoring_windows`; by default half the window.

    Returns:
        `loss` (nats per token) and `perplexity` (its exponential); `word_perplexity` (per word between spaces) and
        `bits_per_byte` of UTF-8, which do not depend on the tokenizer; and the numbers of `tokens`, `words`, `bytes`
        and `documents`.

    Raises:
        UserError: no text, not a decoder, or a window or stride that is out of range.
    """
    if model.config.model.family != "decoder":
        raise UserError(f"perplexity of a text is for decoders; this model is of family {model.config.model.family}")
    window = model.resolve_window(window or min(model.window, DEFAULT_WINDOW))
    if stride is None:
        stride = max(window // 2, 1)
    if not 1 <= stride <= window:
        raise UserError(f"stride {stride} must be from 1 to the window, {window}")
    room = window - len(model.soft_prompt_ids)
    if room < 1:
        raise UserError(f"window {window} leaves no room for a text beside {len(model.soft_prompt_ids)} virtual tokens")
    texts = [text for text in texts if text]
    pairs: list[Pair] = []
    tokens = 0
    words = 0
    size = 0
    for text, token_ids in zip(texts, model.tokenizer.encode_batch(texts), strict=True):
        pairs.extend(scoring_windows(token_ids, model.prefix_token_id, room, min(stride, room)))
        tokens += len(token_ids)
        words += len(text.split())
        size += len(text.encode("utf-8", "replace"))
    if not tokens:
        raise UserError("there is no text to score")
    nats = -sum(score.log_likelihood for score in model.likelihood(pairs, window))
    return {
        "loss": nats / tokens,
        "perplexity": _exponential(nats / tokens),
        "word_perplexity": _exponential(nats / max(words, 1)),
        "bits_per_byte": nats / math.log(2) / size,
        "tokens": tokens,
        "words": words,
        "bytes": size,
        "documents": len(texts),
    }


def score_file(
    model: EvaluationModel, file: Path, window: int | None = None, stride: int | None = None
) -> dict[str, float]:
    """Call `score_texts` on a text file, which is one document, or on each `text` of a JSONL or Parquet file."""
    texts: list[str] = []
    for unit in sources.units(SourceConfig(files=(str(file),)), whole_files=True):
        texts.extend(text for _, text in unit_readers.documents(unit))
    if not any(texts):
        raise UserError(f"{file}: holds no text to score")
    return score_texts(model, texts, window, stride)


def _exponential(nats: float) -> float:
    return math.exp(min(nats, LARGEST_EXPONENT))
