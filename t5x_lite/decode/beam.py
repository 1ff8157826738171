"""Beam search: the likeliest continuations that can be found by keeping the best few at every token."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from t5x_lite.decode.sampling import Decoding, apply_repetition_penalty, mark_tokens
from t5x_lite.errors import UserError
from t5x_lite.models.sharding import constrain
from t5x_lite.models.transformer import Cache


@dataclass(frozen=True)
class Beam(Decoding):
    """Search with `beams` hypotheses; the best is the one of highest log-probability / ((5 + n) / 6)^length_penalty.

    n counts its tokens with EOS (Wu et al. 2016, eq. 14); 0 ranks by probability alone. The defaults are T5's for
    translation and summaries (Raffel et al. 2020, §3.7). The search ends when no open hypothesis can become better
    than the ended ones; those that are open after `tokens` tokens count as ended.
    """

    beams: int = 4
    length_penalty: float = 0.6

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.beams < 1 or self.length_penalty < 0:
            raise UserError(
                f"beams must be at least 1 and length_penalty not negative, found {self.beams} and "
                f"{self.length_penalty}"
            )

    def penalty(self, length: Any) -> Any:
        """What the log-probability of so many tokens is divided by."""
        return ((5 + length) / 6) ** self.length_penalty


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class _Hypotheses:
    """Those of each prompt, the best first; -inf stands for none."""

    tokens: Int[Array, "b n t"]
    scores: Float[Array, "b n"]

    def best(self, count: int) -> tuple["_Hypotheses", Int[Array, "b count"]]:
        """The best of them, and which they were."""
        scores, places = jax.lax.top_k(self.scores, count)
        return _Hypotheses(_taken(self.tokens, places), scores), places


def beam_search(
    made: Callable[[Any], Any],
    beam: Beam,
    eos: int | None,
    params: Any,
    logits: Float[Array, "bn v"],
    seen: Bool[Array, "bn v"],
    cache: Cache,
) -> tuple[Int[Array, "b n t"], Float[Array, "b n"]]:
    """The hypotheses that ended best, with their scores; 0 after EOS.

    `made` gives the model of the weights `params`. `logits`, `seen` tokens and `cache` are those of every prompt,
    `beams` times each.
    """
    count, length, vocab = beam.beams, beam.tokens, logits.shape[-1]
    batch = logits.shape[0] // count
    none = _Hypotheses(jnp.zeros((batch, count, length), jnp.int32), jnp.full((batch, count), -jnp.inf))
    # All beams of a prompt are the same in the beginning: one of them is enough.
    begun = replace(none, scores=none.scores.at[:, 0].set(0))

    def improvable(carry: tuple[Any, ...]) -> Array:
        step, open_, ended, *_ = carry
        return (step < length) & jnp.any(open_.scores[:, 0] / beam.penalty(length) > ended.scores[:, -1])

    def one(carry: tuple[Any, ...]) -> tuple[Any, ...]:
        model = made(params)
        step, open_, ended, logits, seen, cache = carry
        log_p = apply_repetition_penalty(jax.nn.log_softmax(logits), seen, beam.repetition_penalty).reshape(
            batch, count, vocab
        )
        # Twice as many as are kept: at most one of each hypothesis ends.
        scores, places = jax.lax.top_k((open_.scores[..., None] + log_p).reshape(batch, -1), 2 * count)
        parents, tokens = places // vocab, places % vocab
        longer = _Hypotheses(_taken(open_.tokens, parents).at[:, :, step].set(tokens), scores)
        ends = (tokens == (-1 if eos is None else eos)) | (step == length - 1)

        counts = ends & (jnp.arange(2 * count) < count)  # one that would not be kept does not end either
        scores = jnp.where(counts, scores / beam.penalty(step + 1), -jnp.inf)
        both = jax.tree.map(lambda a, b: jnp.concatenate([a, b], 1), ended, replace(longer, scores=scores))
        ended, _ = both.best(count)
        open_, kept = replace(longer, scores=jnp.where(ends, -jnp.inf, longer.scores)).best(count)

        rows = (jnp.arange(batch)[:, None] * count + _taken(parents, kept)).reshape(-1)
        # The prompt's segments and an encoder's keys and values are the same for all beams of a prompt.
        cache = reshard_cache(replace(cache, layers=jax.tree.map(lambda a: a[:, rows], cache.layers)))
        token = _taken(tokens, kept).reshape(-1, 1)
        hidden, cache = model.extend(token, jnp.ones_like(token), cache)
        return step + 1, open_, ended, model.logits(hidden)[:, 0], mark_tokens(seen[rows], token), cache

    _, _, ended, *_ = jax.lax.while_loop(improvable, one, (jnp.int32(0), begun, none, logits, seen, cache))
    return constrain(ended.tokens, None, None, None), constrain(ended.scores, None, None)


def repeat_rows(cache: Cache, count: int) -> Cache:
    """The cache with every row `count` times, one after the other."""

    def rows(tree: Any, axis: int) -> Any:
        return jax.tree.map(lambda a: jnp.repeat(a, count, axis), tree)

    memory = cache.memory
    if memory is not None:
        memory = replace(memory, places=replace(memory.places, segment_ids=rows(memory.places.segment_ids, 0)))
    segments, remembered = rows(cache.segment_ids, 0), rows(cache.remembered, 1)
    return Cache(rows(cache.layers, 1), segments, cache.index, memory, remembered)


def reshard_cache(cache: Cache) -> Cache:
    """The cache laid out on the mesh: rows over the axes of the batch, heads over `tensor`."""

    def on_mesh(tree: Any) -> Any:
        return jax.tree.map(lambda a: constrain(a, "layers", "batch", "kv_heads", None, None), tree)

    return replace(cache, layers=on_mesh(cache.layers), remembered=on_mesh(cache.remembered))


def _taken(x: Array, places: Int[Array, "b n"]) -> Array:
    """Of each row of `x` those at its places."""
    return jnp.take_along_axis(x, places.reshape(*places.shape, *[1] * (x.ndim - 2)), axis=1)
