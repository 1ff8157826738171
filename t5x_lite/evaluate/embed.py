"""Texts as vectors: a model's states, of every token or pooled."""

import logging
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array

from t5x_lite.errors import UserError
from t5x_lite.evaluate.batches import BatchedFunction
from t5x_lite.models import outputs

POOLS = {"mean": outputs.POOLS["mean"], "cls": outputs.POOLS["first"], "max": outputs.POOLS["max"], "none": None}
"""`none` keeps every token's states."""


def embed(model: Any, texts: Sequence[str], pool: str = "mean", layer: int | None = None) -> Any:
    """float32 `[texts, embed]`; with pool `none` a list of `[tokens, embed]`; special tokens are tokens too.

    Of an encoder_decoder the encoder's states. `layer` counts from 1, or from the last as -1; the last has the final
    norm of the stack, where there is one. A text longer than the model's window loses its end.

    Raises:
        UserError: a pool or a layer that is not there.
    """
    config = model.config.model
    last = config.model_of_discriminator.layers if config.family == "electra" else config.layers
    wanted = last if layer is None else layer + (layer < 0) * (last + 1)
    if pool not in POOLS:
        raise UserError(f"pool {pool!r} is not one of {', '.join(POOLS)}")
    if pool == "cls" and config.family == "decoder":
        raise UserError("pool cls: the first token of a decoder sees no other; take mean or max")
    if not 1 <= wanted <= last or wanted % len(config.pattern):
        raise UserError(f"layer {layer}: the model has {last} layers, in repeats of {len(config.pattern)}")
    rows, cut = [], 0
    for text in texts:
        ids = model.encoded(text)
        if len(ids) > model.window:
            end = ids[len(ids) - (config.family != "decoder") :]  # [SEP] or EOS stays
            cut, ids = cut + 1, np.append(ids[: model.window - len(end)], end)
        rows.append({"tokens": ids, "segment_ids": np.ones_like(ids)})
    if cut:
        logging.warning("%d of %d texts lost their end: the model reads %d tokens", cut, len(texts), model.window)
    function = partial(_states, model.run.blueprint, config.family, None if wanted == last else wanted, POOLS[pool])
    found = BatchedFunction(function, model.params, model.mesh, model.rows)(rows, "embedding")
    return np.stack(found) if POOLS[pool] else [x[: len(row["tokens"])] for x, row in zip(found, rows, strict=True)]


def _states(blueprint: Any, family: str, layer: int | None, pool: Any, params: Any, batch: dict[str, Array]) -> Array:
    model = blueprint.model(params)
    model = getattr(model, "discriminator", model)
    side = model.decoder if family == "decoder" else model.encoder
    if layer is not None:
        _shorten(side.stack, layer)
    states = side(model.tokens(batch["tokens"]), None, batch["segment_ids"])[0].astype(jnp.float32)
    return pool(states, (batch["segment_ids"] > 0) & (batch["tokens"] >= 0)) if pool else states


def _shorten(stack: Any, layers: int) -> None:
    """Keep the first layers of a stack, without what follows them."""
    stack.repeats, stack.final_norm = layers // len(stack.config.pattern), None
    if not stack.config.shared_layers:
        graph, weights = nnx.split(stack.layers)
        stack.layers = nnx.merge(graph, jax.tree.map(lambda w: w[: stack.repeats], weights))


def embed_file(model: Any, file: Path, to: Path, pool: str, layer: int | None) -> tuple[int, ...]:
    """Embed each line of a file into a new .npy `[texts, embed]`; the shape is returned.

    With pool `none` an .npz of `states` `[tokens, embed]` and `borders` `[texts + 1]`: those of text n are
    `states[borders[n] : borders[n + 1]]`.

    Raises:
        UserError: a file that cannot be read or written, or has no line.
    """
    suffix = ".npz" if pool == "none" else ".npy"
    if to.suffix != suffix:
        raise UserError(f"--to {to}: pool {pool} makes an {suffix} file")
    try:
        texts = file.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError as error:
        raise UserError(f"{file}: cannot be read: {error.strerror}") from None
    if not texts:
        raise UserError(f"{file}: holds no text; each line is one")
    found = embed(model, texts, pool, layer)
    states = np.concatenate(found) if pool == "none" else found
    try:
        if pool == "none":
            np.savez(to, states=states, borders=np.cumsum([0, *map(len, found)]))
        else:
            np.save(to, states)
    except OSError as error:
        raise UserError(f"{to}: cannot be written: {error.strerror}") from None
    return states.shape
