"""Beam search: keep the most likely few continuations of each prompt at every token."""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PyTree, Shaped

from t5x_lite.decode.generative_module import GenerativeModule
from t5x_lite.decode.logit_rules import LogitRules, append_tokens
from t5x_lite.decode.sampling import Decoding
from t5x_lite.decode.state import DecodeState, reshard_cache, select_beams
from t5x_lite.errors import UserError
from t5x_lite.models.sharding import constrain


@dataclass(frozen=True)
class Beam(Decoding):
    """The settings of beam search.

    A hypothesis of n tokens, EOS included, has the score log-probability / ((5 + n) / 6)^length_penalty (Wu et al.
    2016, eq. 14). The defaults are T5's for translation and summaries (Raffel et al. 2020, §3.7). The search ends when
    no live hypothesis can become better than the finished ones. Hypotheses that are still live after `tokens` tokens
    count as finished.

    Attributes:
        beams: hypotheses that are kept for each prompt.
        length_penalty: 0 ranks by log-probability alone; larger values favour longer hypotheses.
    """

    beams: int = 4
    length_penalty: float = 0.6

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.beams < 1 or not 0 <= self.length_penalty < math.inf:
            raise UserError(
                f"beams must be at least 1 and length_penalty not negative, but they are {self.beams} and "
                f"{self.length_penalty}"
            )

    def length_divisor(self, length: int | Int[Array, ""]) -> float | Float[Array, ""]:
        """Return what the log-probability of a hypothesis of `length` tokens is divided by."""
        return ((5 + length) / 6) ** self.length_penalty


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Hypotheses:
    """Continuations of each prompt, the best first.

    Attributes:
        tokens: padded with 0.
        scores: -inf marks an empty slot.
    """

    tokens: Int[Array, "b n t"]
    scores: Float[Array, "b n"]

    def select_best(self, count: int) -> tuple["Hypotheses", Int[Array, "b count"]]:
        """Return the `count` best hypotheses of each prompt, and their indices."""
        scores, indices = jax.lax.top_k(self.scores, count)
        return Hypotheses(_take(self.tokens, indices), scores), indices


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class BeamState:
    """The state of the search after `step` tokens.

    The rows of `logits` and `decode_state` are the live hypotheses, `beams` of each prompt one after the other.

    Attributes:
        live: hypotheses that can go on; their scores are log-probabilities.
        finished: hypotheses that have ended; their scores include the length penalty.
        logits: scores of the token that comes next.
    """

    step: Int[Array, ""]
    live: Hypotheses
    finished: Hypotheses
    logits: Float[Array, "bn v"]
    decode_state: DecodeState


def beam_search(
    build_module: Callable[[PyTree[Array]], GenerativeModule],
    beam: Beam,
    rules: LogitRules,
    params: PyTree[Array],
    logits: Float[Array, "bn v"],
    decode_state: DecodeState,
) -> tuple[Int[Array, "b n t"], Float[Array, "b n"]]:
    """Search for the best continuations of each prompt.

    Args:
        build_module: makes the module from `params`.
        beam: the settings of the search, without those of rules; see `Decoding.without_rules`.
        rules: rules that change the scores, and the tokens that end a hypothesis.
        params: weights.
        logits: scores of the first new token; the rows of a prompt are repeated `beam.beams` times.
        decode_state: the state after prefill, with the same rows.

    Returns:
        The tokens of the best hypotheses, 0 after EOS, and their scores.
    """

    def can_improve(state: BeamState) -> Bool[Array, ""]:
        best_possible = state.live.scores[:, 0] / beam.length_divisor(beam.tokens)
        return (state.step < beam.tokens) & jnp.any(best_possible > state.finished.scores[:, -1])

    def advance(state: BeamState) -> BeamState:
        return _advance(build_module(params), beam, rules, state)

    initial = _initial_state(beam, logits, decode_state)
    finished = jax.lax.while_loop(can_improve, advance, initial).finished
    return constrain(finished.tokens, None, None, None), constrain(finished.scores, None, None)


