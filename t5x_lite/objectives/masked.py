"""Masked language modelling with or without sentence pairs: BERT, RoBERTa, ALBERT, SpanBERT.

Devlin et al. 2019, §3.1 and appendix A.1, and BERT's create_pretraining_data; Liu et al. 2019, §4; Lan et al. 2020,
§3.1; Joshi et al. 2020, §3.
"""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal

import numpy as np

from t5x_lite.models.config import SPAN_POSITIONS, Family, ModelConfig
from t5x_lite.objectives.features import padded, placed, positions_in
from t5x_lite.objectives.objective import (
    ExampleContext,
    ExampleLengths,
    Features,
    Losses,
    Objective,
    RowKind,
    TokenRow,
    Vocabulary,
)
from t5x_lite.schema import Int, setting

CLS, SEP, MASK = ("[CLS]", "<s>"), ("[SEP]", "</s>"), ("[MASK]", "<mask>")
LONGEST_SPAN = 10
"""Words of a SpanBERT span at most (Joshi et al. 2020, §3.1)."""
SPAN_CONTINUES = 0.8
"""One minus the p = 0.2 of its geometric length."""


class Masked(Objective):
    """Tell the tokens that were hidden.

    Features: `tokens`, `token_types`, `positions`, `segment_ids` int32 `[seq_len]`; `target_positions`, `targets` int32
    and `loss_weights` float32 `[predictions]`, the hidden places in order, unused ones with weight 0. With `sentences`
    also `sentence_targets` int32 and `sentence_weights` float32, scalars (1: the second sentence does not follow). With
    `boundary` also `span_left`, `span_right`, `span_places` int32 and `span_weights` float32 `[predictions]`.

    A row is `[CLS] text [SEP]`, or `[CLS] A [SEP] B [SEP]` with token types 0 and 1. RoBERTa's full sentences are
    `data.packing=sentences` with `data.separate_documents=false`.
    """

    name: ClassVar[str] = "masked"
    families: ClassVar[tuple[Family, ...]] = ("encoder",)

    rate: float = setting(0.15, "share of tokens to tell", gt=0, lt=1, source="Devlin et al. 2019, §3.1")
    mask_share: float = setting(0.8, "of these, shown as [MASK]", ge=0, le=1)
    random_share: float = setting(0.1, "of these, shown as another token; the rest are shown as they are", ge=0, le=1)
    replacement: Literal["uniform", "frequency"] = setting(
        "uniform", "other tokens are drawn from the vocabulary, or by their frequency in the training text"
    )
    spans: Literal["token", "word", "geometric"] = setting(
        "token", "what is hidden as one: a token, a whole word, or a span of words of geometric length (SpanBERT)"
    )
    boundary: bool = setting(False, "also tell a span's tokens from those beside it", source="Joshi et al. 2020, §3.2")
    static: Int = setting(0, "epochs whose masks come again; 0 draws new ones for ever", ge=0, source="RoBERTa, §4.1")
    sentences: Literal["none", "next", "order"] = setting(
        "none", "pairs: does the second follow (BERT), or were they swapped (ALBERT)"
    )
    short_share: float = setting(0.1, "share of pairs of random shorter length", ge=0, le=1, source="BERT's code")

    @property
    def rows(self) -> RowKind:
        """Pairs are made of whole sentences; one that does not follow is of another document."""
        return "tokens" if self.sentences == "none" else "sentences"

    @property
    def needs_frequency(self) -> bool:
        """Replacements may be drawn by it."""
        return self.replacement == "frequency"

    @property
    def static_epochs(self) -> int:
        """BERT repeated ten sets of masks."""
        return self.static

    def check(self, model: ModelConfig) -> None:
        """The model must have the outputs that are asked for."""
        told = {"tokens": True, "sentence": self.sentences != "none", "span": self.boundary}
        wanted = {output for output, is_told in told.items() if is_told}
        if model.family == "encoder" and set(model.outputs) != wanted:
            raise ValueError(
                f"objective masked with sentences={self.sentences}, boundary={self.boundary} trains the outputs "
                f"{sorted(wanted)}, model.outputs are {sorted(model.outputs)}"
            )
        if self.sentences != "none" and model.family == "encoder" and model.token_types != 2:
            raise ValueError(f"sentence pairs need model.token_types=2, found {model.token_types}")
        if self.boundary and self.spans != "geometric":
            raise ValueError("objective.masked.boundary needs spans=geometric")
        if self.mask_share + self.random_share > 1:
            raise ValueError("objective.masked: mask_share and random_share are more than 1 together")

    def check_context(self, context: ExampleContext) -> None:
        """The tokenizer must have [CLS], [SEP] and [MASK] (or <s>, </s>, <mask>)."""
        for names in (CLS, SEP, MASK):
            context.vocabulary.one_of(self.name, *names)

    def row_length(self, context: ExampleContext) -> int:
        """Room between the special tokens."""
        return context.seq_len - (2 if self.sentences == "none" else 3)

    def _predictions(self, context: ExampleContext) -> int:
        """Places to tell in a full row; BERT's max_predictions_per_seq."""
        return max(int(np.ceil(self.rate * context.seq_len)), 1)

    def lengths(self, context: ExampleContext) -> ExampleLengths:
        """What an example costs."""
        return ExampleLengths(context.seq_len, self._predictions(context))

    def example(self, row: TokenRow, context: ExampleContext, rng: np.random.Generator) -> Features:
        """Frame the text, then hide some of it."""
        if self.sentences == "none":
            return self.hidden(framed_text(row, context), context, rng)
        label, texts = self._pair(row, context, rng)
        framed = framed_pair(texts, context)
        weight = np.float32(framed["segment_ids"][0] > 0)
        told: Features = {"sentence_targets": np.int32(label), "sentence_weights": weight}  # type: ignore[dict-item]
        return {**self.hidden(framed, context, rng), **told}

    def hidden(self, framed: Features, context: ExampleContext, rng: np.random.Generator) -> Features:
        """A framed text with some of its tokens hidden, and what they were."""
        tokens, vocabulary = framed["tokens"].copy(), context.vocabulary
        open_ = np.flatnonzero((framed["segment_ids"] > 0) & ~vocabulary.special[tokens])
        most = min(self._predictions(context), max(round(self.rate * int((framed["segment_ids"] > 0).sum())), 1))
        groups = self._groups(open_, tokens, most, vocabulary, rng)
        places = np.concatenate([np.zeros(0, np.int64), *groups])
        originals = tokens[places]
        if self.spans == "geometric":
            for group in groups:
                tokens[group] = self._shown(tokens[group], vocabulary, rng, together=True)
        elif len(places):
            tokens[places] = self._shown(originals, vocabulary, rng, together=False)
        order = np.argsort(places)
        count = self._predictions(context)
        features = {
            **framed,
            "tokens": tokens,
            "target_positions": padded(places[order], count),
            "targets": padded(originals[order], count),
            "loss_weights": (np.arange(count) < len(places)).astype(np.float32),
        }
        return {**features, **_borders(groups, order, count)} if self.boundary else features

    def _groups(
        self, open_: np.ndarray, tokens: np.ndarray, most: int, vocabulary: Vocabulary, rng: np.random.Generator
    ) -> list[np.ndarray]:
        """Places to hide, in groups that are hidden together, `most` places at most."""
        if self.spans == "token":
            return [rng.permutation(open_)[:most]] if len(open_) else []
        begins = vocabulary.begins_word[tokens[open_]] | (np.diff(open_, prepend=-2) > 1)
        words = np.split(open_, np.flatnonzero(begins)[1:]) if len(open_) else []
        if self.spans == "word":
            return _fill([words[n] for n in rng.permutation(len(words))], most)
        return _geometric_spans(words, most, rng)

    def _shown(
        self, originals: np.ndarray, vocabulary: Vocabulary, rng: np.random.Generator, *, together: bool
    ) -> np.ndarray:
        """80 % [MASK], 10 % another token, 10 % as it was; of a whole span where `together`."""
        draw = rng.random(1 if together else len(originals))
        other = self._others(len(originals), vocabulary, rng)
        kept_or_other = np.where(draw < self.mask_share + self.random_share, other, originals)
        return np.where(draw < self.mask_share, vocabulary.one_of(self.name, *MASK), kept_or_other)

    def _others(self, count: int, vocabulary: Vocabulary, rng: np.random.Generator) -> np.ndarray:
        if self.replacement == "uniform":
            return rng.integers(vocabulary.size, size=count)
        assert vocabulary.frequency is not None
        return np.searchsorted(np.cumsum(vocabulary.frequency), rng.random(count) * (1 - 1e-12), side="right")

    def _pair(self, row: TokenRow, context: ExampleContext, rng: np.random.Generator) -> tuple[int, list[np.ndarray]]:
        """A label and two texts from a chunk of sentences, as BERT's create_pretraining_data does."""
        assert row.second_sentence is not None
        most = self.row_length(context)
        wanted = int(rng.integers(2, most + 1)) if rng.random() < self.short_share else most
        chunk = _first_sentences(_sentences(row, context.vocabulary), wanted)
        if not chunk:
            return 0, [np.zeros(0, np.int32)] * 2
        end = int(rng.integers(1, len(chunk))) if len(chunk) > 1 else 1
        first, second = np.concatenate(chunk[:end]), np.concatenate([np.zeros(0, np.int32), *chunk[end:]])
        others = _sentences(row.second_sentence, context.vocabulary)
        apart = bool(others) and (len(chunk) == 1 or (self.sentences == "next" and rng.random() < 0.5))
        if apart:
            others = others[int(rng.integers(len(others))) :]
            second = np.concatenate(_first_sentences(others, wanted - len(first)) or others[:1])
        swapped = not apart and self.sentences == "order" and rng.random() < 0.5
        texts = [second, first] if swapped else [first, second]
        return int(apart or swapped), _shortened(texts, most, rng)

    def loss(self, model: Any, batch: Mapping[str, Any], key: Any, losses: Losses) -> Mapping[str, Any]:
        """Mean over hidden tokens, plus the mean over pairs, plus that of the span-boundary output."""
        names = ("positions", "segment_ids", "token_types")
        states = model(batch["tokens"], **{name: batch[name] for name in names}, key=key)
        return self.terms(model, states, batch, losses)

    def terms(self, model: Any, states: Any, batch: Mapping[str, Any], losses: Losses) -> dict[str, Any]:
        """The sums of each output from the last layer's states."""
        at = losses.gather(states, batch["target_positions"])
        sums = {"loss": losses.tokens(model.logits, at, batch["targets"], batch["loss_weights"])}
        if "sentence_targets" in batch:
            scores = model.sentence(states)
            sums["sentence"] = losses.classes(scores, batch["sentence_targets"], batch["sentence_weights"])
        if "span_places" in batch:
            left, right = (losses.gather(states, batch[name]) for name in ("span_left", "span_right"))
            inside = model.span(left, right, batch["span_places"])
            sums["span"] = losses.tokens(model.span_logits, inside, batch["targets"], batch["span_weights"])
        return sums


