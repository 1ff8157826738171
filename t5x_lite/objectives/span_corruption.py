"""Span corruption: sentinels replace spans of the text, which are written out after them (Raffel et al. 2020, §3.1.4).

Lengths, masks and sentinels are those of T5's own code, `random_spans_helper`, `random_spans_noise_mask`,
`noise_span_to_unique_sentinel` and `nonnoise_span_to_unique_sentinel`.
"""

from functools import lru_cache
from typing import Any, ClassVar

import numpy as np

from t5x_lite.errors import UserError
from t5x_lite.models.config import Family
from t5x_lite.objectives.features import InputsTargets, Pair, segments_of
from t5x_lite.objectives.objective import ExampleContext, Features, TokenRow, Vocabulary
from t5x_lite.schema import setting


class SpanCorruption(InputsTargets):
    """Fill in the spans that sentinels stand for. Features: see `features.text_to_text`.

    A row of the stream is one text, as T5 cut it; packed documents (`data.packing=documents`) are corrupted each by
    itself and are segments of their own on both sides. For an encoder_decoder `train.seq_len` is the inputs' length,
    for a decoder that of inputs and targets together.
    """

    name: ClassVar[str] = "span_corruption"
    one_text: ClassVar[bool] = True

    noise_density: float = setting(0.15, "share of tokens in spans", gt=0, lt=1, source="Raffel et al. 2020, §3.1.4")
    mean_span: float = setting(3.0, "mean length of a span", unit="tokens", ge=1, source="§3.3.4; ByT5: 20")

    def check_context(self, context: ExampleContext) -> None:
        """Refuse a tokenizer without EOS, or with fewer sentinels than a row has spans."""
        context.vocabulary.end(self.name)
        check_sentinels(self.name, spans_in(self.row_length(context), self.noise_density, self.mean_span)[1], context)

    def row_length(self, context: ExampleContext) -> int:
        """The most tokens whose corrupted form fits."""
        return raw_length(context.seq_len, context.family, self.noise_density, self.mean_span)

    def target_length(self, context: ExampleContext) -> int:
        return int(corrupted_lengths(self.row_length(context), self.noise_density, self.mean_span)[1])

    def sizes(self, lengths: np.ndarray, context: ExampleContext) -> np.ndarray:
        """Inputs and targets of documents that are corrupted each by itself."""
        whole = np.stack(corrupted_lengths(lengths.sum(1), self.noise_density, self.mean_span), 1)
        return whole if context.family == "encoder_decoder" else whole.sum(1, keepdims=True) - 1

    def example(self, row: TokenRow, context: ExampleContext, rng: np.random.Generator) -> Features:
        """Each segment of the row corrupted; a row of the stream is one."""
        pairs = [self._pair(row.tokens[part], context, rng) for part in segments_of(row.segments)]
        return self.features(pairs, context)

    def _pair(self, tokens: np.ndarray, context: ExampleContext, rng: np.random.Generator) -> Pair:
        return corrupt(tokens, noise_mask(len(tokens), self.noise_density, self.mean_span, rng), context.vocabulary)


def spans_in(length: Any, noise_density: float, mean_span: float) -> tuple[Any, Any]:
    """Noise tokens and noise spans in texts of `length`: at least one of each, and one token that is no noise.

    Products and quotients are rounded in float32, half to even, as T5's TensorFlow code does.
    """
    length = np.maximum(length, 2)
    noise = np.rint(np.float32(length) * np.float32(noise_density)).astype(np.int64)
    noise = np.clip(noise, 1, length - 1)
    spans = np.maximum(np.rint(np.float32(noise) / np.float32(mean_span)).astype(np.int64), 1)
    return noise, np.minimum(spans, length - noise)


def corrupted_lengths(length: Any, noise_density: float, mean_span: float) -> tuple[Any, Any]:
    """Tokens of inputs and targets, sentinels and EOS included, that texts of `length` become."""
    noise, spans = spans_in(length, noise_density, mean_span)
    return np.maximum(length - noise, 0) + spans + 1, noise + spans + 1


