"""Text generation: prompts to ids, prefill and decoding on the mesh of the weights, and ids to text."""

import itertools
import logging
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import fields, replace
from functools import partial
from typing import Any, TypeAlias, TypeVar

import jax
import numpy as np
from jaxtyping import Array, Float, Int, PyTree

from t5x_lite.data.tokenizer import Tokenizer
from t5x_lite.decode.beam import Beam, beam_search
from t5x_lite.decode.continuation import decode_continuation
from t5x_lite.decode.decoding_steps import (
    CHUNK,
    Prompts,
    RandomStreams,
    TokenChoice,
    TokenSpan,
    choose_next,
    decode_chunk,
    prefill,
)
from t5x_lite.decode.generative_module import build_module, unstack_layers
from t5x_lite.decode.logit_rules import resolve_end_tokens
from t5x_lite.decode.sampling import Sampling
from t5x_lite.decode.state import DecodeState
from t5x_lite.errors import UserError
from t5x_lite.integers import next_power_of_two
from t5x_lite.models.config import ModelConfig
from t5x_lite.models.spec import ModelSpec

logger = logging.getLogger(__name__)

TokenIds: TypeAlias = Int[np.ndarray, "_"]
"""Token ids of one text, of any length."""

DecodingT = TypeVar("DecodingT", Sampling, Beam)

Streams: TypeAlias = Int[np.ndarray, "prompts n"]
"""Numbers of each prompt that, with the seed, its random draws depend on."""


def truncate_prompt(prompt: TokenIds, prefix: TokenIds, limit: int) -> TokenIds:
    """Return at most `limit` ids: those of `prefix` that a prompt begins with, and the last of the others.

    Raises:
        UserError: a prompt is too long, and the prefix leaves no room for it.
    """
    if len(prompt) <= limit:
        return prompt
    # A prompt that was given as ids may begin with virtual tokens and no BOS, or with neither.
    size = min(len(prefix), len(prompt))
    first = int(np.cumprod(prompt[:size] == prefix[:size]).sum())
    if first >= limit:
        raise UserError(f"the {first} ids before every prompt (virtual tokens, BOS) leave it no room in {limit} tokens")
    return np.concatenate([prompt[:first], prompt[len(prompt) - limit + first :]])


def decoding_settings(**settings: Any) -> Sampling | Beam:
    """Return a `Beam` if a setting of beam search is among the settings, and a `Sampling` otherwise.

    Raises:
        UserError: a setting that does not exist, that belongs to the other kind, or that is out of range.
    """
    kind: type[Sampling | Beam] = Sampling
    title = "generation"
    if {"beams", "length_penalty"} & settings.keys():
        kind = Beam
        title = "beam search"
    known = [field.name for field in fields(kind)]
    for name in settings:
        if name not in known:
            raise UserError(f"{name} is not a setting of {title}; those are {', '.join(known)}")
    return kind(**settings)


