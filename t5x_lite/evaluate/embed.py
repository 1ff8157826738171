"""Embeddings of texts: a model's hidden states, of every token or pooled."""

import logging
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Bool, Float, Int, Int32, PyTree

from t5x_lite.errors import UserError
from t5x_lite.evaluate.evaluation_model import EvaluationModel
from t5x_lite.evaluate.layer_states import compute_layer_states
from t5x_lite.evaluate.text_file import read_texts
from t5x_lite.evaluate.token_offsets import token_offsets
from t5x_lite.files import check_not_input
from t5x_lite.models import outputs
from t5x_lite.models.config import ModelConfig
from t5x_lite.models.spec import ModelSpec
from t5x_lite.models.stack import Stack
from t5x_lite.objectives.special_tokens import LAST_TYPE, task_template, text_end
from t5x_lite.parallel.batched_function import Features

Pool: TypeAlias = Callable[[Float[Array, "b l d"], Bool[Array, "b l"]], Float[Array, "b d"]]
Embeddings: TypeAlias = Float[np.ndarray, "texts d"] | list[Float[np.ndarray, "_ d"]]
"""One vector for each text, or one for each token of each text."""

POOLS: dict[str, Pool | None] = {
    "mean": outputs.POOLS["mean"],
    "cls": outputs.POOLS["first"],
    "max": outputs.POOLS["max"],
    "none": None,
}
"""Ways to pool the states of a text; `none` returns the states of every token."""
HEAD = "head"
"""The way in which a model pools that was trained to give the vector of a text."""


def embed(
    model: EvaluationModel, texts: Sequence[str], pool: str | None = None, layer: int | Sequence[int] | None = None
) -> Embeddings:
    """Embed texts. Special tokens count as tokens. A text that is longer than the model's window loses its end.

    Args:
        model: a model; of an encoder_decoder the encoder is used.
        texts: texts to embed.
        pool: one of `POOLS`. None takes what the model was trained for: if its output is the vector of a text
            (`model.head` with `outputs: 0`), as that is pooled, cut and normalised; else the mean.
        layer: the layer whose states are returned, counted from 1, or from the last as -1. None is the last. Of several
            the mean is returned. Only the last layer's states pass the final norm of the stack, where it has one.

    Returns:
        float32 `[texts, embed]`; with pool `none` a list of `[tokens, embed]`.

    Raises:
        UserError: a pool or a layer that does not exist.
    """
    if not texts:
        raise UserError("embed: there are no texts")
    rows, states = _embed_rows(model, texts, pool, layer)
    if pool != "none":
        return np.stack(states)
    return [state[: len(row["tokens"])] for state, row in zip(states, rows, strict=True)]


@dataclass(frozen=True)
class TokenStates:
    """The tokens of a text.

    Attributes:
        states: their states.
        tokens: their ids, with the special ones around the text.
        offsets: start and stop in characters of the text; see `token_offsets`.
    """

    states: Float[np.ndarray, "tokens d"]
    tokens: Int[np.ndarray, "tokens"]
    offsets: Int32[np.ndarray, "tokens 2"]


def embed_tokens(
    model: EvaluationModel, texts: Sequence[str], layer: int | Sequence[int] | None = None
) -> list[TokenStates]:
    """Embed each token of texts; see `embed`."""
    rows, states = _embed_rows(model, texts, "none", layer)
    results = []
    for text, row, state in zip(texts, rows, states, strict=True):
        tokens = row["tokens"]
        offsets = token_offsets(model.tokenizer, text, tokens)
        results.append(TokenStates(state[: len(tokens)], tokens, offsets))
    return results


def check_first_token(model: ModelConfig) -> None:
    """Refuse a model whose first token does not stand for a text.

    Raises:
        UserError: with the pools that it has.
    """
    if model.family == "decoder":
        raise UserError("pool cls: the first token of a decoder sees no other; take mean or max")
    if model.query_stream:
        raise UserError("pool cls takes the first token, and XLNet's [CLS] is the last one; take mean or max")


def _embed_rows(
    model: EvaluationModel, texts: Sequence[str], pool: str | None, layer: int | Sequence[int] | None
) -> tuple[list[Features], list[np.ndarray]]:
    """Return the features of texts, and their states, padded at the end, or what they are pooled to."""
    if pool is not None and pool not in POOLS:
        raise UserError(f"pool {pool!r} is not one of {', '.join(POOLS)}")
    if pool == "cls":
        check_first_token(model.config.model)
    layers: int | tuple[int, ...] | None
    if isinstance(layer, Sequence) and not layer:
        raise UserError("embed: layer is an empty list; name a layer, or several")
    if isinstance(layer, Sequence) and len(layer) == 1:
        (layer,) = layer
    if isinstance(layer, Sequence):
        layers = tuple(_layer_number(model, number) for number in layer)
    else:
        layers = _layers_to_run(model, layer)
    head = model.config.model.head
    length = model.window
    if pool is None:
        pool = "mean"
        if head is not None and model.config.model.gives_vectors:
            pool = HEAD
            length = min(length, head.length or length)
    rows = encode_texts(model, texts, length)
    return rows, model.apply_to_rows(_compute_states, rows, "embedding", layers, pool)


