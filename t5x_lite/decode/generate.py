"""Continue text: a cached decoding loop on the device, stop strings, streaming; on the mesh that the weights lie on."""

import logging
import sys
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import fields, replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Int

from t5x_lite.data.tokenizer import Tokenizer
from t5x_lite.decode.beam import Beam, beam_search, repeat_rows, reshard_cache
from t5x_lite.decode.sampling import Sampling, apply_repetition_penalty, mark_tokens, sample_token
from t5x_lite.errors import UserError
from t5x_lite.models.components import Learned
from t5x_lite.models.config import START, ModelConfig
from t5x_lite.models.layers import Axes
from t5x_lite.models.sharding import constrain
from t5x_lite.models.transformer import Cache, ModelSpec

logger = logging.getLogger(__name__)

CHUNK = 16
"""Tokens made on the device between two looks of the host: for streaming, stop strings and an early end."""


def decoding_settings(**given: Any) -> Sampling | Beam:
    """A `Beam` where one of its own settings is given, otherwise a `Sampling`.

    Raises:
        UserError: a setting that the one or the other does not have, or a value out of range.
    """
    kind: type[Sampling | Beam] = Beam if {"beams", "length_penalty"} & given.keys() else Sampling
    known = [field.name for field in fields(kind)]
    for name in given.keys() - set(known):
        way = "beam search" if kind is Beam else "generation"
        raise UserError(f"{name} is not a setting of {way}; those are {', '.join(known)}")
    return kind(**given)


