"""What evaluation compiles for a model serves later calls."""

import shutil
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np
import pytest

import t5x_lite
from t5x_lite.api import Model
from t5x_lite.evaluate.evaluators.attention_map import AttentionMap
from t5x_lite.evaluate.probe import pooled_layer_states, token_layer_states
from t5x_lite.models.spec import ModelSpec

TEXTS = ["the quick brown fox", "a lazy dog"]


@pytest.fixture
def traces(monkeypatch: pytest.MonkeyPatch) -> list[ModelSpec]:
    """Entries for each time that a model is traced: compiled functions put weights into the model when they are."""
    entries = []
    put_weights = ModelSpec.model

    def count(spec: ModelSpec, params: object) -> object:
        entries.append(spec)
        return put_weights(spec, params)

    monkeypatch.setattr(ModelSpec, "model", count)
    return entries


@pytest.fixture
def model(tiny_run: Path, tmp_path: Path) -> Model:
    """The model of a copy of a run, into which an evaluator may write."""
    return t5x_lite.load(shutil.copytree(tiny_run, tmp_path / "run"))


CALLS: dict[str, Callable[[Model], object]] = {
    "embed": lambda model: model.embed(TEXTS),
    "score": lambda model: model.score(TEXTS),
    "pooled states of layers": lambda model: pooled_layer_states(model, TEXTS, "mean"),
    "states of tokens": lambda model: token_layer_states(model, TEXTS),
    "attention": AttentionMap(prompt=TEXTS[0]).run,
}


@pytest.mark.parametrize("name", CALLS)
def test_a_second_call_does_not_trace_again(name: str, model: Model, traces: list[ModelSpec]) -> None:
    CALLS[name](model)
    assert traces
    traces.clear()
    CALLS[name](model)
    assert not traces


def test_other_settings_are_traced_and_other_weights_are_not(model: Model, traces: list[ModelSpec]) -> None:
    means = model.embed(TEXTS, pool="mean")
    traces.clear()
    maxima = model.embed(TEXTS, pool="max")
    assert traces
    assert np.abs(means - maxima).max() > 1e-3
    traces.clear()
    model._params = jax.tree.map(lambda array: 2 * array, model.params)
    other_means = model.embed(TEXTS, pool="mean")
    assert not traces
    assert np.abs(means - other_means).max() > 1e-3
