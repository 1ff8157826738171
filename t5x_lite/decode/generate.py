"""Continue text: a cached decoding loop on the device, sampling, stop strings, streaming."""

import sys
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, PRNGKeyArray

from t5x_lite.data.tokenizer import Tokenizer
from t5x_lite.errors import UserError
from t5x_lite.models.config import Learned, ModelConfig
from t5x_lite.models.transformer import Blueprint, Cache

CHUNK = 16
"""Tokens made on the device between two looks of the host: for streaming, stop strings and an early end."""


@dataclass(frozen=True)
class Sampling:
    """How the next token is chosen, and when to end.

    `temperature` 0 is greedy; `top_k` keeps the k likeliest (0: all) (Fan et al. 2018); `top_p` the likeliest that hold
    this probability (Holtzman et al. 2020). Same `seed`, same text, for each prompt of a batch.
    """

    tokens: int = 128
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    stop: tuple[str, ...] = ()
    seed: int = 0

    def __post_init__(self) -> None:
        if self.tokens < 1:
            raise UserError(f"tokens must be at least 1, found {self.tokens}")
        if self.temperature < 0:
            raise UserError(f"temperature must not be negative, found {self.temperature}")
        if self.top_k < 0 or not 0 < self.top_p <= 1:
            raise UserError(f"top_k must be ≥ 0 and 0 < top_p ≤ 1, found {self.top_k} and {self.top_p}")


def choose(logits: Float[Array, "b v"], sampling: Sampling, keys: PRNGKeyArray) -> Int[Array, "b"]:
    """The next token of each row, each with its own key."""
    if sampling.temperature == 0:
        return logits.argmax(-1)
    logits = logits / sampling.temperature
    if sampling.top_k:
        smallest = jax.lax.top_k(logits, min(sampling.top_k, logits.shape[-1]))[0][:, -1:]
        logits = jnp.where(logits < smallest, -jnp.inf, logits)
    if sampling.top_p < 1:
        ordered = jnp.sort(logits, axis=-1, descending=True)
        mass_before = jnp.cumsum(jax.nn.softmax(ordered), axis=-1) - jax.nn.softmax(ordered)
        smallest = jnp.where(mass_before < sampling.top_p, ordered, jnp.inf).min(-1, keepdims=True)
        logits = jnp.where(logits < smallest, -jnp.inf, logits)
    return jax.vmap(jax.random.categorical)(keys, logits)


