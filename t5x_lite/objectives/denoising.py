"""Denoising: rebuild a text with permuted sentences and hidden spans, as BART does (Lewis et al. 2020, §2.2)."""

from typing import ClassVar

import numpy as np
from jaxtyping import Int

from t5x_lite.models.config import Family
from t5x_lite.objectives.features import Pair, segments_of
from t5x_lite.objectives.inputs_targets import InputsTargets
from t5x_lite.objectives.masked import MASK
from t5x_lite.objectives.objective import ExampleContext, Features, TokenRow
from t5x_lite.objectives.row_kinds import DIVIDED_TEXTS, TOKENS, RowKind
from t5x_lite.objectives.span_corruption import without_eos
from t5x_lite.objectives.special_tokens import check_room, encoder_template
from t5x_lite.schema import setting

NUM_SPECIAL_TOKENS = 2
"""Special tokens around a text on both sides: <s> and </s>."""


class Denoising(InputsTargets):
    """Predict a text from its corrupted form. Features: see `InputsTargets`.

    Sentences (`data.parts=line` or `punctuation`) are permuted, then each of the spans is replaced by one mask token,
    which does not tell how many tokens are hidden. `<s>` and `</s>` enclose inputs and targets. Packed documents
    (`data.packing=documents`) are segments of their own on both sides.
    """

    name: ClassVar[str] = "denoising"
    families: ClassVar[tuple[Family, ...]] = ("encoder_decoder",)
    one_text: ClassVar[bool] = True

    noise_density: float = setting(0.3, "share of tokens in spans", gt=0, lt=1, source="Lewis et al. 2020, §5.1")
    mean_span: float = setting(
        3.0, "mean of the Poisson distribution of a span's length; 0 inserts a mask", unit="tokens", gt=0, source="§2.2"
    )
    permute_sentences: bool = setting(True, "put the sentences of a text into random order", source="§2.2")

    @property
    def rows(self) -> RowKind:
        """The rows must tell where sentences begin, if they are permuted."""
        return DIVIDED_TEXTS if self.permute_sentences else TOKENS

    def check_context(self, context: ExampleContext) -> None:
        """Refuse a tokenizer without the special tokens, and a row without room for a text."""
        user = f"objective {self.name}"
        context.vocabulary.require_token(user, *MASK)
        encoder_template(context.vocabulary, user)
        check_room(self.name, self.row_length(context), context)

    def row_length(self, context: ExampleContext) -> int:
        """Return the largest number of tokens of a text that fits with `<s>` and `</s>`."""
        return context.seq_len - NUM_SPECIAL_TOKENS

    def target_length(self, context: ExampleContext) -> int:
        return context.seq_len

    def packed_sizes(
        self, lengths: Int[np.ndarray, "documents parts"], context: ExampleContext
    ) -> Int[np.ndarray, "_ n"]:
        """Return the room for inputs, which are never longer than the text, and for targets."""
        row_lengths = lengths.sum(1) + NUM_SPECIAL_TOKENS
        return np.stack([row_lengths, row_lengths], axis=1)

    def example(self, row: TokenRow, context: ExampleContext, rng: np.random.Generator) -> Features:
        """Corrupt each segment of the row."""
        pairs = []
        for segment in segments_of(row.segments):
            is_text = row.tokens[segment] != context.vocabulary.eos
            tokens = without_eos(row.tokens[segment], context.vocabulary)
            pairs.append(self._pair(tokens, row.parts[segment][is_text], context, rng))
        return self.features(pairs, context)

    def _pair(
        self,
        tokens: Int[np.ndarray, "l"],
        parts: Int[np.ndarray, "l"],
        context: ExampleContext,
        rng: np.random.Generator,
    ) -> Pair:
        """Return the corrupted text and the text, both between `<s>` and `</s>`."""
        user = f"objective {self.name}"
        template = encoder_template(context.vocabulary, user)
        corrupted = tokens
        if self.permute_sentences:
            corrupted = permute(tokens, parts, rng)
        mask = context.vocabulary.require_token(user, *MASK)
        corrupted = infill(corrupted, draw_spans(len(tokens), self.noise_density, self.mean_span, rng), mask, rng)
        return template.tokens([corrupted]), template.tokens([tokens])


def permute(
    tokens: Int[np.ndarray, "l"], parts: Int[np.ndarray, "l"], rng: np.random.Generator
) -> Int[np.ndarray, "l"]:
    """Return the sentences of a text in random order."""
    sentences = np.split(tokens, np.flatnonzero(np.diff(parts)) + 1)
    order = rng.permutation(len(sentences))
    return np.concatenate([sentences[number] for number in order])


def draw_spans(length: int, noise_density: float, mean_span: float, rng: np.random.Generator) -> Int[np.ndarray, "_"]:
    """Draw lengths of spans until they hide the share of a text's tokens, at least one; the last is cut to fit.

    Spans of length 0, which insert a mask, are left out where they would make the text longer than it was.
    """
    hidden = min(max(round(length * noise_density), 1), length)
    lengths: list[int] = []
    remaining = hidden
    while remaining > 0:
        span = min(int(rng.poisson(mean_span)), remaining)
        lengths.append(span)
        remaining -= span
    spans = np.array(lengths, np.int64)
    insertions = np.cumsum(spans == 0)
    most_insertions = hidden - np.count_nonzero(spans)
    return spans[(spans > 0) | (insertions <= most_insertions)]


def infill(
    tokens: Int[np.ndarray, "l"], spans: Int[np.ndarray, "s"], mask: int, rng: np.random.Generator
) -> Int[np.ndarray, "_"]:
    """Replace spans of these lengths at random places by one mask each; spans may touch, and never overlap."""
    shown = len(tokens) - int(spans.sum())
    places = np.sort(rng.integers(0, shown + 1, len(spans)))
    starts = places + np.cumsum(spans) - spans
    is_hidden = np.zeros(len(tokens), bool)
    for start, span in zip(starts, spans, strict=True):
        is_hidden[start : start + span] = True
    with_masks = np.insert(tokens, starts, mask)
    return with_masks[~np.insert(is_hidden, starts, False)].astype(np.int32)
