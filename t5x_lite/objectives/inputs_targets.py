"""Objectives whose examples are inputs and targets, for an encoder_decoder or for a decoder."""

from abc import abstractmethod
from collections.abc import Sequence
from typing import ClassVar

import numpy as np
from jaxtyping import Int

from t5x_lite.models.config import Family
from t5x_lite.objectives.features import Pair, pad, token_features
from t5x_lite.objectives.model_protocols import Array, Batch, DropoutKey, LanguageModel
from t5x_lite.objectives.objective import ExampleContext, ExampleLengths, Features
from t5x_lite.objectives.token_prediction import TokenPrediction

INPUT_FEATURES = ("positions", "segment_ids", "prefix", "decoder_positions", "decoder_segment_ids")
"""Features beside the tokens that a model reads."""


def model_states(model: LanguageModel, batch: Batch, key: DropoutKey) -> Array:
    """Return the states that a model computes from the features of inputs and targets that a batch has."""
    inputs = [batch[name] for name in ("tokens", "decoder_tokens") if name in batch]
    places = {name: batch[name] for name in INPUT_FEATURES if name in batch}
    return model(*inputs, **places, key=key)


class InputsTargets(TokenPrediction):
    """An objective that predicts targets from inputs. Several pairs of them are packed into a row, one segment each.

    Features for an encoder_decoder, int32: `tokens`, `positions`, `segment_ids` `[seq_len]` of the inputs;
    `decoder_tokens` (the targets of a segment shifted right by one, after the start token), `decoder_positions`,
    `decoder_segment_ids`, `targets` `[target_length]`; and `loss_weights` float32 `[target_length]`.

    Features for a decoder, `[seq_len]`: `tokens`, `positions`, `segment_ids`, `targets`, `prefix` (1 for inputs) int32,
    and `loss_weights` float32, 0 for inputs. A pair is one text.
    """

    families: ClassVar[tuple[Family, ...]] = ("encoder_decoder", "decoder")
    loss_kind: ClassVar[str | None] = "targets"

    @abstractmethod
    def target_length(self, context: ExampleContext) -> int:
        """Return the number of targets in a full row, EOS included."""

    def row_capacity(self, context: ExampleContext) -> tuple[int, ...]:
        """Return the room for inputs and for targets; for a decoder, the room for both together."""
        if context.family == "encoder_decoder":
            return (context.seq_len, self.target_length(context))
        return (context.seq_len,)

    def example_lengths(self, context: ExampleContext) -> ExampleLengths:
        if context.family == "decoder":
            return ExampleLengths(context.seq_len, context.seq_len)
        return ExampleLengths(context.seq_len, self.target_length(context), self.target_length(context))

    def features(self, pairs: Sequence[Pair], context: ExampleContext) -> Features:
        """Return the features of a row of pairs, which must fit."""
        if context.family == "decoder":
            return _decoder_features(pairs, context.seq_len)
        return _encoder_decoder_features(pairs, context, self.target_length(context))

    def states(self, model: LanguageModel, batch: Batch, key: DropoutKey) -> Array:
        """Return the states of the tokens that targets are predicted from: those of an encoder_decoder's decoder."""
        return model_states(model, batch, key)


def packed_sizes(
    inputs: Int[np.ndarray, "pairs"], targets: Int[np.ndarray, "pairs"], family: Family
) -> Int[np.ndarray, "pairs n"]:
    """Return the room that pairs of these lengths take in a row, one number for each entry of `row_capacity`.

    In a decoder a pair is one text, whose last token is only predicted.
    """
    if family == "encoder_decoder":
        return np.stack([inputs, targets], axis=1)
    return (inputs + targets - 1)[:, None]


def _encoder_decoder_features(pairs: Sequence[Pair], context: ExampleContext, target_length: int) -> Features:
    inputs, input_segments = _join([inputs for inputs, _ in pairs])
    targets, target_segments = _join([targets for _, targets in pairs])
    shifted_targets, _ = _join([np.concatenate([[context.start_token], targets[:-1]]) for _, targets in pairs])
    features = token_features(inputs, input_segments, context.seq_len)
    for name, values in token_features(shifted_targets, target_segments, target_length).items():
        features[f"decoder_{name}"] = values
    features["targets"] = pad(targets, target_length)
    features["loss_weights"] = (features["decoder_segment_ids"] > 0).astype(np.float32)
    return features


def _decoder_features(pairs: Sequence[Pair], length: int) -> Features:
    """Make each pair one text: all its tokens but the last are read, and each predicts the token after it."""
    texts = [np.concatenate(pair) for pair in pairs]
    tokens, segments = _join([text[:-1] for text in texts])
    next_tokens, _ = _join([text[1:] for text in texts])
    # Distance of each token to the first target. The token at distance 1, the last of the inputs, predicts it.
    distances = []
    for inputs, targets in pairs:
        distances.append(len(inputs) - np.arange(len(inputs) + len(targets) - 1))
    distance, _ = _join(distances)
    features = token_features(tokens, segments, length)
    features["targets"] = pad(next_tokens, length)
    features["prefix"] = pad(distance > 0, length)
    features["loss_weights"] = pad(distance <= 1, length).astype(np.float32)
    return features


def _join(parts: Sequence[np.ndarray]) -> tuple[Int[np.ndarray, "l"], Int[np.ndarray, "l"]]:
    """Return the concatenated parts, and for each element the number of its part, from 1."""
    if not parts:
        return np.zeros(0, np.int32), np.zeros(0, np.int32)
    sizes = [len(part) for part in parts]
    return np.concatenate(parts), np.repeat(np.arange(1, len(parts) + 1), sizes)