class Generator:
    """Compiled prefill and decode of one model: a decoder continues prompts, an encoder_decoder answers them.

    `beginning` are ids that stand before every prompt. `truncated` counts the prompts that lost their beginning. Rows
    are split over the mesh where they divide.
    """

    def __init__(
        self,
        config: ModelConfig,
        blueprint: ModelSpec,
        params: Any,
        tokenizer: Tokenizer | None,
        beginning: Sequence[int] | np.ndarray = (),
    ) -> None:
        if config.family not in {"decoder", "encoder_decoder"}:
            raise UserError(f"a model of family {config.family} does not generate; it fills masks")
        self.config, self.params, self._tokenizer = config, params, tokenizer
        self.beginning = np.asarray(beginning, np.int32)
        self.truncated = 0
        self._axes = blueprint.axes
        self._mesh = getattr(jax.tree.leaves(params)[0].sharding, "mesh", None)
        self._prefill = jax.jit(partial(_prefill, blueprint), static_argnums=(0, 1))
        self._draw = jax.jit(_draw, static_argnums=0)
        self._decode = jax.jit(partial(_decode, blueprint), static_argnums=0, donate_argnums=(3, 4))
        self._search = jax.jit(partial(beam_search, partial(_model, blueprint)), static_argnums=(0, 1))  # beam and EOS

    @property
    def tokenizer(self) -> Tokenizer:
        """The tokenizer, which text needs and `tokens` does not."""
        if self._tokenizer is None:
            raise UserError("text needs the run's tokenizer, and it has none")
        return self._tokenizer

    def tokens(self, prompts: Sequence[np.ndarray], sampling: Sampling | Beam) -> Iterator[np.ndarray]:
        """int32 `[prompts, made so far]`, again and again: the first token, then a chunk more; with what follows EOS.

        Of a `Beam` once: the best of `beams`. A prompt longer than what learned positions leave for it loses its
        beginning, which is logged, and counted in `truncated`.

        Raises:
            UserError: learned positions do not suffice.
        """
        if isinstance(sampling, Beam):
            yield self.beams(prompts, sampling)[0][:, 0]
            return
        params, logits, seen, cache = self._begin(prompts, sampling.tokens, 1)
        choice, seed = replace(sampling, tokens=1, stop=(), seed=0), np.asarray(sampling.seed)
        token, seen = self._on_mesh(self._draw, choice, logits, seen, seed, 0)
        made = np.asarray(token)
        yield made
        while made.shape[1] < sampling.tokens:
            start, stop = made.shape[1], min(made.shape[1] + CHUNK, sampling.tokens)
            new, token, seen, cache = self._on_mesh(self._decode, choice, params, token, seen, cache, seed, start, stop)
            made = np.concatenate([made, np.asarray(new)[:, : stop - start]], axis=1)
            yield made

    def beams(self, prompts: Sequence[np.ndarray], beam: Beam) -> tuple[np.ndarray, np.ndarray]:
        """What beam search finds for each prompt, best first: int32 `[prompts, beams, tokens]`, 0 after EOS.

        With it float32 scores `[prompts, beams]`, as `Beam` says; -inf where fewer are possible.
        """
        state = self._begin(prompts, beam.tokens, beam.beams)
        eos = None if self._tokenizer is None else self._tokenizer.eos
        tokens, scores = self._on_mesh(self._search, replace(beam, stop=()), eos, *state)
        return np.asarray(tokens), np.asarray(scores)

    def _begin(self, prompts: Sequence[np.ndarray], tokens: int, copies: int) -> tuple[Any, Array, Array, Cache]:
        """Weights to decode with; and of prompts, `copies` times each: logits, the tokens that are there, the cache."""
        room = self._room(max(map(len, prompts)), tokens)
        long = sum(len(ids) > room for ids in prompts)
        if long:
            self.truncated += long
            logger.warning("%d of %d prompts have more than %d tokens and lose the first", long, len(prompts), room)
        ids, segments = _left_padded([ids[-room:] for ids in prompts])
        begun = np.where(segments > 0, ids, -1) if self.config.family == "decoder" else np.full_like(ids[:, :1], START)
        params = _apart(self._axes, self.params)
        return params, *self._on_mesh(self._prefill, tokens, copies, params, ids, segments, begun)

    def _on_mesh(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """What a function makes of arguments on the mesh of the weights, if they lie on one."""
        with nullcontext() if self._mesh is None else jax.set_mesh(self._mesh):
            return function(*arguments)

    def stream(self, prompts: Sequence[str | np.ndarray], sampling: Sampling | Beam) -> Iterator[list[str]]:
        """The whole text of each continuation so far, again and again, until all have ended."""
        encoded = [self.encoded(prompt) if isinstance(prompt, str) else prompt for prompt in prompts]
        for made in self.tokens(encoded, sampling):
            ended = [self._text(row, sampling.stop) for row in made]
            yield [text for text, _ in ended]
            if all(done for _, done in ended):
                return

    def generate(self, prompts: Sequence[str | np.ndarray], sampling: Sampling | Beam) -> list[str]:
        """The continuation of each prompt (a text, or its ids), without the prompt."""
        return deque(self.stream(prompts, sampling), maxlen=1)[0]

    def encoded(self, prompt: str) -> np.ndarray:
        """A prompt's ids after `beginning`: in an encoder's, names of special tokens stand for them, EOS ends it."""
        eos = self.tokenizer.eos
        if self.config.family == "encoder_decoder":
            named = self.tokenizer.encode_named(prompt)
            return np.concatenate([self.beginning, named, [] if eos is None else [eos]]).astype(np.int32)
        ids = np.concatenate([self.beginning, self.tokenizer.encode(prompt)])
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


def _left_padded(rows: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Rows that end together; the length is rounded up to a power of two, so that few programs are compiled."""
    longest = max(map(len, rows))
    length = 1 << (longest - 1).bit_length()
    tokens = np.zeros((2, len(rows), length), np.int32)
    for number, row in enumerate(rows):
        tokens[:, number, length - len(row) :] = row, np.ones(len(row))
    return tokens[0], tokens[1]


def _apart(axes: Any, params: Any) -> Any:
    """Weights of stacked layers as a tuple of each layer's, in the memory where they are, if that is one CPU's.

    There a token costs what reading the weights costs, and a slice of a stack is a copy of them.
    """

    def split(axes: Axes, array: jax.Array) -> Any:
        stacked = array.ndim > len(axes.names)
        if not stacked or [device.platform for device in array.devices()] != ["cpu"]:
            return array
        # Not of `array` itself, which would keep the view, and could not be donated to the next step of a training run.
        layers = np.asarray(array.addressable_data(0))
        return tuple(jax.device_put(layer, may_alias=True) for layer in layers)

    return jax.tree.map(split, axes, params)


def _model(blueprint: ModelSpec, params: Any) -> Any:
    """The module; layers that are apart are stacked in name alone: the compiler sees through it."""
    join = lambda _, leaf: jnp.stack(leaf) if isinstance(leaf, tuple) else leaf  # noqa: E731
    return blueprint.model(jax.tree.map(join, blueprint.axes, params))


def _prefill(
    blueprint: ModelSpec, room: int, copies: int, params: Any, tokens: Array, segments: Array, begun: Array
) -> tuple[Array, Array, Cache]:
    model = _model(blueprint, params)
    tokens, segments = (constrain(x, "batch", None) for x in (tokens, segments))
    hidden, cache = model.begin(tokens, segments, room)
    logits = model.logits(hidden)[:, 0]
    seen = mark_tokens(jnp.zeros(logits.shape, bool), begun)
    return jnp.repeat(logits, copies, 0), jnp.repeat(seen, copies, 0), reshard_cache(repeat_rows(cache, copies))


def _draw(
    sampling: Sampling, logits: Array, seen: Array, seed: Array, n: Array
) -> tuple[Int[Array, "b 1"], Bool[Array, "b v"]]:
    """Token n of each row, drawn with the seed, the row and n alone, and the tokens seen with it."""
    row_keys = jax.vmap(partial(jax.random.fold_in, jax.random.key(seed)))(jnp.arange(len(logits)))
    keys = jax.vmap(lambda key: jax.random.fold_in(key, n))(row_keys)
    token = sample_token(apply_repetition_penalty(logits, seen, sampling.repetition_penalty), sampling, keys)[:, None]
    return constrain(token, None, None), seen if sampling.repetition_penalty == 1 else mark_tokens(seen, token)


def _decode(
    blueprint: ModelSpec,
    sampling: Sampling,
    params: Any,
    token: Array,
    seen: Array,
    cache: Cache,
    seed: Array,
    start: Array,
    stop: Array,
) -> tuple[Int[Array, "b chunk"], Array, Array, Cache]:
    """Tokens `start` to `stop`, at most `CHUNK`, after `token`."""

    def one(n: Array, carry: tuple[Array, Array, Array, Cache]) -> tuple[Array, Array, Array, Cache]:
        model = _model(blueprint, params)
        made, token, seen, cache = carry
        hidden, cache = model.extend(token, jnp.ones_like(token), cache)
        token, seen = _draw(sampling, model.logits(hidden)[:, 0], seen, seed, n)
        return jax.lax.dynamic_update_slice_in_dim(made, token, n - start, axis=1), token, seen, reshard_cache(cache)

    none = jnp.zeros((len(token), CHUNK), token.dtype)
    return jax.lax.fori_loop(start, stop, one, (none, token, seen, cache))


def stream_text(prompt: str, texts: Iterator[list[str]], write: Callable[[str], Any]) -> None:
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
