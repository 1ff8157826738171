"""Vectors of queries and passages by a trained encoder, read as in its training."""

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cached_property
from typing import TypeAlias

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PyTree

from t5x_lite.errors import UserError
from t5x_lite.loaded_model import LoadedModel
from t5x_lite.models.outputs import is_text, pool_mean
from t5x_lite.models.spec import ModelSpec
from t5x_lite.objectives.objective import Features
from t5x_lite.objectives.passages import Passage, build_passage_features, build_query_features, without_padding
from t5x_lite.run_weights import fingerprint
from t5x_lite.trees import flatten_names

Vectors: TypeAlias = Float[np.ndarray, "texts d"]


class VectorEncoder:
    """A model that turns queries and passages into float32 vectors; texts are cut to `train.seq_len` tokens.

    A run of `retrieval` pools as it was trained, an import of DPR as DPR does; any other model averages its states.

    Args:
        model: an encoder or a decoder.

    Raises:
        UserError: a model of another family.
    """

    def __init__(self, model: LoadedModel) -> None:
        config = model.config.model
        if config.family not in {"encoder", "decoder"}:
            raise UserError(f"{model.config.run_dir}: a model of family {config.family} gives texts no single vector")
        if config.head is not None and config.head.outputs:
            raise UserError(f"{model.config.run_dir}: its head scores {config.head.outputs} classes, and pools no text")
        self.model = model
        self.context = replace(model.example_context, seq_len=_longest_text(model))

    @property
    def name(self) -> str:
        """The run directory and the step, for messages."""
        return f"{self.model.config.run_dir} at step {self.model.step}"

    @property
    def width(self) -> int:
        """The length of a vector."""
        return self.model.config.model.embed

    @cached_property
    def fingerprint(self) -> str:
        """A hash of what makes a vector of a text: the weights, the model's settings, and the longest text."""
        settings = self.model.config.model.model_dump(mode="json")
        parts = [fingerprint(flatten_names(self.model.params)), settings, self.context.seq_len]
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:16]

    def queries(self, texts: Sequence[str]) -> Vectors:
        """Return the vector of each query."""
        rows = [build_query_features(text, self.model.tokenizer.encode, self.context) for text in texts]
        return self._apply(_query_vectors, rows)

    def passages(self, passages: Sequence[Passage]) -> Vectors:
        """Return the vector of each passage."""
        rows = [build_passage_features(passage, self.model.tokenizer.encode, self.context) for passage in passages]
        return self._apply(_passage_vectors, rows)

    def _apply(self, function: Callable[..., Array], rows: Sequence[Features]) -> Vectors:
        vectors = self.model.apply_to_rows(function, [without_padding(row) for row in rows], "embedding")
        return np.stack(vectors) if vectors else np.zeros((0, self.width), np.float32)


def _longest_text(model: LoadedModel) -> int:
    """Return the tokens of the longest text: those of the run's examples, where the model can read as many."""
    length = min(model.config.train.seq_len, model.window)
    head = model.config.model.head
    if head is not None and head.length is not None:
        return min(length, head.length)
    return length


def _query_vectors(spec: ModelSpec, params: PyTree[Array], batch: dict[str, Array]) -> Float[Array, "b d"]:
    return _pooled(spec.model(params), batch)


def _passage_vectors(spec: ModelSpec, params: PyTree[Array], batch: dict[str, Array]) -> Float[Array, "b d"]:
    module = spec.model(params)
    return _pooled(getattr(module, "passage_encoder", module), batch)


def _pooled(module: Callable[..., Array], batch: dict[str, Array]) -> Float[Array, "b d"]:
    where = {name: batch[name] for name in ("segment_ids", "token_types") if name in batch}
    states = module(batch["tokens"], **where).astype(jnp.float32)
    head = getattr(module, "head", None)
    if head is None:
        return pool_mean(states, is_text(batch["tokens"], batch["segment_ids"]))
    return head.pooled(states, batch["tokens"], batch["segment_ids"])