def framed_text(row: TokenRow, context: ExampleContext) -> Features:
    """`[CLS] text [SEP]`; documents of a row stay segments of their own, the frame belongs to its neighbours."""
    count = int((row.segments > 0).sum())
    frame = [context.vocabulary.one_of("masked", *names) for names in (CLS, SEP)] if count else [0, 0]
    segments = row.segments[:count]
    ends = [segments[:1], segments, segments[-1:]]
    tokens = np.concatenate([frame[:1], row.tokens[:count], frame[1:]]) if count else segments
    found = placed(tokens, np.concatenate(ends), context.seq_len)
    return {**found, "token_types": np.zeros(context.seq_len, np.int32)}


def framed_pair(texts: Sequence[np.ndarray], context: ExampleContext, *, restart: bool = False) -> Features:
    """`[CLS] A [SEP] B [SEP]` with types 0 and 1; positions of B from 0 again with `restart` (XLM)."""
    cls, sep = (context.vocabulary.one_of("masked", *names) for names in (CLS, SEP))
    sides = [np.concatenate([[cls], texts[0], [sep]]), np.concatenate([texts[1], [sep]])]
    if not len(texts[0]):
        sides = [np.zeros(0, np.int32)] * 2
    types = padded(np.repeat([0, 1], [len(side) for side in sides]), context.seq_len)
    tokens = np.concatenate(sides)
    found = {**placed(tokens, np.ones(len(tokens)), context.seq_len), "token_types": types}
    return found | {"positions": positions_in(found["segment_ids"] + types)} if restart else found


