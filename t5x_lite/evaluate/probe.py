"""Probing of layers: how well a linear classifier reads a label from each layer, and the geometry of its states."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, PyTree

from t5x_lite.data.record_files import read_record_file
from t5x_lite.data.record_text import read_column
from t5x_lite.errors import UserError
from t5x_lite.evaluate.embed import POOLS, check_first_token, encode_texts
from t5x_lite.evaluate.evaluation_model import EvaluationModel
from t5x_lite.evaluate.layer_geometry import anisotropy, self_similarity
from t5x_lite.evaluate.layer_states import compute_layer_states
from t5x_lite.evaluate.linear_probe import fit_probe
from t5x_lite.files import write_file
from t5x_lite.models.outputs import is_text
from t5x_lite.models.spec import ModelSpec

COLUMN_REMEDY = "set --text and --label, or --columns for files without a header"
GEOMETRY_TEXTS = 200
"""Texts whose tokens the geometry of a layer is measured on; the states of all of them are in memory at once."""


@dataclass(frozen=True)
class ProbeSettings:
    """Settings of a probe.

    Attributes:
        text: column of the text.
        label: column of the label.
        columns: names of the columns of TSV and CSV files without a header; empty if there is a header.
        pool: pooling of the tokens of a text, one of `embed.POOLS` but `none`.
        limit: most records of each file, the first ones; 0 takes all.
        strength: strength of the data against the penalty on the classifier's weights.
    """

    text: str = "text"
    label: str = "label"
    columns: Sequence[str] = ()
    pool: str = "mean"
    limit: int = 2000
    strength: float = 1.0


@dataclass(frozen=True)
class LayerProbe:
    """The measures of one layer.

    Attributes:
        layer: its number from 1; 0 is the input of the first layer.
        train_accuracy: accuracy of the classifier on the records that it was fitted to.
        accuracy: accuracy on the others.
        anisotropy: mean cosine of tokens of different texts; None if there are no two texts.
        self_similarity: mean cosine of a token's states in different texts; None if no token is in five texts.
    """

    layer: int
    train_accuracy: float
    accuracy: float
    anisotropy: float | None
    self_similarity: float | None


@dataclass(frozen=True)
class ProbeReport:
    """The measures of all layers.

    Attributes:
        classes: the labels.
        majority: accuracy of the most frequent label of the training file.
        layers: one entry for each layer.
    """

    classes: list[str]
    majority: float
    layers: list[LayerProbe]

    def as_json(self) -> dict[str, object]:
        """Return the report as JSON."""
        return asdict(self)

    def save(self, path: Path) -> None:
        """Write the report as JSON."""
        write_file(path, json.dumps(self.as_json(), indent=2) + "\n")


@dataclass(frozen=True)
class LabelledTexts:
    """Texts and the class of each."""

    texts: list[str]
    labels: list[str]


def probe_layers(model: EvaluationModel, train: Path, test: Path, settings: ProbeSettings) -> ProbeReport:
    """Fit a classifier to every layer's pooled states of one file, and measure it on another.

    Raises:
        UserError: a file that cannot be read or has no records, a missing column, an unknown label, or a pool that
            does not exist.
    """
    if settings.limit < 0:
        raise UserError(f"--limit {settings.limit}: expected a number of records, or 0 for all")
    pools = [name for name, function in POOLS.items() if function is not None]
    if settings.pool not in pools:
        raise UserError(f"--pool {settings.pool} is not one of {', '.join(pools)}")
    if settings.pool == "cls":
        check_first_token(model.config.model)
    training = read_labelled(train, settings)
    held_out = read_labelled(test, settings)
    classes = sorted(set(training.labels))
    if len(classes) < 2:
        raise UserError(f"{train}: all records have the label {classes[0]!r}; a classifier needs two")
    labels = _class_numbers(training.labels, classes, train)
    test_labels = _class_numbers(held_out.labels, classes, test)
    states = pooled_layer_states(model, training.texts, settings.pool)
    test_states = pooled_layer_states(model, held_out.texts, settings.pool)
    geometry = _measure_geometry(model, held_out.texts[:GEOMETRY_TEXTS])
    layers = []
    for layer, (tokens_cosine, words_cosine) in enumerate(geometry):
        probe = fit_probe(states[:, layer], labels, len(classes), settings.strength)
        layers.append(
            LayerProbe(
                layer=layer,
                train_accuracy=probe.accuracy(states[:, layer], labels),
                accuracy=probe.accuracy(test_states[:, layer], test_labels),
                anisotropy=_none_if_nan(tokens_cosine),
                self_similarity=_none_if_nan(words_cosine),
            )
        )
    majority = float((test_labels == np.bincount(labels).argmax()).mean())
    return ProbeReport(classes, majority, layers)


def _read_text(record: object, column: str, location: str) -> str:
    """Return the text of a column, or a number as text, or raise UserError if it has no value."""
    value = read_column(record, column, location, COLUMN_REMEDY)
    if value is None:
        raise UserError(f"{location}: column {column!r} is null; remove the record")
    if isinstance(value, bytes):
        return value.decode("utf-8", errors="replace")
    return str(value)


def _none_if_nan(value: float) -> float | None:
    return None if np.isnan(value) else value


def read_labelled(path: Path, settings: ProbeSettings) -> LabelledTexts:
    """Read the texts and labels of a TSV, CSV, JSONL or Parquet file.

    Raises:
        UserError: the file cannot be read, has no records, or a record lacks a column.
    """
    texts = []
    labels = []
    for location, record in read_record_file(str(path), settings.columns)[: settings.limit or None]:
        texts.append(_read_text(record, settings.text, location))
        labels.append(_read_text(record, settings.label, location))
    if not texts:
        raise UserError(f"{path}: has no records")
    return LabelledTexts(texts, labels)


def pooled_layer_states(model: EvaluationModel, texts: Sequence[str], pool: str) -> Float[np.ndarray, "texts layers d"]:
    """Return the pooled states of texts of the input of the first layer and after each layer."""
    rows = encode_texts(model, texts, model.window)
    return np.stack(model.apply_to_rows(_compute_pooled, rows, "embedding", pool))


def token_layer_states(
    model: EvaluationModel, texts: Sequence[str]
) -> tuple[Float[np.ndarray, "layers tokens d"], Int[np.ndarray, "tokens"], Int[np.ndarray, "tokens"]]:
    """Return the states of every token of texts in every layer, the token's id, and the number of its text.

    Special tokens are left out.
    """
    rows = encode_texts(model, texts, model.window)
    outputs = model.apply_to_rows(_compute_tokens, rows, "embedding")
    is_special = model.tokenizer.vocabulary().special
    states = []
    words = []
    numbers = []
    for number, (row, row_states) in enumerate(zip(rows, outputs, strict=True)):
        tokens = row["tokens"]
        is_word = (tokens >= 0) & ~is_special[np.maximum(tokens, 0)]
        states.append(row_states[: len(tokens)][is_word])
        words.append(tokens[is_word])
        numbers.append(np.full(is_word.sum(), number))
    return np.concatenate(states).swapaxes(0, 1), np.concatenate(words), np.concatenate(numbers)


def _measure_geometry(model: EvaluationModel, texts: Sequence[str]) -> list[tuple[float, float]]:
    """Return anisotropy and self-similarity of each layer."""
    states, words, numbers = token_layer_states(model, texts)
    measures = []
    for layer_states in states:
        measures.append((anisotropy(layer_states, numbers), self_similarity(layer_states, words, numbers)))
    return measures


def _class_numbers(labels: Sequence[str], classes: Sequence[str], path: Path) -> Int[np.ndarray, "n"]:
    unknown = sorted(set(labels) - set(classes))
    if unknown:
        raise UserError(f"{path}: label {unknown[0]!r} is not in the training file, which has {', '.join(classes)}")
    return np.array([classes.index(label) for label in labels])


def _compute_pooled(
    spec: ModelSpec, pool: str, params: PyTree[Array], batch: dict[str, Array]
) -> Float[Array, "b layers d"]:
    pool_states = POOLS[pool]
    assert pool_states is not None
    states = compute_layer_states(spec, params, batch)
    return jnp.stack(
        [pool_states(layer_states, is_text(batch["tokens"], batch["segment_ids"])) for layer_states in states], axis=1
    )


def _compute_tokens(spec: ModelSpec, params: PyTree[Array], batch: dict[str, Array]) -> Float[Array, "b l layers d"]:
    return jnp.moveaxis(compute_layer_states(spec, params, batch), 0, 2)
