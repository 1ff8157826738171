"""UL2: a mixture of denoisers. A mode token tells the model which denoiser made a text (Tay et al. 2023, §3.1)."""

from functools import lru_cache
from typing import Annotated, ClassVar

import numpy as np
from jaxtyping import Int
from pydantic import Strict

from t5x_lite.errors import UserError
from t5x_lite.models.config import Family
from t5x_lite.objectives.features import Pair, segments_of
from t5x_lite.objectives.inputs_targets import InputsTargets, packed_sizes
from t5x_lite.objectives.objective import ExampleContext, Features, TokenRow, Vocabulary
from t5x_lite.objectives.span_corruption import (
    check_sentinels,
    corrupt,
    corrupted_lengths,
    count_noise,
    noise_mask,
    without_eos,
)
from t5x_lite.schema import Config, setting


class Denoiser(Config):
    """Span corruption of one strength, or with `sequential` the prediction of the end of the text."""

    mode: str = setting(..., "token before the inputs; it must be in the tokenizer")
    noise_density: float = setting(..., "share of tokens to predict", gt=0, lt=1)
    mean_span: float = setting(3.0, "mean length of a span", unit="tokens", ge=1)
    sequential: bool = setting(False, "one span at the end, of 1 token to twice the density of the text")


PUBLISHED = (
    Denoiser(mode="[R]", noise_density=0.15, mean_span=3.0),
    Denoiser(mode="[R]", noise_density=0.15, mean_span=8.0),
    Denoiser(mode="[S]", noise_density=0.25, sequential=True),
    Denoiser(mode="[X]", noise_density=0.5, mean_span=3.0),
    Denoiser(mode="[X]", noise_density=0.5, mean_span=8.0),
    Denoiser(mode="[X]", noise_density=0.15, mean_span=64.0),
    Denoiser(mode="[X]", noise_density=0.5, mean_span=64.0),
)
"""Tay et al. 2023, Table 1: seven denoisers, mixed equally."""


class UL2(InputsTargets):
    """Corrupt each text by a denoiser that is drawn uniformly. Features: see `InputsTargets`."""

    name: ClassVar[str] = "ul2"
    one_text: ClassVar[bool] = True
    fills_spans: ClassVar[bool] = True

    denoisers: Annotated[tuple[Denoiser, ...], Strict(False)] = setting(
        PUBLISHED, "the mixture", min_length=1, source="Tay et al. 2023, Table 1"
    )

    def check_context(self, context: ExampleContext) -> None:
        """Refuse a tokenizer without EOS or the mode tokens, or with too few sentinels."""
        context.vocabulary.require_eos(f"objective {self.name}")
        length = self.row_length(context)
        for denoiser in self.denoisers:
            context.vocabulary.require_token(f"objective {self.name}", denoiser.mode)
            if not denoiser.sequential:
                _, spans = count_noise(length, denoiser.noise_density, denoiser.mean_span)
                check_sentinels(self.name, spans, context)

    def row_length(self, context: ExampleContext) -> int:
        """Return the largest number of tokens that fit under every denoiser."""
        return _row_length(self.denoisers, context.seq_len, context.family)

    def target_length(self, context: ExampleContext) -> int:
        largest = _largest_sizes(self.denoisers, np.array([self.row_length(context)]), context.family)
        return int(largest[0, -1])

    def packed_sizes(
        self, lengths: Int[np.ndarray, "documents parts"], context: ExampleContext
    ) -> Int[np.ndarray, "_ n"]:
        """Return the room of each document under the denoiser that needs most."""
        return _largest_sizes(self.denoisers, lengths.sum(1), context.family)

    def example(self, row: TokenRow, context: ExampleContext, rng: np.random.Generator) -> Features:
        """Corrupt each segment of the row by a denoiser of its own."""
        pairs = []
        for segment in segments_of(row.segments):
            tokens = without_eos(row.tokens[segment], context.vocabulary)
            pairs.append(self._pair(tokens, context, rng))
        return self.features(pairs, context)

    def infilling_prefix(self, vocabulary: Vocabulary) -> tuple[int, ...]:
        """Return the mode token of the denoiser that hides the shortest spans and the fewest."""
        with_spans = [denoiser for denoiser in self.denoisers if not denoiser.sequential]
        if not with_spans:
            raise UserError(f"objective {self.name}: all its denoisers are sequential, so that none fills in a token")
        weakest = min(with_spans, key=_strength)
        return (vocabulary.require_token(f"objective {self.name}", weakest.mode),)

    def _pair(self, tokens: np.ndarray, context: ExampleContext, rng: np.random.Generator) -> Pair:
        denoiser = self.denoisers[int(rng.integers(len(self.denoisers)))]
        mode = context.vocabulary.named[denoiser.mode]
        eos = context.vocabulary.require_eos(f"objective {self.name}")
        if denoiser.sequential:
            end = 0
            if len(tokens) > 1:
                end = int(rng.integers(1, _longest_end(np.array([len(tokens)]), denoiser)[0] + 1))
            cut = len(tokens) - end
            inputs = tokens[:cut]
            targets = np.append(tokens[cut:], eos)
        else:
            is_noise = noise_mask(len(tokens), denoiser.noise_density, denoiser.mean_span, rng)
            inputs, targets = corrupt(tokens, is_noise, context.vocabulary.sentinels, eos)
        return np.concatenate([[mode], inputs]).astype(np.int32), targets.astype(np.int32)


def _strength(denoiser: Denoiser) -> tuple[float, float]:
    return denoiser.mean_span, denoiser.noise_density


@lru_cache
def _row_length(denoisers: tuple[Denoiser, ...], seq_len: int, family: Family) -> int:
    lengths = np.arange(2, seq_len + 1)
    fits = (_largest_sizes(denoisers, lengths, family) <= seq_len).all(axis=1)
    if not fits.any():
        raise UserError(f"train.seq_len {seq_len} leaves no room for UL2's spans; make it larger")
    return int(lengths[fits][-1])


def _largest_sizes(
    denoisers: tuple[Denoiser, ...], lengths: Int[np.ndarray, "n"], family: Family
) -> Int[np.ndarray, "n _"]:
    """Return for each text the room under the denoiser that needs most.

    The columns are those of `packed_sizes`.
    """
    sizes = []
    for denoiser in denoisers:
        inputs, targets = _denoised_lengths(lengths, denoiser)
        sizes.append(packed_sizes(inputs, targets, family))
    return np.max(sizes, axis=0)


def _denoised_lengths(
    lengths: Int[np.ndarray, "n"], denoiser: Denoiser
) -> tuple[Int[np.ndarray, "n"], Int[np.ndarray, "n"]]:
    """Return the lengths of inputs and targets, mode token included, that texts of these lengths become."""
    if denoiser.sequential:
        return np.maximum(lengths, 2), _longest_end(lengths, denoiser) + 1
    inputs, targets = corrupted_lengths(lengths, denoiser.noise_density, denoiser.mean_span)
    return inputs + 1, targets


def _longest_end(lengths: Int[np.ndarray, "n"], denoiser: Denoiser) -> Int[np.ndarray, "n"]:
    """Return the largest number of tokens that the sequential denoiser predicts; one token stays in the inputs."""
    twice_the_density = np.floor(2 * denoiser.noise_density * lengths).astype(np.int64)
    return np.clip(twice_the_density, 1, np.maximum(lengths - 1, 1))