def _fill(groups: Sequence[np.ndarray], most: int) -> list[np.ndarray]:
    """Groups in order, those left out that would go over `most` places (BERT's code)."""
    taken, count = [], 0
    for group in groups:
        if count + len(group) <= most:
            taken.append(group)
            count += len(group)
    return taken


def _geometric_spans(words: Sequence[np.ndarray], most: int, rng: np.random.Generator) -> list[np.ndarray]:
    """Spans of whole words, lengths geometric and clipped, places uniform, until the budget is spent (§3.1).

    No two spans touch, so that the tokens beside a span are shown.
    """
    shares = SPAN_CONTINUES ** np.arange(LONGEST_SPAN)
    cumulated = np.cumsum(shares / shares.sum())
    ends = np.array([word[-1] for word in words], np.int64)
    starts = np.array([word[0] for word in words], np.int64)
    # A special token between two words is no part of a span.
    gaps = np.concatenate([[0], np.cumsum(starts[1:] - ends[:-1] > 1)]) if len(words) else np.zeros(0, np.int64)
    taken = np.zeros(len(words) + 2, np.int64)
    spans, left = [], most
    while left > 0:
        length = int(np.searchsorted(cumulated, rng.random() * (1 - 1e-12), side="right")) + 1
        open_ = np.zeros(0, np.int64)
        while length and not len(open_):
            first = np.arange(len(words) - length + 1)
            before = np.concatenate([[0], np.cumsum(taken)])
            free = before[first + length + 2] == before[first]
            last = first + length - 1
            fits = (ends[last] - starts[first] < left) & (gaps[last] == gaps[first])
            open_ = first[free & fits]
            length -= not len(open_)
        if not length:
            break
        start = int(rng.choice(open_))
        spans.append(np.concatenate(words[start : start + length]))
        taken[start + 1 : start + length + 1] = 1
        left -= len(spans[-1])
    return spans