def embed_file(
    model: EvaluationModel,
    file: Path,
    to: Path,
    pool: str | None,
    layer: int | Sequence[int] | None,
    column: str | None = None,
) -> tuple[int, ...]:
    """Embed each text of a file, write the embeddings, and return their shape; see `text_file.read_texts`.

    The result is an .npy of `[texts, embed]`. With pool `none` it is an .npz of `states` `[tokens, embed]`, the
    `tokens` that they are of, their `offsets` `[tokens, 2]` in characters of their text (see `token_offsets`), and
    `borders` `[texts + 1]`: the states of text n are `states[borders[n] : borders[n + 1]]`.

    Raises:
        UserError: a file that cannot be read or written, or that has no text.
    """
    suffix = ".npz" if pool == "none" else ".npy"
    if to.suffix != suffix:
        result = "states of tokens (pool none)" if pool == "none" else "a vector for each text"
        raise UserError(f"--to {to}: {result} need a file that ends in {suffix}")
    check_not_input(to, file)
    if not to.absolute().parent.is_dir():
        raise UserError(f"--to {to}: there is no such folder; create it first")
    texts = read_texts(file, column)
    if pool != "none":
        vectors = np.asarray(embed(model, texts, pool, layer))
        _write(to, partial(np.save, to, vectors))
        return vectors.shape
    embedded = embed_tokens(model, texts, layer)
    states = np.concatenate([text.states for text in embedded])
    write = partial(
        np.savez,
        to,
        states=states,
        tokens=np.concatenate([text.tokens for text in embedded]),
        offsets=np.concatenate([text.offsets for text in embedded]),
        borders=np.cumsum([0, *(len(text.tokens) for text in embedded)]),
    )
    _write(to, write)
    return states.shape


def _write(to: Path, write: Callable[[], None]) -> None:
    try:
        write()
    except OSError as error:
        raise UserError(f"{to}: cannot be written: {error.strerror}") from None


def _layer_number(model: EvaluationModel, layer: int) -> int:
    """Return the number of a layer, counted from 1.

    Raises:
        UserError: the model has no such layer.
    """
    last = model.config.model.layers
    number = layer
    if layer < 0:
        number = last + 1 + layer
    if not 1 <= number <= last:
        raise UserError(f"layer {layer}: the model has {last} layers; give 1 to {last}, or -{last} to -1")
    return number


def _layers_to_run(model: EvaluationModel, layer: int | None) -> int | None:
    """Return the number of layers up to `layer`, or None for all of them.

    Raises:
        UserError: the model has no such layer, or the layer is inside a repeat of the layer pattern.
    """
    if layer is None:
        return None
    last = model.config.model.layers
    number = _layer_number(model, layer)
    period = len(model.config.model.period)
    first = len(model.config.model.first)
    if number <= first or (number - first) % period:
        start = f", after {first} first ones" if first else ""
        raise UserError(f"layer {layer}: the model has {last} layers, in repeats of {period}{start}")
    return None if number == last else number


def encode_texts(model: EvaluationModel, texts: Sequence[str], length: int) -> list[Features]:
    """Return the features of each text, cut to `length` tokens; the number of cut texts is logged."""
    rows: list[Features] = []
    truncated = 0
    end = _end_size(model)
    for text in texts:
        token_ids = model.encode_text(text)
        if len(token_ids) > length:
            truncated += 1
            token_ids = np.concatenate([token_ids[: length - end], token_ids[len(token_ids) - end :]])
        row = {"tokens": token_ids, "segment_ids": np.ones_like(token_ids)}
        if end > 1:
            row["token_types"] = np.zeros_like(token_ids)
            row["token_types"][1 - end :] = LAST_TYPE
        rows.append(row)
    if truncated:
        logging.warning("%d of %d texts lost their end: the model reads %d tokens", truncated, len(texts), length)
    return rows


def _end_size(model: EvaluationModel) -> int:
    """Return how many tokens end a text: EOS or none, [SEP], or XLNet's [SEP] and [CLS]."""
    if model.config.model.adds_special_tokens:
        return 1 + len(task_template(model.example_context, "a text").last)
    return len(text_end(model.example_context))


def _compute_states(
    spec: ModelSpec,
    layers: int | tuple[int, ...] | None,
    pool: str,
    params: PyTree[Array],
    batch: dict[str, Array],
) -> Float[Array, "b l d"] | Float[Array, "b d"]:
    """Return the states after `layers` layers (None: all of them), or the mean of the states after each of several.

    They are pooled unless `pool` is `none`, in float32.
    """
    text_model = spec.model(params).text_model
    if isinstance(layers, tuple):
        states = compute_layer_states(spec, params, batch)[np.array(layers)].mean(0)
    else:
        if layers is not None:
            _keep_first_layers(text_model.backbone.stack, layers)
        token_types = batch.get("token_types")
        states, _ = text_model.backbone(
            text_model.tokens(batch["tokens"]), None, batch["segment_ids"], token_types=token_types
        )
    states = states.astype(jnp.float32)
    if pool == HEAD:
        return text_model.head.pooled(states, batch["tokens"], batch["segment_ids"])
    pool_states = POOLS[pool]
    if pool_states is None:
        return states
    return pool_states(states, outputs.is_text(batch["tokens"], batch["segment_ids"]))


def _keep_first_layers(stack: Stack, layers: int) -> None:
    """Remove the layers after the first `layers` from a stack, and its final norm."""
    repeats = stack.config.count_repeats(layers)
    passes = math.gcd(stack.passes, repeats)
    weights_used = np.arange(0, repeats, passes) // stack.passes
    graph, weights = nnx.split(stack.layers)
    first_weights = jax.tree.map(lambda weight: weight[weights_used], weights)
    stack.layers = nnx.merge(graph, first_weights)
    stack.repeats = repeats
    stack.passes = passes
    stack.mix = None
    stack.final_norm = None
