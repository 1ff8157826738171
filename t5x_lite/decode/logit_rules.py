"""Rules that change the scores of the next token: biases, bans and penalties, given the tokens so far."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from t5x_lite.data.tokenizer import Tokenizer
from t5x_lite.errors import UserError

LogitBias: TypeAlias = Mapping[str | int | tuple[int, ...], float]
"""Biases of texts, of tokens, or of sequences of tokens; see `SequenceBias`."""

History: TypeAlias = Int[Array, "b w"]
"""The last tokens of each row, the newest in the last column; negative where there is no token of the vocabulary."""


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class SequenceBias:
    """Biases of sequences of tokens.

    The bias of a sequence is added to the score of its last token after the others, and always if there are no others.
    -inf bans the token. +inf bans all tokens that do not have +inf at this place.

    Attributes:
        prefixes: the tokens before the last; -1 fills the left of the shorter ones.
        last: the last token.
        bias: what is added to its score.
    """

    prefixes: Int[np.ndarray | Array, "sequences prefix"]
    last: Int[np.ndarray | Array, "sequences"]
    bias: Float[np.ndarray | Array, "sequences"]

    def apply(self, scores: Float[Array, "b v"], history: History) -> Float[Array, "b v"]:
        """Return the scores with the biases of the sequences that the next token can complete."""
        sequences, length = self.prefixes.shape
        if not sequences:
            return scores
        # A sequence that is longer than the history cannot be completed: -1 agrees with none of its tokens.
        missing = max(length - history.shape[1], 0)
        history = jnp.pad(history, ((0, 0), (missing, 0)), constant_values=-1)
        last_tokens = history[:, history.shape[1] - length :]
        agrees = (self.prefixes < 0) | (last_tokens[:, None] == self.prefixes)
        applies = agrees.all(-1)
        zeros = jnp.zeros_like(scores)
        finite = jnp.where(jnp.isfinite(self.bias), self.bias, 0)
        added = zeros.at[:, self.last].add(jnp.where(applies, finite, 0))
        is_banned = zeros.at[:, self.last].max(applies & (self.bias == -jnp.inf)) > 0
        is_forced = zeros.at[:, self.last].max(applies & (self.bias == jnp.inf)) > 0
        is_banned |= is_forced.any(-1, keepdims=True) & ~is_forced
        return jnp.where(is_banned, -jnp.inf, scores + added)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class LogitRules:
    """Rules for the scores of the next token, in the order in which they apply, that of Hugging Face Transformers.

    Attributes:
        bias: biases of sequences of tokens.
        end_tokens: the tokens that end a continuation, EOS among them.
        repetition_penalty: see `apply_repetition_penalty`.
        no_repeat_ngram_size: bans tokens that would complete an n-gram of this size a second time; 0 bans none.
        min_tokens: number of new tokens before which no end token is generated.
    """

    bias: SequenceBias
    end_tokens: Int[np.ndarray | Array, "ends"]
    repetition_penalty: float = field(default=1.0, metadata={"static": True})
    no_repeat_ngram_size: int = field(default=0, metadata={"static": True})
    min_tokens: int = field(default=0, metadata={"static": True})

    @property
    def read_history(self) -> bool:
        """True if a rule depends on the tokens so far."""
        return self.repetition_penalty != 1 or self.no_repeat_ngram_size > 0 or self.bias.prefixes.shape[1] > 0

    def apply(self, scores: Float[Array, "b v"], history: History, index: Int[Array, ""] | int) -> Float[Array, "b v"]:
        """Return the changed scores of new token `index`, counted from 0."""
        scores = self.bias.apply(scores, history)
        if self.repetition_penalty != 1:
            present = mark_tokens(jnp.zeros(scores.shape, bool), history)
            scores = apply_repetition_penalty(scores, present, self.repetition_penalty)
        if self.no_repeat_ngram_size:
            scores = ban_repeated_ngrams(scores, history, self.no_repeat_ngram_size)
        if self.min_tokens and self.end_tokens.shape[0]:
            without_ends = scores.at[:, self.end_tokens].set(-jnp.inf)
            scores = jnp.where(index < self.min_tokens, without_ends, scores)
        return scores

    def ends(self, tokens: Int[Array, "b n"]) -> Bool[Array, "b n"]:
        """Return which tokens end a continuation."""
        return (tokens[..., None] == self.end_tokens).any(-1)


def append_tokens(history: History, tokens: Int[Array, "b 1"]) -> History:
    """Return the history after a new token of each row. It keeps its width; one without columns stays so."""
    if not history.shape[1]:
        return history
    return jnp.concatenate([history[:, 1:], tokens], axis=1)


def mark_tokens(present: Bool[Array, "b v"], token_ids: Int[Array, "b l"]) -> Bool[Array, "b v"]:
    """Mark the given tokens of each row as present. Ids outside the vocabulary, such as -1, are ignored."""
    vocab = present.shape[1]
    # A negative index would count from the end; an index of `vocab` is out of range and dropped.
    columns = jnp.where(token_ids < 0, vocab, token_ids)
    rows = jnp.arange(len(present))[:, None]
    return present.at[rows, columns].set(True, mode="drop")


def apply_repetition_penalty(
    scores: Float[Array, "b v"], present: Bool[Array, "b v"], penalty: float
) -> Float[Array, "b v"]:
    """Divide positive scores of the tokens that are present by the penalty, and multiply negative ones by it.

    Keskar et al. always divide, which makes a token of negative score likelier. This is the definition of Hugging Face
    Transformers.
    """
    if penalty == 1:
        return scores
    penalised = jnp.where(scores < 0, scores * penalty, scores / penalty)
    return jnp.where(present, penalised, scores)


def ban_repeated_ngrams(scores: Float[Array, "b v"], history: History, size: int) -> Float[Array, "b v"]:
    """Ban each token that would complete an n-gram of the history again (Paulus et al. 2018, §2.5)."""
    width = history.shape[1]
    if width < size:
        return scores
    windows = width - size + 1
    is_repeated = jnp.ones((len(history), windows), bool)
    for offset in range(size - 1):
        newest = history[:, windows + offset, None]
        is_repeated &= history[:, offset : offset + windows] == newest
    completing = jnp.where(is_repeated, history[:, size - 1 :], -1)
    is_banned = mark_tokens(jnp.zeros(scores.shape, bool), completing)
    return jnp.where(is_banned, -jnp.inf, scores)


def resolve_bias(bias: LogitBias, tokenizer: Tokenizer | None, vocab: int) -> SequenceBias:
    """Return the biases of texts and tokens as arrays.

    A text stands for the tokens that the tokenizer makes of it alone; the name of a special token for this token.

    Raises:
        UserError: a text without tokens or with unknown characters, or a token outside the vocabulary.
    """
    values: dict[tuple[int, ...], float] = {}
    for key, value in bias.items():
        sequence = _tokens_of(key, tokenizer)
        outside = [token for token in sequence if not 0 <= token < vocab]
        if outside:
            raise UserError(f"logit_bias: token {outside[0]} is not in the vocabulary of {vocab} tokens")
        if sequence in values:
            raise UserError(
                f"logit_bias: {key!r} has the tokens {list(sequence)}, as another entry; remove one of them"
            )
        values[sequence] = value
    longest = max(map(len, values), default=1)
    prefixes = np.full((len(values), longest - 1), -1, np.int32)
    for row, sequence in enumerate(values):
        prefixes[row, longest - len(sequence) :] = sequence[:-1]
    last = np.array([sequence[-1] for sequence in values], np.int32)
    return SequenceBias(prefixes, last, np.array(list(values.values()), np.float32))


def resolve_end_tokens(
    stop: Sequence[str], stop_tokens: Sequence[int], tokenizer: Tokenizer | None, vocab: int
) -> Int[np.ndarray, "_"]:
    """Return the tokens that end a continuation: EOS, `stop_tokens`, and special tokens that `stop` names.

    Raises:
        UserError: a token outside the vocabulary.
    """
    for token in stop_tokens:
        if not 0 <= token < vocab:
            raise UserError(f"stop_tokens: token {token} is not in the vocabulary of {vocab} tokens")
    end_tokens = list(stop_tokens)
    if tokenizer is not None:
        end_tokens.extend(tokenizer.special[text] for text in stop if text in tokenizer.special)
        if tokenizer.eos is not None:
            end_tokens.append(tokenizer.eos)
    return np.unique(np.array(end_tokens, np.int32))


def bias_problems(bias: LogitBias) -> Iterator[str]:
    """Yield an error for each entry that is no bias of a text or of tokens."""
    for key, value in bias.items():
        sequence = key if isinstance(key, tuple) else (key,)
        is_token = all(isinstance(token, int) and not isinstance(token, bool) for token in sequence)
        if not sequence or not (isinstance(key, str) or is_token):
            yield f"logit_bias: {key!r} is neither a text nor a token"
        elif isinstance(value, bool) or not isinstance(value, int | float) or math.isnan(value):
            yield f"logit_bias: the bias of {key!r} must be a number, inf or -inf, but is {value!r}"


def _tokens_of(key: str | int | tuple[int, ...], tokenizer: Tokenizer | None) -> tuple[int, ...]:
    if isinstance(key, tuple):
        return key
    if isinstance(key, int):
        return (key,)
    if tokenizer is None:
        raise UserError(f"logit_bias: the text {key!r} needs the run's tokenizer, and it has none; name tokens")
    if key in tokenizer.special:
        return (tokenizer.special[key],)
    tokens = tuple(tokenizer.encode(key).tolist())
    if not tokens or tokenizer.unk in tokens:
        raise UserError(f"logit_bias: the tokenizer has no tokens for {key!r}")
    return tokens
