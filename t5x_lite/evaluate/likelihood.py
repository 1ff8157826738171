"""How likely a model finds tokens that follow others: what few-shot tasks, perplexity and `score` are made of."""

from collections.abc import Sequence
from functools import partial
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int

from t5x_lite.errors import UserError
from t5x_lite.evaluate.batches import BatchedFunction
from t5x_lite.models.config import START, ModelConfig
from t5x_lite.models.losses import chunks_for
from t5x_lite.models.sharding import shards
from t5x_lite.models.transformer import ModelSpec
from t5x_lite.objectives.features import Pair

Likely: TypeAlias = tuple[float, bool]
"""Log-probability (nats) of all targets of a pair together, and whether at none of them another token is likelier."""


class Likelihood:
    """Log-probabilities of targets given inputs, `rows` pairs a batch.

    In a decoder the inputs stand before the targets (a prefix language model sees them both ways); in an
    encoder_decoder they are the encoder's. `truncated` counts those that lost their beginning.
    """

    def __init__(self, config: ModelConfig, blueprint: ModelSpec, params: Any, mesh: Mesh, rows: int) -> None:
        if config.family not in {"decoder", "encoder_decoder"}:
            raise UserError(
                f"a model of family {config.family} gives texts no probability from left to right; `score` hides one "
                "token at a time"
            )
        self.family, self.truncated = config.family, 0
        self._batches = BatchedFunction(partial(_of_targets, blueprint, config.vocab or 1), params, mesh, rows)

    def __call__(self, pairs: Sequence[Pair], window: int) -> list[Likely]:
        """Of each pair, in order.

        Args:
            pairs: inputs, of which a decoder needs a token, and targets.
            window: tokens that the model reads, on each side of an encoder_decoder; longer inputs lose their beginning.

        Raises:
            UserError: more targets than the window.
        """
        rows = [self._features(inputs, np.asarray(targets, np.int32), window) for inputs, targets in pairs]
        return [
            (float(found[: len(targets)].sum(dtype=np.float64)), bool(best[: len(targets)].all()))
            for (found, best), (_, targets) in zip(self._batches(rows, "scoring"), pairs, strict=True)
        ]

    def _features(self, inputs: np.ndarray, targets: np.ndarray, window: int) -> dict[str, np.ndarray]:
        if len(targets) > window:
            raise UserError(f"{len(targets)} tokens to score are more than the window of {window}")
        room = window if self.family == "encoder_decoder" else window + 1 - len(targets)
        self.truncated += len(inputs) > room
        read = np.asarray(inputs, np.int32)[-room:]
        if self.family == "encoder_decoder":
            shifted = np.concatenate([[START], targets])[: len(targets)].astype(np.int32)
            return {"tokens": read, "segment_ids": np.ones_like(read), "decoder_tokens": shifted, "targets": targets}
        tokens = np.concatenate([read, targets])[: max(len(read) + len(targets) - 1, 1)]
        return {
            "tokens": tokens,
            "segment_ids": np.ones_like(tokens),
            "prefix": (np.arange(len(tokens)) < len(read)).astype(np.int32),
            "places": np.arange(len(read) - 1, len(read) - 1 + len(targets), dtype=np.int32),
            "targets": targets,
        }


def _of_targets(blueprint: ModelSpec, vocab: int, params: Any, batch: dict[str, Array]) -> tuple[Array, Array]:
    """Log-probability of every target, and whether it is the likeliest token, `[batch, targets]` each."""
    model = blueprint.model(params)
    tokens, segments, targets = batch["tokens"], batch["segment_ids"], batch["targets"]
    if "decoder_tokens" in batch:
        states = model(tokens, batch["decoder_tokens"], segment_ids=segments)
    else:
        states = model(tokens, segment_ids=segments, prefix=batch["prefix"])
        states = jnp.take_along_axis(states, batch["places"][..., None], axis=1)
    rows, length = targets.shape

    def one(part: tuple[Float[Array, "b l d"], Int[Array, "b l"]]) -> tuple[Array, Array]:
        scores = model.logits(part[0])
        chosen = jnp.take_along_axis(scores, part[1][..., None], axis=-1)[..., 0]
        return chosen - jax.nn.logsumexp(scores, axis=-1), scores.argmax(-1) == part[1]

    # All logits at one time can be larger than the model.
    chunks = chunks_for(length, 4 * -(-rows // shards("batch")) * length * vocab)
    parts = jax.tree.map(
        lambda x: jnp.moveaxis(x.reshape(rows, chunks, length // chunks, *x.shape[2:]), 1, 0), (states, targets)
    )
    return jax.tree.map(lambda x: jnp.moveaxis(x, 0, 1).reshape(rows, length), jax.lax.map(one, parts))
