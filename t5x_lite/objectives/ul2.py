"""UL2: a mixture of denoisers, each told to the model by a mode token (Tay et al. 2023, §3.1)."""

from functools import lru_cache
from typing import Annotated, Any, ClassVar

import numpy as np
from pydantic import Strict

from t5x_lite.errors import UserError
from t5x_lite.models.config import Family
from t5x_lite.objectives.features import InputsTargets, Pair, segments_of
from t5x_lite.objectives.objective import ExampleContext, Features, TokenRow
from t5x_lite.objectives.span_corruption import check_sentinels, corrupt, corrupted_lengths, noise_mask, spans_in
from t5x_lite.schema import Config, setting


class Denoiser(Config):
    """Span corruption of one strength; `sequential` predicts the end of the text instead."""

    mode: str = setting(..., "token before the inputs; it must be in the tokenizer")
    noise_density: float = setting(..., "share of tokens to predict", gt=0, lt=1)
    mean_span: float = setting(3.0, "mean length of a span", unit="tokens", ge=1)
    sequential: bool = setting(False, "one span at the end, of 1 to twice the density of the text")


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
    """Each text by one denoiser, drawn uniformly. Features: see `features.text_to_text`."""

    name: ClassVar[str] = "ul2"
    one_text: ClassVar[bool] = True

    denoisers: Annotated[tuple[Denoiser, ...], Strict(False)] = setting(
        PUBLISHED, "the mixture", min_length=1, source="Tay et al. 2023, Table 1"
    )

    def check_context(self, context: ExampleContext) -> None:
        """Refuse a tokenizer without the mode tokens or with too few sentinels."""
        for denoiser in self.denoisers:
            context.vocabulary.one_of(self.name, denoiser.mode)
            if not denoiser.sequential:
                spans = spans_in(self.row_length(context), denoiser.noise_density, denoiser.mean_span)[1]
                check_sentinels(self.name, spans, context)

    def row_length(self, context: ExampleContext) -> int:
        """The most tokens that fit under every denoiser."""
        return _row_length(self.denoisers, context.seq_len, context.family)

    def target_length(self, context: ExampleContext) -> int:
        return int(_longest(self.denoisers, self.row_length(context), context.family)[-1])

    def sizes(self, lengths: np.ndarray, context: ExampleContext) -> np.ndarray:
        """Room of each packed document under the denoiser that needs most."""
        return np.stack(_longest(self.denoisers, lengths.sum(1), context.family), 1)

    def example(self, row: TokenRow, context: ExampleContext, rng: np.random.Generator) -> Features:
        """Each segment of the row under a denoiser of its own."""
        pairs = [self._pair(row.tokens[part], context, rng) for part in segments_of(row.segments)]
        return self.features(pairs, context)

    def _pair(self, tokens: np.ndarray, context: ExampleContext, rng: np.random.Generator) -> Pair:
        denoiser = self.denoisers[int(rng.integers(len(self.denoisers)))]
        mode = [context.vocabulary.named[denoiser.mode]]
        if denoiser.sequential:
            end = int(rng.integers(1, int(_longest_end(len(tokens), denoiser)) + 1)) if len(tokens) > 1 else 0
            cut = len(tokens) - end
            eos = [context.vocabulary.end(self.name)]
            inputs, targets = tokens[:cut], np.concatenate([tokens[cut:], eos])
        else:
            noise = noise_mask(len(tokens), denoiser.noise_density, denoiser.mean_span, rng)
            inputs, targets = corrupt(tokens, noise, context.vocabulary)
        return np.concatenate([mode, inputs]).astype(np.int32), targets.astype(np.int32)


@lru_cache
def _row_length(denoisers: tuple[Denoiser, ...], seq_len: int, family: Family) -> int:
    for length in range(seq_len, 1, -1):
        if all(size <= seq_len for size in _longest(denoisers, length, family)):
            return length
    raise UserError(f"train.seq_len {seq_len} leaves no room for UL2's spans; make it larger")


def _longest(denoisers: tuple[Denoiser, ...], length: Any, family: Family) -> tuple[Any, ...]:
    """Inputs and targets, or both together, under the denoiser that needs most."""
    inputs, targets = zip(*(_size(length, denoiser) for denoiser in denoisers), strict=True)
    if family == "encoder_decoder":
        return np.max(inputs, axis=0), np.max(targets, axis=0)
    return (np.max(np.add(inputs, targets) - 1, axis=0),)


def _size(length: Any, denoiser: Denoiser) -> tuple[Any, Any]:
    if denoiser.sequential:
        return np.maximum(length, 2), _longest_end(length, denoiser) + 1
    inputs, targets = corrupted_lengths(length, denoiser.noise_density, denoiser.mean_span)
    return inputs + 1, targets


def _longest_end(length: Any, denoiser: Denoiser) -> Any:
    wanted = np.maximum(np.floor(2 * denoiser.noise_density * np.asarray(length)).astype(np.int64), 1)
    return np.minimum(wanted, np.maximum(np.asarray(length) - 1, 1))