def _initial_state(beam: Beam, logits: Float[Array, "bn v"], decode_state: DecodeState) -> BeamState:
    """Return the state before the first token.

    The beams of a prompt are still identical, so all but the first are left empty.
    """
    batch = logits.shape[0] // beam.beams
    empty = Hypotheses(
        tokens=jnp.zeros((batch, beam.beams, beam.tokens), jnp.int32),
        scores=jnp.full((batch, beam.beams), -jnp.inf),
    )
    live = replace(empty, scores=empty.scores.at[:, 0].set(0))
    return BeamState(jnp.int32(0), live, empty, logits, decode_state)


def _advance(module: GenerativeModule, beam: Beam, rules: LogitRules, state: BeamState) -> BeamState:
    """Add a token to every live hypothesis, move those that end to `finished`, and run the model on the others."""
    candidates, parents, tokens = _extend_live(rules, state)
    is_last_step = state.step == beam.tokens - 1
    ends = rules.ends(tokens) | is_last_step
    finished = _merge_finished(beam, state, candidates, ends)
    candidates = replace(candidates, scores=jnp.where(ends, -jnp.inf, candidates.scores))
    live, survivors = candidates.select_best(beam.beams)

    batch = parents.shape[0]
    first_rows = jnp.arange(batch)[:, None] * beam.beams
    rows = (first_rows + _take(parents, survivors)).reshape(-1)
    last_tokens = _take(tokens, survivors).reshape(-1, 1)
    cache = reshard_cache(select_beams(state.decode_state.cache, rows))
    hidden, cache = module.decode_step(last_tokens, jnp.ones_like(last_tokens), cache)
    history = append_tokens(state.decode_state.history[rows], last_tokens)
    return BeamState(state.step + 1, live, finished, module.logits(hidden)[:, 0], DecodeState(history, cache))


def _extend_live(
    rules: LogitRules, state: BeamState
) -> tuple[Hypotheses, Int[Array, "b candidates"], Int[Array, "b candidates"]]:
    """Extend the live hypotheses by one token: return the best continuations, their parents and their last tokens.

    Of each hypothesis at most one continuation for each end token ends, so one more stays live: as many candidates are
    returned for each beam, and at least two.
    """
    batch, beams, _ = state.live.tokens.shape
    vocab = state.logits.shape[-1]
    log_probs = jax.nn.log_softmax(state.logits)
    log_probs = rules.apply(log_probs, state.decode_state.history, state.step)
    totals = state.live.scores[..., None] + log_probs.reshape(batch, beams, vocab)
    candidates = beams * max(2, 1 + rules.end_tokens.shape[0])
    scores, indices = jax.lax.top_k(totals.reshape(batch, -1), min(candidates, beams * vocab))
    parents = indices // vocab
    tokens = indices % vocab
    sequences = _take(state.live.tokens, parents).at[:, :, state.step].set(tokens)
    return Hypotheses(sequences, scores), parents, tokens


def _merge_finished(
    beam: Beam, state: BeamState, candidates: Hypotheses, ends: Bool[Array, "b candidates"]
) -> Hypotheses:
    """Return the best of the hypotheses that were finished before and of the candidates that end with this token."""
    # A candidate that is not among the best `beams` would not have been kept, so it does not count as finished.
    is_kept = jnp.arange(ends.shape[1]) < beam.beams
    scores = candidates.scores / beam.length_divisor(state.step + 1)
    newly_finished = replace(candidates, scores=jnp.where(ends & is_kept, scores, -jnp.inf))
    both = jax.tree.map(lambda old, new: jnp.concatenate([old, new], axis=1), state.finished, newly_finished)
    finished, _ = both.select_best(beam.beams)
    return finished


def _take(values: Shaped[Array, "b n *rest"], indices: Int[Array, "b m"]) -> Shaped[Array, "b m *rest"]:
    """Take the values at the indices of each row."""
    indices = indices.reshape(*indices.shape, *[1] * (values.ndim - 2))
    return jnp.take_along_axis(values, indices, axis=1)