class Generator:
    """Generates text with one model: a decoder continues prompts, an encoder_decoder answers them.

    The rows of a batch are sharded over the mesh of the weights where they divide.

    Args:
        config: the model's config.
        spec: the model without its weights.
        params: weights; or their shapes and shardings, if the attribute `params` is set before the first use.
        tokenizer: needed for text; `stream_tokens` and `search_beams` work without it.
        prompt_prefix: ids that `encode_prompt` puts before every prompt.
        end_tokens: ids that end a continuation, as EOS does.

    Attributes:
        truncated_prompts: the number of prompts so far that were too long and lost their first tokens after the prefix.
    """

    def __init__(
        self,
        config: ModelConfig,
        spec: ModelSpec,
        params: PyTree[Array | jax.ShapeDtypeStruct],
        tokenizer: Tokenizer | None,
        prompt_prefix: Sequence[int] | TokenIds = (),
        end_tokens: Sequence[int] = (),
    ) -> None:
        if config.is_encoder_only:
            raise UserError(f"a model of family {config.family} does not generate; it fills masks")
        self.config = config
        self.params: PyTree[Array | jax.ShapeDtypeStruct] = params
        self.prompt_prefix = np.asarray(prompt_prefix, np.int32)
        self.truncated_prompts = 0
        self._end_tokens = tuple(end_tokens)
        self._tokenizer = tokenizer
        assert config.vocab is not None
        self._vocab = config.vocab
        self._axes = spec.axes
        first_leaf = jax.tree.leaves(params)[0]
        self._mesh: jax.sharding.Mesh | None = getattr(first_leaf.sharding, "mesh", None)
        self._prefill = jax.jit(partial(prefill, spec), static_argnames=("new_tokens", "copies"))
        self._choose_next = jax.jit(choose_next)
        self._decode_chunk = jax.jit(partial(decode_chunk, spec), donate_argnames="state")
        self._beam_search = jax.jit(partial(beam_search, partial(build_module, spec)), static_argnames="beam")

    @property
    def tokenizer(self) -> Tokenizer:
        """The tokenizer.

        Raises:
            UserError: the generator has none.
        """
        if self._tokenizer is None:
            raise UserError("text needs the run's tokenizer, and it has none")
        return self._tokenizer

    def generate(
        self, prompts: Sequence[str | TokenIds], decoding: Sampling | Beam, streams: Streams | None = None
    ) -> list[str]:
        """Return the continuation of each prompt (a text or its ids), without the prompt. See `stream`."""
        if not len(prompts):
            return []
        return list(self.stream(prompts, decoding, streams))[-1]

    def stream(
        self, prompts: Sequence[str | TokenIds], decoding: Sampling | Beam, streams: Streams | None = None
    ) -> Iterator[list[str]]:
        """Yield the text of every continuation so far, after each chunk of tokens, until all have ended.

        Args:
            prompts: texts or their ids.
            decoding: the settings.
            streams: numbers of each prompt that its random draws depend on, by default its place among the prompts.
        """
        prompt_ids = []
        for prompt in prompts:
            prompt_ids.append(self.encode_prompt(prompt) if isinstance(prompt, str) else prompt)
        for tokens in self.stream_tokens(prompt_ids, decoding, streams):
            is_last = isinstance(decoding, Beam) or tokens.shape[1] == decoding.tokens
            texts = []
            all_ended = True
            for prompt_row, new_row in zip(prompt_ids, tokens, strict=True):
                text, has_ended = self._decode_text(prompt_row, new_row, decoding)
                if not has_ended and not is_last:
                    text = _without_begun_stop(text, decoding.stop)
                texts.append(text)
                all_ended = all_ended and has_ended
            yield texts
            if all_ended:
                return

    def stream_tokens(
        self, prompts: Sequence[TokenIds], decoding: Sampling | Beam, streams: Streams | None = None
    ) -> Iterator[Int[np.ndarray, "prompts _"]]:
        """Yield all new tokens so far: after the first token, then after each chunk. Tokens go on after EOS.

        Beam search yields once, the best hypothesis of each prompt. Where positions limit the length, a prompt
        that is too long loses its first tokens after `prompt_prefix`; that is logged and counted in
        `truncated_prompts`.

        Raises:
            UserError: the positions leave no room for a prompt.
        """
        if isinstance(decoding, Beam):
            hypotheses, _ = self.search_beams(prompts, decoding)
            yield hypotheses[:, 0]
            return
        rules = self._with_end_tokens(decoding).resolve_rules(self._tokenizer, self._vocab)
        params, logits, state = self._prefill_prompts(
            prompts, decoding.tokens, copies=1, read_history=rules.read_history
        )
        if streams is None:
            streams = np.arange(len(prompts))[:, None]
        # Settings that the steps do not read get fixed values, so that they do not lead to another compilation.
        sampling = replace(decoding.without_rules(), tokens=1, seed=0)
        choice = TokenChoice(sampling, rules, RandomStreams(np.asarray(decoding.seed), streams))
        with self._mesh_context():
            token, history = self._choose_next(choice, logits, state.history, 0)
        state = DecodeState(history, state.cache)
        tokens = np.asarray(token)
        yield tokens
        while tokens.shape[1] < decoding.tokens:
            start = tokens.shape[1]
            stop = min(start + CHUNK, decoding.tokens)
            with self._mesh_context():
                chunk, token, state = self._decode_chunk(choice, params, token, state, TokenSpan(start, stop))
            new_tokens = np.asarray(chunk)[:, : stop - start]
            tokens = np.concatenate([tokens, new_tokens], axis=1)
            yield tokens

    def search_beams(
        self, prompts: Sequence[TokenIds], beam: Beam
    ) -> tuple[Int[np.ndarray, "prompts beams l"], Float[np.ndarray, "prompts beams"]]:
        """Run beam search.

        Returns:
            The tokens of the hypotheses of each prompt, best first, 0 after EOS; and their scores, see `Beam`. A score
            of -inf marks a slot for which there is no hypothesis.
        """
        rules = self._with_end_tokens(beam).resolve_rules(self._tokenizer, self._vocab)
        params, logits, state = self._prefill_prompts(
            prompts, beam.tokens, copies=beam.beams, read_history=rules.read_history
        )
        with self._mesh_context():
            tokens, scores = self._beam_search(beam.without_rules(), rules, params, logits, state)
        return np.asarray(tokens), np.asarray(scores)

    def encode_prompt(self, prompt: str) -> TokenIds:
        """Return the ids of a prompt, after `prompt_prefix`.

        For an encoder_decoder the names of special tokens in the prompt stand for these tokens, and the tokenizer's
        `suffix_tokens`, such as T5's EOS, follows it. For a decoder a prompt without tokens becomes EOS.

        Raises:
            UserError: a decoder's prompt without tokens, and the tokenizer has no EOS.
        """
        eos = self.tokenizer.eos
        if self.config.family == "encoder_decoder":
            parts = [self.prompt_prefix, self.tokenizer.encode_named(prompt), self.tokenizer.suffix_tokens()]
            return np.concatenate(parts).astype(np.int32)
        token_ids = np.concatenate([self.prompt_prefix, self.tokenizer.encode(prompt)])
        if len(token_ids):
            return token_ids
        if eos is None:
            raise UserError("an empty prompt needs a tokenizer with an end-of-document token to begin from")
        return np.array([eos], np.int32)

    def _prefill_prompts(
        self, prompts: Sequence[TokenIds], new_tokens: int, copies: int, *, read_history: bool = False
    ) -> tuple[PyTree[Array], Float[Array, "bn v"], DecodeState]:
        """Run prefill with `copies` rows for each prompt; the state has their tokens if rules read the history.

        Returns:
            The weights to decode with, the logits of the first new token, and the state to continue from.
        """
        prompts = self._truncate(prompts, new_tokens)
        tokens, segment_ids = _pad(prompts, left=self.config.family == "decoder")
        history = np.where(segment_ids > 0, tokens, -1)
        if self.config.family == "encoder_decoder":
            history = np.full_like(tokens[:, :1], self.config.start_token)
        history = np.pad(history, ((0, 0), (new_tokens, 0)), constant_values=-1)
        if not read_history:
            history = history[:, :0]
        params = unstack_layers(self._axes, self.params)
        batch = Prompts(tokens, segment_ids, history)
        with self._mesh_context():
            logits, state = self._prefill(new_tokens, copies, params, batch)
        return params, logits, state

    def _with_end_tokens(self, decoding: DecodingT) -> DecodingT:
        """Return the settings with the end tokens of the model beside those that they have."""
        return replace(decoding, stop_tokens=(*decoding.stop_tokens, *self._end_tokens))

    def _mesh_context(self) -> AbstractContextManager[object]:
        return nullcontext() if self._mesh is None else jax.set_mesh(self._mesh)

    def _truncate(self, prompts: Sequence[TokenIds], new_tokens: int) -> list[TokenIds]:
        """Keep the prefix and the last tokens of prompts that are too long for the positions, where these are limited.

        A decoder's positions hold the new tokens too.
        """
        limit = self.config.max_length
        if limit is None:
            return list(prompts)
        if new_tokens >= limit:
            setting = self.config.positions.max_length_setting
            raise UserError(
                f"tokens {new_tokens} leave no room for a prompt in the model's {limit} positions ({setting})"
            )
        if self.config.family == "decoder":
            limit -= new_tokens
        too_long = sum(len(prompt) > limit for prompt in prompts)
        if too_long:
            self.truncated_prompts += too_long
            logger.warning(
                "%d of %d prompts have more than %d tokens and lose the first", too_long, len(prompts), limit
            )
        return [truncate_prompt(prompt, self.prompt_prefix, limit) for prompt in prompts]

    def _decode_text(self, prompt_ids: TokenIds, token_ids: TokenIds, decoding: Sampling | Beam) -> tuple[str, bool]:
        """Return the text before the first end token and stop string, and whether it has ended with either.

        A stop string may be the name of a special token, which has no text.
        """
        stop_tokens = [*decoding.stop_tokens, *self._end_tokens]
        end_ids = resolve_end_tokens(decoding.stop, stop_tokens, self.tokenizer, self._vocab)
        ends = np.flatnonzero(np.isin(token_ids, end_ids))
        has_ended = len(ends) > 0
        if has_ended:
            token_ids = token_ids[: ends[0]]
        text = self._decode_continuation(prompt_ids, token_ids)
        first = 0
        if decoding.min_tokens:
            first = len(self._decode_continuation(prompt_ids, token_ids[: decoding.min_tokens]))
        # A stop string counts once it ends after the first `min_tokens` tokens.
        places = [text.find(stop, max(first + 1 - len(stop), 0)) for stop in decoding.stop if stop]
        cuts = [place for place in places if place >= 0]
        if cuts:
            return text[: min(cuts)], True
        return text, has_ended

    def _decode_continuation(self, prompt_ids: TokenIds, token_ids: TokenIds) -> str:
        """Return the text of new tokens; a decoder's text goes on from its prompt."""
        if self.config.family == "encoder_decoder":
            return self.tokenizer.decode(token_ids.tolist())
        return decode_continuation(self.tokenizer, prompt_ids, token_ids)


