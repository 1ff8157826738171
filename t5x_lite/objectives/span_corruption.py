"""Span corruption: predict the spans that sentinels replace in the text (Raffel et al. 2020, §3.1.4).

Lengths, masks and sentinels are those of T5's own code: `random_spans_helper`, `random_spans_noise_mask`,
`noise_span_to_unique_sentinel` and `nonnoise_span_to_unique_sentinel`.
"""

from functools import lru_cache
from typing import ClassVar

import numpy as np
from jaxtyping import Bool, Int

from t5x_lite.errors import UserError
from t5x_lite.models.config import Family
from t5x_lite.objectives.features import Pair, segments_of
from t5x_lite.objectives.inputs_targets import InputsTargets, packed_sizes
from t5x_lite.objectives.objective import ExampleContext, Features, TokenRow, Vocabulary
from t5x_lite.schema import setting


class SpanCorruption(InputsTargets):
    """Predict the spans that sentinels stand for. Features: see `InputsTargets`.

    A row of the stream is one text without EOS between its documents, as in T5. Packed documents
    (`data.packing=documents`) are corrupted one by one and are segments of their own on both sides. EOS ends inputs and
    targets after the corruption, and is never in a span. `train.seq_len` is the length of the inputs in an
    encoder_decoder, and of inputs and targets together in a decoder.
    """

    name: ClassVar[str] = "span_corruption"
    one_text: ClassVar[bool] = True
    fills_spans: ClassVar[bool] = True

    noise_density: float = setting(0.15, "share of tokens in spans", gt=0, lt=1, source="Raffel et al. 2020, §3.1.4")
    mean_span: float = setting(3.0, "mean length of a span", unit="tokens", ge=1, source="§3.3.4; ByT5: 20")

    def check_context(self, context: ExampleContext) -> None:
        """Refuse a tokenizer without EOS, or with fewer sentinels than a row has spans."""
        context.vocabulary.require_eos(f"objective {self.name}")
        _, spans = count_noise(self.row_length(context), self.noise_density, self.mean_span)
        check_sentinels(self.name, spans, context)

    def row_length(self, context: ExampleContext) -> int:
        """Return the largest number of tokens whose corrupted form fits."""
        return raw_length(context.seq_len, context.family, self.noise_density, self.mean_span)

    def target_length(self, context: ExampleContext) -> int:
        _, targets = corrupted_length(self.row_length(context), self.noise_density, self.mean_span)
        return targets

    def packed_sizes(
        self, lengths: Int[np.ndarray, "documents parts"], context: ExampleContext
    ) -> Int[np.ndarray, "_ n"]:
        """Return the lengths of inputs and targets of each corrupted document; in a decoder, of both as one text."""
        inputs, targets = corrupted_lengths(lengths.sum(1), self.noise_density, self.mean_span)
        return packed_sizes(inputs, targets, context.family)

    def example(self, row: TokenRow, context: ExampleContext, rng: np.random.Generator) -> Features:
        """Corrupt each segment of the row."""
        eos = context.vocabulary.require_eos(f"objective {self.name}")
        pairs = []
        for segment in segments_of(row.segments):
            tokens = without_eos(row.tokens[segment], context.vocabulary)
            is_noise = noise_mask(len(tokens), self.noise_density, self.mean_span, rng)
            pairs.append(corrupt(tokens, is_noise, context.vocabulary.sentinels, eos))
        return self.features(pairs, context)


def without_eos(tokens: Int[np.ndarray, "l"], vocabulary: Vocabulary) -> Int[np.ndarray, "_"]:
    """Return the tokens of a text without EOS, which T5 appends only to what has been corrupted."""
    return tokens[tokens != vocabulary.eos]


def noise_counts(
    lengths: Int[np.ndarray, "n"], noise_density: float, mean_span: float
) -> tuple[Int[np.ndarray, "n"], Int[np.ndarray, "n"]]:
    """Return the numbers of noise tokens and of noise spans in texts of these lengths.

    There is at least one of each, and at least one token that is not noise. Products and quotients are rounded in
    float32, half to even, as in T5's TensorFlow code.
    """
    lengths = np.maximum(lengths, 2)
    noise = np.rint(lengths.astype(np.float32) * np.float32(noise_density)).astype(np.int64)
    noise = np.clip(noise, 1, lengths - 1)
    spans = np.maximum(np.rint(noise.astype(np.float32) / np.float32(mean_span)).astype(np.int64), 1)
    return noise, np.minimum(spans, lengths - noise)


@lru_cache(maxsize=4096)
def count_noise(length: int, noise_density: float, mean_span: float) -> tuple[int, int]:
    """Return the numbers of noise tokens and of noise spans in one text; see `noise_counts`."""
    noise, spans = noise_counts(np.array([length]), noise_density, mean_span)
    return int(noise[0]), int(spans[0])