class Generator:
    """Compiled prefill and decode of one model: a decoder continues prompts, an encoder_decoder answers them."""

    def __init__(self, config: ModelConfig, blueprint: Blueprint, params: Any, tokenizer: Tokenizer | None) -> None:
        if config.family not in {"decoder", "encoder_decoder"}:
            raise UserError(f"a model of family {config.family} does not generate; it fills masks")
        self.config, self.params, self._tokenizer = config, params, tokenizer
        self._prefill = jax.jit(partial(_prefill, blueprint), static_argnums=0)
        self._decode = jax.jit(partial(_decode, blueprint), static_argnums=(0, 1), donate_argnums=4)

    @property
    def tokenizer(self) -> Tokenizer:
        """The tokenizer, which text needs and `tokens` does not."""
        if self._tokenizer is None:
            raise UserError("text needs the run's tokenizer, and it has none")
        return self._tokenizer

    def tokens(self, prompts: Sequence[np.ndarray], sampling: Sampling) -> Iterator[np.ndarray]:
        """int32 `[prompts, made so far]`, again and again, longer by a chunk each time, EOS and what follows included.

        Raises:
            UserError: learned positions do not suffice.
        """
        room = self._room(max(map(len, prompts)), sampling.tokens)
        tokens, segments = _left_padded([ids[-room:] for ids in prompts])
        logits, cache = self._prefill(sampling.tokens, self.params, tokens, segments)
        made = np.zeros((len(prompts), 0), np.int32)
        choice = replace(sampling, tokens=1, stop=(), seed=0)
        seeds = jax.vmap(partial(jax.random.fold_in, jax.random.key(sampling.seed)))(jnp.arange(len(prompts)))
        while made.shape[1] < sampling.tokens:
            count = min(CHUNK, sampling.tokens - made.shape[1])
            start = jnp.int32(made.shape[1])
            new, logits, cache = self._decode(choice, count, self.params, logits, cache, seeds, start)
            made = np.concatenate([made, np.asarray(new)], axis=1)
            yield made

    def stream(self, prompts: Sequence[str], sampling: Sampling) -> Iterator[list[str]]:
        """The whole text of each continuation so far, again and again, until all have ended."""
        for made in self.tokens([self.encoded(prompt) for prompt in prompts], sampling):
            ended = [self._text(row, sampling.stop) for row in made]
            yield [text for text, _ in ended]
            if all(done for _, done in ended):
                return

    def generate(self, prompts: Sequence[str], sampling: Sampling) -> list[str]:
        """The continuation of each prompt, without the prompt."""
        return deque(self.stream(prompts, sampling), maxlen=1)[0]

    def encoded(self, prompt: str) -> np.ndarray:
        """A prompt's ids: in an encoder's, names of special tokens stand for them, and EOS ends it."""
        eos = self.tokenizer.eos
        if self.config.family == "encoder_decoder":
            return np.append(self.tokenizer.encode_named(prompt), [] if eos is None else [eos]).astype(np.int32)
        ids = self.tokenizer.encode(prompt)
        if len(ids):
            return ids
        if eos is None:
            raise UserError("an empty prompt needs a tokenizer with an end-of-document token to begin from")
        return np.array([eos], np.int32)

    def _room(self, longest: int, tokens: int) -> int:
        """Prompt tokens that fit (beside the new ones, in a decoder) into a model of learned positions."""
        positions = self.config.positions
        if not isinstance(positions, Learned):
            return longest
        if tokens >= positions.length:
            raise UserError(
                f"tokens {tokens} leave no room for a prompt in the model's {positions.length} learned positions"
            )
        return positions.length - (tokens if self.config.family == "decoder" else 0)

    def _text(self, ids: np.ndarray, stops: Sequence[str]) -> tuple[str, bool]:
        """Text up to EOS or the first stop string, and whether one of them was there."""
        ends = np.flatnonzero(ids == self.tokenizer.eos) if self.tokenizer.eos is not None else np.array([], int)
        text = self.tokenizer.decode(ids[: ends[0]].tolist() if len(ends) else ids.tolist())
        cuts = [text.index(stop) for stop in stops if stop and stop in text]
        return (text[: min(cuts)], True) if cuts else (text, bool(len(ends)))


def _left_padded(rows: Sequence[np.ndarray]) -> tuple[Int[Array, "b l"], Int[Array, "b l"]]:
    """Rows that end together; the length is rounded up to a power of two, so that few programs are compiled."""
    longest = max(map(len, rows))
    length = 1 << (longest - 1).bit_length()
    tokens = np.zeros((2, len(rows), length), np.int32)
    for number, row in enumerate(rows):
        tokens[:, number, length - len(row) :] = row, np.ones(len(row))
    return jnp.asarray(tokens[0]), jnp.asarray(tokens[1])


def _prefill(blueprint: Blueprint, room: int, params: Any, tokens: Array, segments: Array) -> tuple[Array, Cache]:
    model = blueprint.model(params)
    hidden, cache = model.begin(tokens, segments, room)
    return model.logits(hidden)[:, 0], cache


def _decode(
    blueprint: Blueprint,
    sampling: Sampling,
    count: int,
    params: Any,
    logits: Array,
    cache: Cache,
    seeds: PRNGKeyArray,
    start: Array,
) -> tuple[Int[Array, "b count"], Array, Cache]:
    """`count` tokens after `logits`; token n of a row is drawn with the row's key and n alone."""
    model = blueprint.model(params)

    def one(carry: tuple[Array, Cache], n: Array) -> tuple[tuple[Array, Cache], Array]:
        logits, cache = carry
        token = choose(logits, sampling, jax.vmap(lambda key: jax.random.fold_in(key, n))(seeds))
        hidden, cache = model.extend(token[:, None], jnp.ones_like(token)[:, None], cache)
        return (model.logits(hidden)[:, 0], cache), token

    (logits, cache), tokens = jax.lax.scan(one, (logits, cache), start + jnp.arange(count))
    return tokens.T, logits, cache


def print_growing(prompt: str, texts: Iterator[list[str]], write: Callable[[str], Any]) -> None:
    """Write the prompt, then each new piece of the text; half a character waits for its other half."""
    write(prompt)
    shown = final = ""
    for (text,) in texts:
        final, whole = text, text.rstrip("\ufffd")
        if whole.startswith(shown):
            write(whole[len(shown) :])
            shown = whole
        sys.stdout.flush()
    write(final[len(shown) :] + "\n")