def _without_begun_stop(text: str, stop_strings: Sequence[str]) -> str:
    """Remove the beginning of a stop string from the end of a text, because its rest may follow."""
    for length in range(max(map(len, stop_strings), default=0) - 1, 0, -1):
        if any(len(stop) > length and text.endswith(stop[:length]) for stop in stop_strings):
            return text[:-length]
    return text


def write_stream(prompt: str, texts: Iterator[list[str]], write: Callable[[str], object]) -> None:
    """Write the prompt, then each new part of the only continuation in `texts` (see `Generator.stream`).

    The prompt waits for the first text, so that an error comes before it. A character whose last bytes are not
    generated yet decodes to U+FFFD; it is written once it is complete.
    """
    first_texts = list(itertools.islice(texts, 1))
    write(prompt)
    written = ""
    text = ""
    for (text,) in itertools.chain(first_texts, texts):
        complete = text.rstrip("\ufffd")
        if complete.startswith(written):
            write(complete[len(written) :])
            written = complete
        sys.stdout.flush()
    write(text[len(written) :] + "\n")


def _pad(rows: Sequence[TokenIds], *, left: bool) -> tuple[Int[np.ndarray, "b l"], Int[np.ndarray, "b l"]]:
    """Return tokens and segment ids of rows that end together, or begin together.

    The rows of a decoder end together, so that all go on at once. Those of an encoder begin together as in training:
    attention in blocks cuts them from their beginning. The length is rounded up to a power of two, so that few programs
    are compiled.
    """
    longest = max(map(len, rows))
    length = next_power_of_two(longest)
    tokens = np.zeros((len(rows), length), np.int32)
    segment_ids = np.zeros((len(rows), length), np.int32)
    for number, row in enumerate(rows):
        start = length - len(row) if left else 0
        tokens[number, start : start + len(row)] = row
        segment_ids[number, start : start + len(row)] = 1
    return tokens, segment_ids
