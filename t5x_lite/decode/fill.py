"""Fill in what is hidden in a text: an encoder's masks, a T5's sentinels; and show what any model makes of a prompt."""

import sys
from collections import deque
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from rich.console import Console
from rich.table import Table

from t5x_lite.decode.beam import Beam
from t5x_lite.decode.generate import stream_text
from t5x_lite.decode.sampling import Sampling
from t5x_lite.errors import UserError
from t5x_lite.objectives.framing import encoder_frame
from t5x_lite.objectives.masked import MASK

Candidates = list[tuple[str, float]]
"""Tokens with their probabilities, the likeliest first."""


def fill_masks(model: Any, text: str, count: int = 5) -> list[Candidates]:
    """The likeliest tokens for each [MASK] (or <mask>) of a text, by an encoder.

    Raises:
        UserError: no mask in the text, or a tokenizer without the special tokens.
    """
    vocabulary = model.tokenizer.vocabulary()
    mask = vocabulary.require_token("masks to fill", *MASK)
    ids = encoder_frame(vocabulary, "masks to fill").tokens([model.tokenizer.encode_named(text)])
    places = np.flatnonzero(ids == mask)
    if not len(places):
        names = [name for name in MASK if name in vocabulary.named]
        raise UserError(f"the prompt {text!r} holds no {' or '.join(names)} to fill")
    shares = np.asarray(jax.nn.softmax(model.logits(ids)[0, places]))
    best = np.argsort(-shares, axis=-1)[:, :count]
    return [
        [(model.tokenizer.piece(int(i)), float(share[i])) for i in row] for row, share in zip(best, shares, strict=True)
    ]


def fill_spans(model: Any, text: str, decoding: Sampling | Beam) -> list[str]:
    """What an encoder_decoder of span corruption puts in the place of <extra_id_0>, <extra_id_1>, …; in order."""
    sentinels = model.tokenizer.sentinels()
    prompt = model.generator.encoded(text)
    wanted = [i for i in sentinels if i in prompt]
    ids = deque(model.generator.tokens([prompt], decoding), maxlen=1)[0][0].tolist()
    ids = ids[: ids.index(model.tokenizer.eos)] if model.tokenizer.eos in ids else ids
    spans = []
    for i in wanted:
        rest = ids[ids.index(i) + 1 :] if i in ids else []
        stop = next((n for n, token in enumerate(rest) if token in sentinels), len(rest))
        spans.append(model.tokenizer.decode(rest[:stop]))
    return spans


def print_generation(model: Any, prompts: Sequence[str], sampling: Sampling | Beam) -> None:
    """Print what a model makes of prompts: continuations as they grow, spans (the likeliest), candidates for masks."""
    console = Console(highlight=False, markup=False, emoji=False, soft_wrap=True)
    family = model.config.model.family
    if family in {"encoder", "electra"}:
        for prompt in prompts:
            console.print(prompt)
            console.print(_candidates(fill_masks(model, prompt)))
    elif family == "encoder_decoder" and any(name in p for p in prompts for name in _sentinel_names(model)):
        likeliest = sampling if isinstance(sampling, Beam) else Sampling(sampling.tokens, temperature=0)
        for prompt in prompts:
            spans = fill_spans(model, prompt, likeliest)
            console.print(_filled(prompt, [name for name in _sentinel_names(model) if name in prompt], spans) + "\n")
    elif len(prompts) > 1:
        for prompt, text in zip(prompts, model.generator.generate(prompts, sampling), strict=True):
            print(f"{prompt}{text}\n")
    else:
        stream_text(prompts[0], model.generator.stream(prompts, sampling), sys.stdout.write)


def _candidates(masks: Sequence[Candidates]) -> Table:
    table = Table(box=None, padding=(0, 2), header_style="")
    for number in range(1, len(masks) + 1):
        table.add_column(f"mask {number}")
    for row in zip(*masks, strict=True):
        table.add_row(*(f"{share:6.1%} {token!r}" for token, share in row))
    return table


def _sentinel_names(model: Any) -> list[str]:
    """Names that stand for a sentinel in a prompt, in the order of use."""
    names = {i: name for name, i in model.tokenizer.special.items()}
    return [names[i] for i in model.tokenizer.sentinels() if i in names]


def _filled(prompt: str, names: Sequence[str], spans: Sequence[str]) -> str:
    """The prompt with each sentinel replaced by its span in brackets."""
    for name, span in zip(names, spans, strict=True):
        prompt = prompt.replace(name, f"[{span}]", 1)
    return prompt