def corrupted_lengths(
    lengths: Int[np.ndarray, "n"], noise_density: float, mean_span: float
) -> tuple[Int[np.ndarray, "n"], Int[np.ndarray, "n"]]:
    """Return the lengths of inputs and targets, sentinels and EOS included, of texts of these lengths."""
    noise, spans = noise_counts(lengths, noise_density, mean_span)
    return np.maximum(lengths - noise, 0) + spans + 1, noise + spans + 1


def corrupted_length(length: int, noise_density: float, mean_span: float) -> tuple[int, int]:
    """Return the lengths of inputs and targets of one text; see `corrupted_lengths`."""
    noise, spans = count_noise(length, noise_density, mean_span)
    return max(length - noise, 0) + spans + 1, noise + spans + 1


@lru_cache
def raw_length(seq_len: int, family: Family, noise_density: float, mean_span: float) -> int:
    """Return the largest number of tokens whose corrupted form fits `seq_len`.

    In an encoder_decoder the inputs must fit; in a decoder inputs and targets together (`packed_sizes`).

    Raises:
        UserError: not even two tokens fit.
    """

    def fits(length: int) -> bool:
        inputs, targets = corrupted_lengths(np.array([length]), noise_density, mean_span)
        return bool(packed_sizes(inputs, targets, family)[0, 0] <= seq_len)

    if not fits(2):
        raise UserError(f"train.seq_len {seq_len} leaves no room for a corrupted span; make it larger")
    length = 2
    while fits(length + 1):
        length += 1
    if noise_density == 0.5 and family == "encoder_decoder":
        inputs, targets = corrupted_length(length, noise_density, mean_span)
        if targets > inputs:
            length -= 1  # T5's code does the same to keep both lengths equal
    return length


def noise_mask(
    length: int, noise_density: float, mean_span: float, rng: np.random.Generator
) -> Bool[np.ndarray, "{length}"]:
    """Mark the noise in a text of this length.

    Spans of noise and the stretches of kept tokens between them have random lengths. The first stretch is kept.
    """
    noise, spans = count_noise(length, noise_density, mean_span)
    run_lengths = np.empty(2 * spans, np.int64)
    run_lengths[::2] = _random_segmentation(max(length, 2) - noise, spans, rng)
    run_lengths[1::2] = _random_segmentation(noise, spans, rng)
    is_noise_run = np.arange(2 * spans) % 2 == 1
    return np.repeat(is_noise_run, run_lengths)[:length]


def _random_segmentation(items: int, segments: int, rng: np.random.Generator) -> Int[np.ndarray, "{segments}"]:
    """Divide `items` into non-empty segments, every division equally likely, and return their lengths."""
    borders = np.empty(segments + 1, np.int64)
    borders[0] = 0
    borders[-1] = items
    borders[1:-1] = rng.choice(items - 1, segments - 1, replace=False, shuffle=False) + 1
    borders.sort()
    return borders[1:] - borders[:-1]


def corrupt(
    tokens: Int[np.ndarray, "l"], is_noise: Bool[np.ndarray, "l"], sentinels: tuple[int, ...], eos: int
) -> Pair:
    """Return inputs and targets, each ended by EOS.

    In the inputs a sentinel replaces each span of noise; in the targets a sentinel replaces each stretch between.
    """
    inputs = _replace_by_sentinels(tokens, is_noise, sentinels, eos)
    targets = _replace_by_sentinels(tokens, ~is_noise, sentinels, eos)
    return inputs, targets


def _replace_by_sentinels(
    tokens: Int[np.ndarray, "l"], is_replaced: Bool[np.ndarray, "l"], sentinels: tuple[int, ...], eos: int
) -> Int[np.ndarray, "_"]:
    """Replace each run of marked tokens by the next sentinel, and append EOS."""
    is_first_of_run = is_replaced.copy()
    is_first_of_run[1:] &= ~is_replaced[:-1]
    (run_starts,) = is_first_of_run.nonzero()
    replaced = np.empty(len(tokens) + 1, np.int32)
    replaced[:-1] = tokens
    replaced[-1] = eos
    replaced[run_starts] = sentinels[: len(run_starts)]
    is_shown = is_first_of_run | ~is_replaced
    return replaced[np.append(is_shown, True)]


def check_sentinels(objective: str, spans: int, context: ExampleContext) -> None:
    """Refuse a vocabulary with too few sentinels for a row of this many spans.

    Raises:
        UserError: with both numbers.
    """
    sentinels = len(context.vocabulary.sentinels)
    # Targets may begin and end with a stretch that is kept, which takes one sentinel more than there are spans.
    if sentinels < spans + 1:
        raise UserError(
            f"objective {objective}: a row of train.seq_len {context.seq_len} has up to {spans} spans, the tokenizer "
            f"has {sentinels} sentinels (<extra_id_0>, …); set tokenizer.*.extra_ids to at least {spans + 1}, shorten "
            f"train.seq_len or lengthen objective.{objective}.mean_span"
        )