def _borders(groups: Sequence[np.ndarray], order: np.ndarray, count: int) -> Features:
    """For each hidden token, in order of place: the tokens beside its span, and how far into the span it stands."""
    sizes = [len(group) for group in groups]
    empty = np.zeros(0, np.int64)
    left = np.repeat(np.array([group[0] - 1 for group in groups] or empty), sizes)
    right = np.repeat(np.array([group[-1] + 1 for group in groups] or empty), sizes)
    place = np.concatenate([empty, *(np.arange(size) for size in sizes)])
    told = padded(place[order] < SPAN_POSITIONS, count)
    return {
        "span_left": padded(left[order], count),
        "span_right": padded(right[order], count),
        "span_places": padded(np.minimum(place[order], SPAN_POSITIONS - 1), count),
        "span_weights": told.astype(np.float32),
    }


def _sentences(row: TokenRow, vocabulary: Vocabulary) -> list[np.ndarray]:
    """The sentences of a row of one document, without the EOS that ends it."""
    text = (row.segments > 0) & (row.tokens != (-1 if vocabulary.eos is None else vocabulary.eos))
    tokens, parts = row.tokens[text], row.parts[text]
    return np.split(tokens, np.flatnonzero(np.diff(parts)) + 1) if len(tokens) else []


def _first_sentences(sentences: Sequence[np.ndarray], wanted: int) -> list[np.ndarray]:
    """As many as reach `wanted` tokens, or all."""
    reached = np.cumsum([len(sentence) for sentence in sentences])
    return list(sentences[: int(np.searchsorted(reached, wanted)) + 1]) if wanted > 0 else []


def _shortened(texts: list[np.ndarray], most: int, rng: np.random.Generator) -> list[np.ndarray]:
    """Tokens taken off the longer text, from its front or its back at random, until both fit."""
    sizes = [len(text) for text in texts]
    fronts = [0, 0]
    while sum(sizes) > most:
        longer = 0 if sizes[0] > sizes[1] else 1
        fronts[longer] += int(rng.random() < 0.5)
        sizes[longer] -= 1
    return [text[front : front + size] for text, front, size in zip(texts, fronts, sizes, strict=True)]
