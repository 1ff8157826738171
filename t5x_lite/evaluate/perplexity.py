"""Loss of a model on a text: nats per token, perplexity, bits per byte."""

import math
from collections.abc import Callable, Iterable
from functools import reduce
from operator import add
from typing import Any

from t5x_lite.models.losses import TokenLoss


def evaluate(
    eval_step: Callable[[Any, Any], TokenLoss], params: Any, batches: Iterable[Any], tokens_per_byte: float
) -> dict[str, float]:
    """Sums over all batches, then means.

    Returns:
        `loss` (nats per token), `perplexity` (its exponential), `bits_per_byte` (loss / ln 2 · tokens per UTF-8 byte:
        comparable between tokenizers), `accuracy` (share of tokens whose best guess is right), `tokens` (predicted).
    """
    sums = [eval_step(params, batch) for batch in batches]
    total = reduce(add, sums)
    weight = max(float(total.weight), 1.0)
    loss = float(total.loss) / weight
    return {
        "loss": loss,
        "perplexity": math.exp(min(loss, 700.0)),
        "bits_per_byte": loss / math.log(2) * tokens_per_byte,
        "accuracy": float(total.correct) / weight,
        "tokens": float(total.weight),
    }
