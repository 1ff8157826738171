"""Passages of text as records hold them, and as an encoder reads them."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Int

from t5x_lite.objectives.objective import ExampleContext, Features
from t5x_lite.objectives.special_tokens import build_text_features, task_template

Encode = Callable[[str], np.ndarray]
"""A function from a text to its int32 ids."""


@dataclass(frozen=True)
class Passage:
    """A text to retrieve, with its title, which may be empty."""

    text: str
    title: str = ""

    def __str__(self) -> str:
        return f"{self.title}\n{self.text}" if self.title else self.text


def read_passage(value: object) -> Passage:
    """Return the passage that a record holds: a text, or an object with `text` and perhaps `title`.

    Raises:
        ValueError: it is something else, or has no text.
    """
    if isinstance(value, str):
        passage = Passage(value)
    elif isinstance(value, Mapping) and isinstance(value.get("text"), str):
        passage = Passage(value["text"], str(value.get("title") or ""))
    else:
        raise ValueError(f"a passage is {str(value)[:60]!r}; expected a text, or an object with `text` and `title`")
    if not passage.text.strip():
        raise ValueError("a passage is empty; remove it, or the record")
    return passage


def read_passages(value: object) -> list[Passage]:
    """Return the passages that a record holds: a list of them, a single one, or null for none.

    Raises:
        ValueError: something in it is not a passage.
    """
    if value is None:
        return []
    if isinstance(value, list):
        return [read_passage(item) for item in value]
    return [read_passage(value)]


def passage_ids(passage: Passage, encode: Encode, context: ExampleContext) -> Int[np.ndarray, "l"]:
    """Return the ids of a passage: `title [SEP] text`, or the text alone (Karpukhin et al. 2020, §3.1)."""
    text = encode(passage.text)
    if not passage.title:
        return text
    separator = np.array([task_template(context).end], np.int32)
    return np.concatenate([encode(passage.title), separator, text])


def build_passage_features(passage: Passage, encode: Encode, context: ExampleContext) -> Features:
    """Return the features of `build_text_features` for a passage as a single text; a long one loses its end."""
    return build_text_features([passage_ids(passage, encode, context)], context)


def build_query_features(query: str, encode: Encode, context: ExampleContext) -> Features:
    """Return the features of `build_text_features` for a query."""
    return build_text_features([encode(query)], context)


def without_padding(features: Features) -> dict[str, np.ndarray]:
    """Return the tokens, segment ids and, in an encoder, token types of a text, cut after its last special token."""
    length = int((features["segment_ids"] > 0).sum())
    names = features.keys() & {"tokens", "segment_ids", "token_types"}
    return {name: features[name][:length] for name in sorted(names)}


def first_passages(passages: Sequence[Passage], count: int) -> list[Passage | None]:
    """Return the first `count` passages, and None in the place of each that is missing."""
    missing = [None] * max(count - len(passages), 0)
    return [*passages[:count], *missing]