@lru_cache
def raw_length(seq_len: int, family: Family, noise_density: float, mean_span: float) -> int:
    """The most tokens whose inputs (of a decoder: inputs and targets, the last only predicted) fit `seq_len`.

    Raises:
        UserError: not even two tokens fit.
    """

    def fits(length: int) -> bool:
        inputs, targets = corrupted_lengths(length, noise_density, mean_span)
        return (inputs if family == "encoder_decoder" else inputs + targets - 1) <= seq_len

    if not fits(2):
        raise UserError(f"train.seq_len {seq_len} leaves no room for a corrupted span; make it larger")
    length = 2
    while fits(length + 1):
        length += 1
    if noise_density == 0.5 and family == "encoder_decoder":
        inputs, targets = corrupted_lengths(length, noise_density, mean_span)
        length -= targets > inputs  # so does T5, to keep both lengths equal
    return length


def noise_mask(length: int, noise_density: float, mean_span: float, rng: np.random.Generator) -> np.ndarray:
    """Which tokens are noise: spans of random lengths that add up to the density, between stretches that are kept."""
    noise, spans = _spans_in(length, noise_density, mean_span)
    runs = np.empty(2 * spans, np.int64)
    runs[::2] = _random_segmentation(max(length, 2) - noise, spans, rng)
    runs[1::2] = _random_segmentation(noise, spans, rng)
    return np.repeat(np.arange(2 * spans) % 2 == 1, runs)[:length]


@lru_cache(maxsize=4096)
def _spans_in(length: int, noise_density: float, mean_span: float) -> tuple[int, int]:
    noise, spans = spans_in(length, noise_density, mean_span)
    return int(noise), int(spans)


def _random_segmentation(items: int, segments: int, rng: np.random.Generator) -> np.ndarray:
    """Lengths of `segments` non-empty parts of `items`, every such division equally likely."""
    borders = np.empty(segments + 1, np.int64)
    borders[0], borders[-1] = 0, items
    borders[1:-1] = rng.choice(items - 1, segments - 1, replace=False, shuffle=False) + 1
    borders.sort()
    return borders[1:] - borders[:-1]


def corrupt(tokens: np.ndarray, noise: np.ndarray, vocabulary: Vocabulary) -> Pair:
    """Inputs with each span of noise, targets with each stretch between replaced by the next sentinel; then EOS."""
    eos = vocabulary.end("span_corruption")
    inputs, targets = (_with_sentinels(tokens, hidden, vocabulary.sentinels, eos) for hidden in (noise, ~noise))
    return inputs, targets


def _with_sentinels(tokens: np.ndarray, hidden: np.ndarray, sentinels: tuple[int, ...], eos: int) -> np.ndarray:
    first, made = hidden.copy(), np.empty(len(tokens) + 1, np.int32)
    first[1:] &= ~hidden[:-1]
    (places,) = first.nonzero()
    made[:-1], made[-1] = tokens, eos
    made[places] = sentinels[: len(places)]
    return made[np.append(first | ~hidden, True)]


def check_sentinels(objective: str, spans: int, context: ExampleContext) -> None:
    """Refuse a vocabulary with too few sentinels.

    Raises:
        UserError: with both numbers.
    """
    have = len(context.vocabulary.sentinels)
    # Targets may begin and end with a stretch that is kept, which takes a sentinel more than there are spans.
    if have < spans + 1:
        raise UserError(
            f"objective {objective}: a row of train.seq_len {context.seq_len} has up to {spans} spans, the tokenizer "
            f"has {have} sentinels (<extra_id_0>, …); set tokenizer.*.extra_ids to at least {spans + 1}, shorten "
            f"train.seq_len or lengthen objective.{objective}.mean_span"
        )
