"""The updates of every adaptation method: all that it trains moves and has an effect, all that it freezes stays."""

import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any, TypeAlias

import jax
import numpy as np
import pytest
from jaxtyping import Array, Float, PyTree

from t5x_lite.adapt import LoRA
from t5x_lite.adapt.method import is_added_parameter, without_added
from t5x_lite.cli import main
from t5x_lite.config import RunConfig
from t5x_lite.data.pipeline import training_batches
from t5x_lite.models.spec import ModelSpec, model_spec
from t5x_lite.objectives.supervised import Supervised
from t5x_lite.parallel import mesh as meshes
from t5x_lite.run_data import open_run_data
from t5x_lite.run_dir import open_run
from t5x_lite.run_weights import initial_weights
from t5x_lite.train.steps import make_steps
from t5x_lite.trees import flatten_names, unflatten_names
from tests.adapt.conftest import METHODS, AdaptedRun, MethodConfig, method_override

NamedArrays: TypeAlias = dict[str, np.ndarray]
ScoreFunction: TypeAlias = Callable[[NamedArrays], Float[np.ndarray, "examples classes"]]

STEPS = 3
ADDING_METHODS = ("houlsby", "pfeiffer", "lora", "ia3", "prompt", "prefix")
"""Methods that add parameters to the model."""
TRAINED_BASE_WEIGHTS = {
    "full": r"",
    "head": r"head\.",
    "features": r"head\.",
    "top": r"head\.|output\.|sentence\.|encoder\.stack\.layers\.",
    "bitfit": r"head\.|.*\.bias$",
    "houlsby": r"head\.|.*norm\.",
    "pfeiffer": r"head\.",
    "lora": r"head\.",
    "ia3": r"head\.",
    "prompt": r"head\.",
    "prefix": r"head\.",
    "unfreeze": r"",
}
"""Names of the trained weights that the method has not added, as regular expressions from the beginning."""
FUSION_ROUTES = ("attention", "soft", "hard", "fixed")
UNUSED_PARTS = ("output.", "sentence.")
"""The outputs of the pretraining objective, which the loss of a task with a head does not depend on."""
SLOW_METHODS = ("full", "features", "bitfit", "pfeiffer")


@dataclass(frozen=True)
class TrainedModel:
    """An adapted model before and after its train steps.

    Attributes:
        config: the run.
        spec: the model without its weights.
        initial: its first weights, those that train and those that are frozen, by name.
        trained: the trained weights by name; of a stack that is trained in part, the layers that train.
        frozen: the frozen weights by name, as they are in the state after the steps.
    """

    config: RunConfig
    spec: ModelSpec
    initial: NamedArrays
    trained: NamedArrays
    frozen: NamedArrays

    @property
    def params(self) -> NamedArrays:
        """All weights after the steps."""
        split = self.config.trainable_split(self.spec.axes)
        trained = unflatten_names(self.trained)
        return flatten_names(split.join(trained, unflatten_names(self.frozen)))


def copy_to_host(tree: object) -> NamedArrays:
    return {name: np.array(array) for name, array in flatten_names(tree).items()}


def read_batches(config: RunConfig, count: int = STEPS) -> list[dict[str, np.ndarray]]:
    """Return the first training batches of a run."""
    assert config.adapt is not None
    data = open_run_data(config, open_run(Path(config.adapt.source)).tokenizer)
    batch_size = config.train.batch_size
    return list(training_batches(data.rows(), batch_size, np.arange(batch_size), 0, count, config.data))


def train_steps(config: RunConfig) -> TrainedModel:
    """Train an adapted model on the first batches of its task."""
    spec = model_spec(config.model, config.method.surgery)
    mesh = meshes.make_mesh(config.mesh)
    params, _ = initial_weights(config, spec, mesh)
    initial = copy_to_host(params)
    with jax.set_mesh(mesh):
        steps = make_steps(config, spec, mesh)
        state = steps.create_state_from(params)
        for batch in read_batches(config):
            state, metrics = steps.train(state, batch)
    assert int(metrics["skipped"]) == 0
    return TrainedModel(config, spec, initial, copy_to_host(state.params), copy_to_host(state.frozen))


