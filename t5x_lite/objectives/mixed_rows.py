"""Rows of several objectives in one batch: the same features, padded to the same shapes."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import TypeAlias

import numpy as np

from t5x_lite.objectives.objective import ExampleContext, ExampleLengths, Features, Objective

Shapes: TypeAlias = Mapping[str, tuple[int, ...]]
"""The shape of each feature of an example."""


def common_shapes(examples: Sequence[Features]) -> Shapes:
    """Return for each feature the smallest shape that holds that of every example. All have the same features."""
    shapes = {}
    for name in examples[0]:
        sizes = [example[name].shape for example in examples]
        shapes[name] = tuple(np.max(sizes, axis=0).astype(int).tolist())
    return shapes


def pad_to_shapes(example: Features, shapes: Shapes) -> Features:
    """Return an example whose features have these shapes, with zeros at the end: padding, without weight in a loss."""
    padded = {}
    for name, feature in example.items():
        missing = np.subtract(shapes[name], feature.shape)
        padded[name] = np.pad(feature, [(0, count) for count in missing.tolist()]) if missing.any() else feature
    return padded


def largest_lengths(objectives: Sequence[Objective], context: ExampleContext) -> ExampleLengths:
    """Return the numbers of tokens that a model processes in an example of any of these objectives, padded alike."""
    lengths = [asdict(objective.example_lengths(context)) for objective in objectives]
    largest = {name: max(length[name] for length in lengths) for name in lengths[0]}
    return ExampleLengths(**largest)


def feature_types(example: Features) -> dict[str, tuple[str, int]]:
    """Return the type and the number of axes of each feature."""
    return {name: (str(feature.dtype), feature.ndim) for name, feature in sorted(example.items())}
