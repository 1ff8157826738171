"""How the next token is drawn: from which tokens, and what those that are there already do to their scores."""

import math
from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from t5x_lite.errors import UserError


@dataclass(frozen=True)
class Decoding:
    """What drawing tokens and searching for them share.

    `repetition_penalty` makes tokens that are there already less likely (Keskar et al. 2019, §4.1; 1.2 is theirs, 1
    does nothing): those of a decoder's prompt and of its continuation, those of an encoder_decoder's answer and the
    token 0 that it starts from. `stop` are texts before which a text is cut.
    """

    tokens: int = 128
    stop: tuple[str, ...] = ()
    repetition_penalty: float = 1.0

    def __post_init__(self) -> None:
        if self.tokens < 1:
            raise UserError(f"tokens must be at least 1, found {self.tokens}")
        if isinstance(self.stop, str):
            raise UserError(f"stop is a list of texts; write [{self.stop!r}]")
        if self.repetition_penalty <= 0:
            raise UserError(f"repetition_penalty must be above 0, found {self.repetition_penalty}")


@dataclass(frozen=True)
class Sampling(Decoding):
    """How the next token is drawn, and when to end.

    `temperature` 0 is greedy; `top_k` keeps the k likeliest (0: all) (Fan et al. 2018); `top_p` the likeliest that hold
    this probability (Holtzman et al. 2020); `min_p` those of at least this share of the likeliest one's probability
    (Nguyen et al. 2024, §3), each after the other. Same `seed`, same text, for each prompt of a batch.
    """

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    seed: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.temperature < 0:
            raise UserError(f"temperature must not be negative, found {self.temperature}")
        if self.top_k < 0 or not 0 < self.top_p <= 1:
            raise UserError(f"top_k must be ≥ 0 and 0 < top_p ≤ 1, found {self.top_k} and {self.top_p}")
        if not 0 <= self.min_p <= 1:
            raise UserError(f"min_p must be from 0 to 1, found {self.min_p}")


def sample_token(logits: Float[Array, "b v"], sampling: Sampling, keys: PRNGKeyArray) -> Int[Array, "b"]:
    """The next token of each row, each with its own key."""
    if sampling.temperature == 0:
        # `argmax` in two passes that a CPU does many at a time: it is 2 % of a token otherwise.
        places = jnp.where(logits == logits.max(-1, keepdims=True), jnp.arange(logits.shape[-1]), logits.shape[-1] - 1)
        return places.min(-1)
    logits = logits / sampling.temperature
    if sampling.top_k:
        smallest = jax.lax.top_k(logits, min(sampling.top_k, logits.shape[-1]))[0][:, -1:]
        logits = jnp.where(logits < smallest, -jnp.inf, logits)
    if sampling.top_p < 1:
        ordered = jnp.sort(logits, axis=-1, descending=True)
        mass_before = jnp.cumsum(jax.nn.softmax(ordered), axis=-1) - jax.nn.softmax(ordered)
        smallest = jnp.where(mass_before < sampling.top_p, ordered, jnp.inf).min(-1, keepdims=True)
        logits = jnp.where(logits < smallest, -jnp.inf, logits)
    if sampling.min_p:
        smallest = logits.max(-1, keepdims=True) + math.log(sampling.min_p)
        logits = jnp.where(logits < smallest, -jnp.inf, logits)
    return jax.vmap(jax.random.categorical)(keys, logits)


def mark_tokens(seen: Bool[Array, "b v"], ids: Int[Array, "b l"]) -> Bool[Array, "b v"]:
    """`seen` with these ids of each row marked; negative ones are no tokens of the vocabulary."""
    places = jnp.where(ids < 0, seen.shape[1], ids)
    return seen.at[jnp.arange(len(seen))[:, None], places].set(True, mode="drop")


def apply_repetition_penalty(
    scores: Float[Array, "b v"], seen: Bool[Array, "b v"], penalty: float
) -> Float[Array, "b v"]:
    """Scores of tokens that are `seen` divided by the penalty where positive, and multiplied by it where negative.

    The paper always divides, which makes a token of negative score likelier; Transformers defines it as here.
    """
    if penalty == 1:
        return scores
    return jnp.where(seen, jnp.where(scores < 0, scores * penalty, scores / penalty), scores)