def score_function(spec: ModelSpec, config: RunConfig) -> ScoreFunction:
    """Return a function from weights by name to the scores of the classes for the first batch of a run."""
    (batch,) = read_batches(config, count=1)
    objective = config.require_objective()
    assert isinstance(objective, Supervised)

    @jax.jit
    def compute(weights: PyTree) -> Float[Array, "examples classes"]:
        return objective.scores(spec.model(unflatten_names(weights)), batch)["scores"]

    def scores(weights: NamedArrays) -> Float[np.ndarray, "examples classes"]:
        return np.asarray(compute(weights))

    return scores


def assert_every_slice_moved(model: TrainedModel, name: str) -> None:
    """Check that a weight has moved in every layer (a soft prompt: in every soft token)."""
    initial = model.initial[name][-len(model.trained[name]) :]
    is_changed = (model.trained[name] != initial).reshape(len(initial), -1).any(axis=1)
    assert is_changed.all(), f"{name} has not moved in {np.flatnonzero(~is_changed)}"


def assert_frozen_weights_stayed(model: TrainedModel) -> None:
    """Check that the frozen weights are bitwise those before the steps."""
    for name, array in model.frozen.items():
        np.testing.assert_array_equal(array, model.initial[name][: len(array)], err_msg=name)


def assert_all_weights_are_trained_or_frozen(model: TrainedModel) -> None:
    sizes = dict.fromkeys(model.initial, 0)
    for part in (model.trained, model.frozen):
        for name, array in part.items():
            sizes[name] += array.size
    assert sizes == {name: array.size for name, array in model.initial.items()}


@pytest.mark.parametrize(
    "method", [pytest.param(name, marks=pytest.mark.slow) if name in SLOW_METHODS else name for name in METHODS]
)
def test_all_trained_weights_move_and_frozen_weights_stay_bitwise_equal(
    method: str, method_config: MethodConfig
) -> None:
    model = train_steps(method_config(method_override(method)))
    assert_all_weights_are_trained_or_frozen(model)
    added = {name for name in model.initial if is_added_parameter(name)}
    assert bool(added) == (method in ADDING_METHODS)
    assert added <= model.trained.keys()
    for name in model.initial.keys() - added:
        is_trained = re.match(TRAINED_BASE_WEIGHTS[method], name) is not None
        assert (name in model.trained) == is_trained, name
    for name in model.trained:
        if name.startswith(UNUSED_PARTS):
            np.testing.assert_array_equal(model.trained[name], model.initial[name])
        elif name in added:
            assert_every_slice_moved(model, name)
        else:
            initial = model.initial[name][-len(model.trained[name]) :]
            assert (model.trained[name] != initial).any(), name
    assert_frozen_weights_stayed(model)


@pytest.mark.parametrize("method", ADDING_METHODS)
def test_removing_what_a_method_has_added_changes_the_scores(method: str, method_config: MethodConfig) -> None:
    config = method_config(method_override(method))
    model = train_steps(config)
    score = score_function(model.spec, config)
    scores = score(model.params)
    # The same model and the same examples without the additions: no virtual tokens come before the texts.
    score_without = score_function(model_spec(config.model), method_config(method_override("head")))
    scores_without = score_without(without_added(model.params))
    assert (np.abs(scores - scores_without).max(axis=1) > 1e-6).all()
    # A few small updates leave some effects below rounding; larger weights make that of every parameter visible.
    rng = np.random.default_rng(0)
    params = dict(model.params)
    added = [name for name in params if is_added_parameter(name)]
    for name in added:
        params[name] = params[name] + rng.standard_normal(params[name].shape, np.float32)
    scores = score(params)
    for name in added:
        for index in range(len(params[name])):
            zeroed = params[name].copy()
            zeroed[index] = 0
            # A parameter that is not used would leave the scores bitwise equal.
            assert (score({**params, name: zeroed}) != scores).any(), f"{name} has no effect in {index}"


