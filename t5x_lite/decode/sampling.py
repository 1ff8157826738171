"""Sampling of the next token: its settings, and the steps that turn logits into a token."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from numbers import Integral, Real
from typing import Self

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

from t5x_lite.data.tokenizer import Tokenizer
from t5x_lite.decode.logit_rules import LogitBias, LogitRules, bias_problems, resolve_bias, resolve_end_tokens
from t5x_lite.errors import UserError

DEFAULT_TOKENS = 128
"""New tokens where no number is given."""


def default_tokens(max_length: int | None) -> int:
    """Return the new tokens where no number is given: of a model with too few positions, half of them."""
    if max_length is None or max_length > DEFAULT_TOKENS:
        return DEFAULT_TOKENS
    return max(max_length // 2, 1)


@dataclass(frozen=True)
class Decoding:
    """The settings that sampling and beam search share.

    Attributes:
        tokens: the largest number of new tokens.
        stop: strings that end a continuation. The text is cut before the first of them.
        repetition_penalty: makes tokens that are already present less likely (Keskar et al. 2019, §4.1, who use 1.2);
            1 changes nothing. In a decoder these are the tokens of the prompt and of the continuation; in an
            encoder_decoder those of the answer, including the token 0 that it starts from.
        no_repeat_ngram_size: no n-gram of this many tokens occurs twice (Paulus et al. 2018, §2.5), the tokens being
            those of `repetition_penalty`; 0 allows all.
        min_tokens: number of new tokens before which no continuation ends: EOS and stop tokens are banned, and a stop
            string among these tokens alone does not count.
        stop_tokens: tokens that end a continuation, as EOS does.
        logit_bias: what is added to the score of a token in every step, -inf to ban it, +inf to ban all others. A text
            or a tuple of several tokens changes the score of its last token, wherever the others come before it.
    """

    tokens: int = DEFAULT_TOKENS
    stop: Sequence[str] = ()
    repetition_penalty: float = 1.0
    no_repeat_ngram_size: int = 0
    min_tokens: int = 0
    stop_tokens: Sequence[int] = ()
    logit_bias: LogitBias | None = None

    def __post_init__(self) -> None:
        _check_types(self)
        if self.tokens < 1:
            raise UserError(f"tokens must be at least 1, but is {self.tokens}")
        if isinstance(self.stop, str):
            raise UserError(f"stop is a list of texts; write [{self.stop!r}]")
        if not 0 < self.repetition_penalty < math.inf:
            raise UserError(f"repetition_penalty must be a number above 0, but is {self.repetition_penalty}")
        if isinstance(self.stop_tokens, int):
            raise UserError(f"stop_tokens is a list of tokens; write [{self.stop_tokens}]")
        if self.no_repeat_ngram_size < 0:
            raise UserError(f"no_repeat_ngram_size must not be negative, but is {self.no_repeat_ngram_size}")
        if not 0 <= self.min_tokens <= self.tokens:
            raise UserError(f"min_tokens must be from 0 to tokens, {self.tokens}, but is {self.min_tokens}")
        for problem in bias_problems(self.logit_bias or {}):
            raise UserError(problem)

    def without_rules(self) -> Self:
        """Return the settings without those that `LogitRules` and the texts need; they are hashable."""
        return replace(
            self,
            stop=(),
            repetition_penalty=1.0,
            no_repeat_ngram_size=0,
            min_tokens=0,
            stop_tokens=(),
            logit_bias=None,
        )

    def resolve_rules(self, tokenizer: Tokenizer | None, vocab: int) -> LogitRules:
        """Return the rules for the scores of a vocabulary of `vocab` tokens.

        Raises:
            UserError: a token outside the vocabulary, or a text that the tokenizer has no tokens for.
        """
        return LogitRules(
            bias=resolve_bias(self.logit_bias or {}, tokenizer, vocab),
            end_tokens=resolve_end_tokens(self.stop, self.stop_tokens, tokenizer, vocab),
            repetition_penalty=self.repetition_penalty,
            no_repeat_ngram_size=self.no_repeat_ngram_size,
            min_tokens=self.min_tokens,
        )


@dataclass(frozen=True)
class Sampling(Decoding):
    """The settings of sampling. The filters apply in the order of the fields below.

    Attributes:
        temperature: divides the logits; 0 is greedy decoding.
        top_k: keep the k most likely tokens (Fan et al. 2018); 0 keeps all.
        top_p: keep the fewest most likely tokens whose probabilities add up to this (Holtzman et al. 2020).
        min_p: keep tokens with at least this fraction of the most likely token's probability (Nguyen et al. 2024, §3).
        seed: the same seed gives the same text for each prompt of a batch.
    """

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    seed: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.temperature < math.inf:
            raise UserError(f"temperature must be a number from 0 on, but is {self.temperature}")
        if not 0 <= self.seed < 2**32:
            raise UserError(f"seed must be from 0 to 2^32 - 1, but is {self.seed}")
        if self.top_k < 0 or not 0 < self.top_p <= 1:
            raise UserError(f"top_k must be ≥ 0 and 0 < top_p ≤ 1, but they are {self.top_k} and {self.top_p}")
        if not 0 <= self.min_p <= 1:
            raise UserError(f"min_p must be from 0 to 1, but is {self.min_p}")


def sample_token(logits: Float[Array, "b v"], sampling: Sampling, keys: Key[Array, "b"]) -> Int[Array, "b"]:
    """Sample the next token of each row with the row's own key."""
    if sampling.temperature == 0:
        return _most_likely_token(logits)
    logits = logits / sampling.temperature
    if sampling.top_k:
        logits = _keep_top_k(logits, sampling.top_k)
    if sampling.top_p < 1:
        logits = _keep_top_p(logits, sampling.top_p)
    if sampling.min_p:
        logits = _keep_min_p(logits, sampling.min_p)
    return jax.vmap(jax.random.categorical)(keys, logits)


