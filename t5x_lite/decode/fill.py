"""Filling in of hidden tokens: an encoder's masks and a T5's sentinels; and printing of what a model generates."""

import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import TypeAlias

import jax
import numpy as np
from rich.console import Console
from rich.table import Table

from t5x_lite.decode.beam import Beam
from t5x_lite.decode.generate import TokenIds, write_stream
from t5x_lite.decode.generation_model import GenerationModel
from t5x_lite.decode.sampling import Sampling
from t5x_lite.errors import UserError
from t5x_lite.objectives.masked import MASK
from t5x_lite.objectives.special_tokens import encoder_template

Candidates: TypeAlias = list[tuple[str, float]]
"""Tokens with their probabilities, the most likely first."""


def fill_masks(model: GenerationModel, text: str, count: int = 5) -> list[Candidates]:
    """Return the `count` most likely tokens for each [MASK] (or <mask>) of a text, predicted by an encoder.

    Raises:
        UserError: the text has no mask, the tokenizer lacks a special token, or the model is no encoder, or XLNet.
    """
    if not model.config.model.is_encoder_only:
        raise UserError(f"masks to fill: only encoders fill masks; this model is of family {model.config.model.family}")
    if model.config.model.query_stream:
        raise UserError("masks to fill: this model has a query stream and learns no masks; score texts instead")
    vocabulary = model.tokenizer.vocabulary()
    mask = vocabulary.require_token("masks to fill", *MASK)
    token_ids = encoder_template(vocabulary, "masks to fill").tokens([model.tokenizer.encode_named(text)])
    positions = np.flatnonzero(token_ids == mask)
    if not len(positions):
        names = [name for name in MASK if name in vocabulary.named]
        raise UserError(f"the prompt {text!r} holds no {' or '.join(names)} to fill")
    probabilities = np.asarray(jax.nn.softmax(model.logits(token_ids)[0, positions]))
    ranked = np.argsort(-probabilities, axis=-1)[:, :count]
    filled = []
    for row, candidates in zip(probabilities, ranked, strict=True):
        filled.append([(model.tokenizer.piece(int(token)), float(row[token])) for token in candidates])
    return filled


def fill_spans(model: GenerationModel, text: str, decoding: Sampling | Beam) -> list[str]:
    """Return the text that a span-corruption model generates for each sentinel of a prompt, in their order.

    Sentinels are <extra_id_0>, <extra_id_1>, and so on.
    """
    sentinels = model.tokenizer.sentinels()
    prompt = model.generator.encode_prompt(text)
    answer = list(model.generator.stream_tokens([prompt], decoding))[-1][0].tolist()
    if model.tokenizer.eos in answer:
        answer = answer[: answer.index(model.tokenizer.eos)]
    spans = []
    for sentinel in sentinels:
        if sentinel in prompt:
            span = _span_after(sentinel, answer, sentinels)
            spans.append(model.tokenizer.decode(span))
    return spans


def print_generation(
    model: GenerationModel, prompts: Sequence[str], decoding: Sampling | Beam, *, samples_spans: bool = False
) -> None:
    """Print what a model generates for prompts.

    These are candidates for the masks of an encoder, spans for sentinels, or continuations. A single continuation is
    printed as it grows.

    Args:
        model: the model.
        prompts: the prompts.
        decoding: how they are continued.
        samples_spans: spans are sampled as continuations are, and are not the most likely.
    """
    if model.config.model.is_encoder_only:
        _print_masks(model, prompts)
        return
    is_filled = [_has_spans(prompt, model) for prompt in prompts]
    # An encoder_decoder answers its inputs, and does not continue them.
    shows_prompt = model.config.model.family == "decoder"
    if is_filled == [False]:
        write_stream(prompts[0] if shows_prompt else "", model.generator.stream(prompts, decoding), sys.stdout.write)
        return
    continued = [prompt for prompt, filled in zip(prompts, is_filled, strict=True) if not filled]
    texts = _generate_in_batches(model, continued, decoding)
    if isinstance(decoding, Sampling) and not samples_spans:
        decoding = replace(decoding, temperature=0.0)
    for prompt, filled in zip(prompts, is_filled, strict=True):
        if filled:
            _print_spans(model, prompt, decoding)
        else:
            print(f"{prompt if shows_prompt else ''}{next(texts)}\n")


def print_answers(model: GenerationModel, prompts: Sequence[TokenIds], decoding: Sampling | Beam) -> None:
    """Print the continuations of prompts without the prompts. A single one is printed as it grows."""
    if len(prompts) == 1:
        write_stream("", model.generator.stream(prompts, decoding), sys.stdout.write)
        return
    for text in _generate_in_batches(model, prompts, decoding):
        print(f"{text}\n")


def _generate_in_batches(
    model: GenerationModel, prompts: Sequence[str | TokenIds], decoding: Sampling | Beam
) -> Iterator[str]:
    """Yield the continuation of each prompt. Its random draws depend on its place among all prompts."""
    size = model.eval_batch_size
    for start in range(0, len(prompts), size):
        batch = prompts[start : start + size]
        streams = np.arange(start, start + len(batch))[:, None]
        yield from model.generator.generate(batch, decoding, streams)


def _span_after(sentinel: int, answer: Sequence[int], sentinels: Sequence[int]) -> list[int]:
    """Return the tokens between a sentinel and the next one."""
    if sentinel not in answer:
        return []
    span = []
    for token in answer[answer.index(sentinel) + 1 :]:
        if token in sentinels:
            break
        span.append(token)
    return span


def _print_masks(model: GenerationModel, prompts: Sequence[str]) -> None:
    console = _plain_console()
    for prompt in prompts:
        table = _candidates_table(fill_masks(model, prompt))
        console.print(prompt)
        console.print(table)


def _print_spans(model: GenerationModel, prompt: str, decoding: Sampling | Beam) -> None:
    """Print a prompt with its sentinels replaced by spans in brackets."""
    spans = fill_spans(model, prompt, decoding)
    filled = prompt
    for name, span in zip(_sentinels_in(prompt, model), spans, strict=True):
        filled = filled.replace(name, f"[{span}]")
    _plain_console().print(filled + "\n")


def _has_spans(prompt: str, model: GenerationModel) -> bool:
    """Return whether a prompt has sentinels for an encoder_decoder to fill."""
    return model.config.model.family == "encoder_decoder" and bool(_sentinels_in(prompt, model))


def _plain_console() -> Console:
    return Console(highlight=False, markup=False, emoji=False, soft_wrap=True)


def _candidates_table(masks: Sequence[Candidates]) -> Table:
    """Return a table with a column for each mask."""
    table = Table(box=None, padding=(0, 2), header_style="")
    for number in range(1, len(masks) + 1):
        table.add_column(f"mask {number}")
    for row in zip(*masks, strict=True):
        cells = [f"{probability:6.1%} {token!r}" for token, probability in row]
        table.add_row(*cells)
    return table


def _sentinels_in(text: str, model: GenerationModel) -> list[str]:
    """Return the names of the sentinels in a text, in their order of use."""
    names = {token: name for name, token in model.tokenizer.special.items()}
    names_in_text = []
    for sentinel in model.tokenizer.sentinels():
        name = names.get(sentinel)
        if name is not None and name in text:
            names_in_text.append(name)
    return names_in_text
