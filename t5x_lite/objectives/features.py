"""Parts of examples that several objectives share: positions, and inputs with targets for every kind of model."""

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np

from t5x_lite.models.config import START, Family
from t5x_lite.objectives.objective import ExampleContext, ExampleLengths, Features, Losses, Objective

Pair = tuple[np.ndarray, np.ndarray]
"""Inputs and targets, int32."""


def positions_in(segments: np.ndarray) -> np.ndarray:
    """int32 places that start from 0 in every segment."""
    index = np.arange(len(segments), dtype=np.int32)
    starts = np.concatenate([[True], segments[1:] != segments[:-1]])
    return index - np.maximum.accumulate(np.where(starts, index, 0)).astype(np.int32)


def padded(values: np.ndarray, length: int) -> np.ndarray:
    """int32 `[length]`, zeros after the values."""
    row = np.zeros(length, np.int32)
    row[: len(values)] = values
    return row


def placed(tokens: np.ndarray, segments: np.ndarray, length: int) -> dict[str, np.ndarray]:
    """`tokens`, `positions` and `segment_ids` `[length]`."""
    segment_ids = padded(segments, length)
    return {"tokens": padded(tokens, length), "positions": positions_in(segment_ids), "segment_ids": segment_ids}


def stacked(examples: Sequence[Features]) -> dict[str, np.ndarray]:
    """Examples as one, with an axis before those of each feature."""
    return {name: np.stack([example[name] for example in examples]) for name in examples[0]}


def segments_of(row_segments: np.ndarray) -> list[slice]:
    """Where each segment of a row lies, padding left out."""
    borders = np.flatnonzero(np.diff(row_segments, prepend=-1))
    stops = [*borders[1:], len(row_segments)]
    return [slice(int(a), int(b)) for a, b in zip(borders, stops, strict=True) if row_segments[a] > 0]


def text_to_text(pairs: Sequence[Pair], family: Family, length: int, target_length: int) -> Features:
    """Inputs and targets side by side, each pair a segment of its own.

    For an encoder_decoder: `tokens`, `positions`, `segment_ids` `[length]`; `decoder_tokens` (the targets shifted right
    inside their segment, from `START`), `decoder_positions`, `decoder_segment_ids`, `targets`, `loss_weights`
    `[target_length]`. For a decoder each pair is one text of `[length]` whose targets alone have weight, and `prefix`
    is 1 for inputs. Pairs must fit.
    """
    if family == "decoder":
        return _one_text(pairs, length)
    inputs, (targets, segments) = (_joined([pair[side] for pair in pairs]) for side in (0, 1))
    shifted, _ = _joined([np.concatenate([[START], own[:-1]]) for _, own in pairs])
    decoder = placed(shifted, segments, target_length)
    return {
        **placed(*inputs, length),
        **{f"decoder_{name}": values for name, values in decoder.items()},
        "targets": padded(targets, target_length),
        "loss_weights": (decoder["segment_ids"] > 0).astype(np.float32),
    }


def _joined(parts: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Tokens one after the other, and the number of the part of each from 1."""
    if not parts:
        return np.zeros(0, np.int32), np.zeros(0, np.int32)
    return np.concatenate(parts), np.repeat(np.arange(1, len(parts) + 1), [len(part) for part in parts])


def _one_text(pairs: Sequence[Pair], length: int) -> Features:
    """Each pair as one text without its last token; what follows each token is its target."""
    texts = [np.concatenate(pair) for pair in pairs]
    tokens, segments = _joined([text[:-1] for text in texts])
    following, _ = _joined([text[1:] for text in texts])
    # How far each token stands before the first target: the one at 1, the last of the inputs, predicts it.
    ahead, _ = _joined([len(pair[0]) - np.arange(len(text) - 1) for text, pair in zip(texts, pairs, strict=True)])
    return {
        **placed(tokens, segments, length),
        "targets": padded(following, length),
        "prefix": padded(ahead > 0, length),
        "loss_weights": padded(ahead <= 1, length).astype(np.float32),
    }


class InputsTargets(Objective):
    """An objective whose examples are inputs and targets: what all of these share. Features: see `text_to_text`."""

    families: ClassVar[tuple[Family, ...]] = ("encoder_decoder", "decoder")

    @abstractmethod
    def target_length(self, context: ExampleContext) -> int:
        """Targets of a full row, EOS included."""

    def capacity(self, context: ExampleContext) -> tuple[int, ...]:
        """Inputs and targets of a row; of a decoder, both together."""
        return (
            (context.seq_len, self.target_length(context))
            if context.family == "encoder_decoder"
            else (context.seq_len,)
        )

    def lengths(self, context: ExampleContext) -> ExampleLengths:
        """What an example costs."""
        if context.family == "decoder":
            return ExampleLengths(context.seq_len, context.seq_len)
        return ExampleLengths(context.seq_len, self.target_length(context), self.target_length(context))

    def features(self, pairs: Sequence[Pair], context: ExampleContext) -> Features:
        """The features of a row's pairs."""
        return text_to_text(pairs, context.family, context.seq_len, self.target_length(context))

    def loss(self, model: Any, batch: Mapping[str, Any], key: Any, losses: Losses) -> Mapping[str, Any]:
        """Cross-entropy of the targets under either kind of model."""
        where = {"positions": batch["positions"], "segment_ids": batch["segment_ids"], "key": key}
        if "decoder_tokens" in batch:
            after = {name: batch[name] for name in ("decoder_positions", "decoder_segment_ids")}
            states = model(batch["tokens"], batch["decoder_tokens"], **where, **after)
        else:
            states = model(batch["tokens"], prefix=batch["prefix"], **where)
        return {"loss": losses.tokens(model.logits, states, batch["targets"], batch["loss_weights"])}
