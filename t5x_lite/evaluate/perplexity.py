"""Loss of a model on text: nats per predicted token, perplexity, bits per byte."""

import itertools
import math
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from t5x_lite.data import sources
from t5x_lite.data.config import SourceConfig
from t5x_lite.errors import UserError
from t5x_lite.objectives.features import Pair
from t5x_lite.train.step import Sums, means


def evaluate_loss(
    eval_step: Callable[[Any, Any], Sums], params: Any, batches: Iterable[Any], tokens_per_byte: float | None
) -> dict[str, float]:
    """Sums over all batches, then means.

    Returns:
        `loss` (nats per predicted token), `perplexity` (its exponential), `bits_per_byte` (loss / ln 2 · tokens per
        UTF-8 byte: comparable between tokenizers; where every token is predicted), `accuracy` (share of tokens whose
        best guess is right), `tokens` (predicted), and what the objective's other terms and the routers say.
    """
    sums: dict[str, Any] = {}
    for part in (eval_step(params, batch) for batch in batches):
        sums = {name: sums[name] + term if sums else term for name, term in part.items()}
    every = {name: value for name, value in jax.device_get(means(sums)).items() if name != "z_loss"}
    found = {name: float(value) for name, value in every.items() if not value.shape}
    found["perplexity"] = _exponential(found["loss"])
    if tokens_per_byte is not None:
        found["bits_per_byte"] = found["loss"] / math.log(2) * tokens_per_byte
    return {**found, "tokens": float(sums["loss"].weight)}


def scoring_windows(ids: np.ndarray, first: int, window: int, stride: int) -> list[Pair]:
    """A document cut so that each token is scored once, in rows of at most `window` tokens that the model reads.

    The first row has the token `first` and predicts all that fit. Each later one predicts the next `stride` tokens, the
    last perhaps fewer, and is filled up with what stands before them: at least `window - stride` tokens and the one
    before the first target (the strided evaluation of GPT-2, Radford et al. 2019; of lm-evaluation-harness with a
    stride of `window`).
    """
    whole = np.concatenate([[first], ids]).astype(np.int32)
    ends = [0, *range(window, len(ids), stride), len(ids)] if len(ids) else []
    spans = itertools.pairwise(ends)
    return [(whole[max(stop - window, 0) : done + 1], whole[done + 1 : stop + 1]) for done, stop in spans]


def score_texts(
    model: Any, texts: Sequence[str], window: int | None = None, stride: int | None = None
) -> dict[str, float]:
    """How well a decoder predicts documents, each for itself, from a token that begins a document.

    Args:
        model: an `api.Model`.
        texts: documents; empty ones count for nothing.
        window: tokens that the model reads at one time, by default all that it can.
        stride: see `windows`; by default half the window.

    Returns:
        `loss` (nats per token), `perplexity` (its exponential), `word_perplexity` (per word between spaces) and
        `bits_per_byte` of UTF-8, which do not depend on the tokenizer, and the numbers of `tokens`, `words`, `bytes`
        and `documents`. Ends of documents are not predicted.

    Raises:
        UserError: no text, not a decoder, or a window and stride that are out of range.
    """
    if model.config.model.family != "decoder":
        raise UserError(f"perplexity of a text is for decoders; this model is of family {model.config.model.family}")
    window = model.context(window)
    stride = max(window // 2, 1) if stride is None else stride
    if not 1 <= stride <= window:
        raise UserError(f"stride {stride} must be from 1 to the window, {window}")
    texts = [text for text in texts if text]
    encoded = model.tokenizer.encode_batch(texts)
    pairs = [pair for ids in encoded for pair in scoring_windows(ids, model.first, window, stride)]
    tokens = sum(map(len, encoded))
    words, size = sum(len(text.split()) for text in texts), sum(len(text.encode("utf-8", "replace")) for text in texts)
    if not tokens:
        raise UserError("there is no text to score")
    nats = -sum(likely for likely, _ in model.likelihood(pairs, window))
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


def score_file(model: Any, file: Path, window: int | None = None, stride: int | None = None) -> dict[str, float]:
    """`score_texts` of a text file, which is one document, or of each `text` of a JSONL or Parquet file."""
    units = sources.units(SourceConfig(files=(str(file),)), whole_files=True)
    return score_texts(model, [text for unit in units for _, text in sources.documents(unit)], window, stride)


def _exponential(nats: float) -> float:
    return math.exp(min(nats, 700.0))
