"""Loss of a model on a text: nats per predicted token, perplexity, bits per byte."""

import math
from collections.abc import Callable, Iterable
from typing import Any

import jax

from t5x_lite.train.step import Sums, means


def evaluate(
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
    found["perplexity"] = math.exp(min(found["loss"], 700.0))
    if tokens_per_byte is not None:
        found["bits_per_byte"] = found["loss"] / math.log(2) * tokens_per_byte
    return {**found, "tokens": float(sums["loss"].weight)}