def _most_likely_token(logits: Float[Array, "b v"]) -> Int[Array, "b"]:
    """Return the first token of the largest logit.

    This is `argmax` as two reductions that a CPU vectorises; `argmax` itself takes 2 % of the time of a token.
    """
    last = logits.shape[-1] - 1
    is_largest = logits == logits.max(-1, keepdims=True)
    token_ids = jnp.where(is_largest, jnp.arange(logits.shape[-1]), last)
    return token_ids.min(-1)


def _keep_top_k(logits: Float[Array, "b v"], k: int) -> Float[Array, "b v"]:
    largest, _ = jax.lax.top_k(logits, min(k, logits.shape[-1]))
    return _mask_below(logits, largest[:, -1:])


def _keep_top_p(logits: Float[Array, "b v"], p: float) -> Float[Array, "b v"]:
    """Keep each token whose likelier tokens together have a probability below `p`."""
    ordered = jnp.sort(logits, axis=-1, descending=True)
    probabilities = jax.nn.softmax(ordered)
    likelier_mass = jnp.cumsum(probabilities, axis=-1) - probabilities
    smallest = jnp.where(likelier_mass < p, ordered, jnp.inf).min(-1, keepdims=True)
    return _mask_below(logits, smallest)


def _keep_min_p(logits: Float[Array, "b v"], p: float) -> Float[Array, "b v"]:
    smallest = logits.max(-1, keepdims=True) + math.log(p)
    return _mask_below(logits, smallest)


def _mask_below(logits: Float[Array, "b v"], smallest: Float[Array, "b 1"]) -> Float[Array, "b v"]:
    return jnp.where(logits < smallest, -jnp.inf, logits)


def _check_types(decoding: Decoding) -> None:
    """Refuse settings of another type, as a recipe or a program may have them."""
    for setting in fields(decoding):
        value = getattr(decoding, setting.name)
        if setting.type is int and not _is_number(value, Integral):
            raise UserError(f"{setting.name} must be a whole number, but is {value!r}")
        if setting.type is float and not _is_number(value, Real):
            raise UserError(f"{setting.name} must be a number, but is {value!r}")
    for text in () if isinstance(decoding.stop, str) else decoding.stop:
        if not isinstance(text, str):
            raise UserError(f"stop is a list of texts, and {text!r} is none; write it in quotes")
    for token in () if isinstance(decoding.stop_tokens, int) else decoding.stop_tokens:
        if not isinstance(token, Integral):
            raise UserError(f"stop_tokens is a list of tokens, and {token!r} is none")


def _is_number(value: object, kind: type) -> bool:
    return isinstance(value, kind) and not isinstance(value, bool)