def test_lora_scales_its_product_by_alpha_over_rank() -> None:
    """Hu et al. 2022, §4.1: h = W x + alpha/r · B A x."""
    rng = np.random.default_rng(0)
    x, weight, down, up = (rng.standard_normal(shape, np.float32) for shape in ((6, 4), (4, 3), (4, 2), (2, 3)))
    method = LoRA(rank=2, alpha=5.0)
    adapter: Any = SimpleNamespace(down=lambda x, _: x @ down, up=lambda x, _: x @ up, dropout_key=None)
    expected = x @ weight + 5 / 2 * x @ down @ up
    output = method.adapt_linear(adapter, lambda x, _: x @ weight, x, None)
    np.testing.assert_allclose(output, expected, rtol=1e-5, atol=1e-5)
    weights = {"query.weight": weight, "query.adapter.down.weight": down, "query.adapter.up.weight": up}
    merged = method.merged_weights(weights)
    assert merged is not None
    assert merged.keys() == {"query.weight"}
    np.testing.assert_allclose(x @ merged["query.weight"], expected, rtol=1e-5, atol=1e-5)


@pytest.fixture(scope="module")
def pfeiffer_runs(adapted_run: AdaptedRun, fox_config: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two runs of `pfeiffer` on one base, with other seeds."""
    second_run = tmp_path_factory.mktemp("pfeiffer") / "second"
    overrides = [f"run_dir={second_run}", method_override("pfeiffer"), "train.seed=7"]
    assert main(["train", str(fox_config), *overrides]) == 0
    return [adapted_run("pfeiffer"), second_run]


@pytest.mark.slow
@pytest.mark.parametrize("route", FUSION_ROUTES)
def test_fusion_trains_its_route_and_keeps_the_adapters_as_their_runs_trained_them(
    route: str, pfeiffer_runs: list[Path], method_config: MethodConfig
) -> None:
    settings = {
        "adapters": [str(run) for run in pfeiffer_runs],
        "kind": {"width": METHODS["pfeiffer"]["width"]},
        "route": route,
        "chosen": 1,
    }
    config = method_config(f"adapt.method={json.dumps({'fusion': settings})}")
    model = train_steps(config)
    assert_all_weights_are_trained_or_frozen(model)
    assert_frozen_weights_stayed(model)
    route_names = {name for name in model.trained if is_added_parameter(name)}
    assert bool(route_names) == (route != "fixed")
    for name in route_names:
        assert_every_slice_moved(model, name)

    mesh = meshes.make_mesh(config.mesh)
    for number, run_dir in enumerate(pfeiffer_runs):
        _, adapter_weights, _ = open_run(run_dir).trained_weights(mesh)
        part = f".adapters.feedforward.adapters.{number}."
        fused = {name: array for name, array in model.frozen.items() if part in name}
        assert len(fused) == 4
        for name, array in fused.items():
            source_name = name.replace(part, ".adapters.feedforward.")
            np.testing.assert_array_equal(array, flatten_names(adapter_weights)[source_name])

    scores = score_function(model.spec, config)(model.params)
    scores_without = score_function(model_spec(config.model), config)(without_added(model.params))
    assert (np.abs(scores - scores_without).max(axis=1) > 1e-6).all()


def test_lora_trains_in_full_what_trainable_names(method_config: MethodConfig) -> None:
    model = train_steps(method_config("adapt.method={lora: {rank: 2, trainable: '^tokens|attention_norm'}}"))
    base_weights = {name for name in without_added(model.trained) if not name.startswith("head.")}
    assert base_weights == {
        "tokens.weight",
        "encoder.stack.layers.0.attention_norm.scale",
        "encoder.stack.layers.0.attention_norm.bias",
    }
    for name in base_weights:
        assert not np.array_equal(model.trained[name], model.initial[name]), name
    assert_frozen_weights_stayed(model)
    assert_all_weights_are_trained_or_frozen(model)
