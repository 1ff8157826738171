"""Runs of adaptation methods by the command line: their parameters, checkpoints and metrics, and what is refused."""

import math
from pathlib import Path

import jax
import numpy as np
import pytest

import t5x_lite
from t5x_lite.cli import main
from t5x_lite.models.spec import model_spec
from t5x_lite.parallel.mesh import make_mesh
from t5x_lite.run_weights import initial_weights
from t5x_lite.train.steps import make_steps
from t5x_lite.trees import flatten_names, unflatten_names
from tests.adapt.conftest import METHODS, AdaptedRun, MethodConfig, method_override
from tests.conftest import REPOSITORY, lines

LAYERS = 2
E = 32  # embed
HEAD = 2 * E + 2
TRAINED_PARAMETERS = {
    "head": HEAD,
    "features": HEAD,
    # q, k, v, out: 4(E² + E); up and down 8E² + 5E; two norms 4E; the head.
    "top": 12 * E**2 + 13 * E + HEAD,
    # In each layer q, k, v, out, down and two norms have E each, up has 4E; the last norm is among them (post-norm).
    "bitfit": LAYERS * 11 * E + HEAD,
    # Two adapters per layer, each 2·4·E + 4 + E, and two norms per layer, each 2E.
    "houlsby": LAYERS * (2 * (8 * E + 4 + E) + 4 * E) + HEAD,
    "pfeiffer": LAYERS * (8 * E + 4 + E) + HEAD,
    # Two thin matrices for query and value: rank 2, E to E.
    "lora": LAYERS * 2 * 2 * (2 * E) + HEAD,
    # Keys and values: E each; the inner channels: 4E.
    "ia3": LAYERS * 6 * E + HEAD,
    "prompt": 3 * E + HEAD,
    "prefix": LAYERS * 2 * 3 * E + HEAD,
}
"""Parameters that train, counted by hand."""
FAST_METHODS = ("full", "lora", "prefix")


@pytest.mark.parametrize(
    "method", [name if name in FAST_METHODS else pytest.param(name, marks=pytest.mark.slow) for name in METHODS]
)
def test_a_run_trains_and_saves_the_parameters_of_its_method_and_evaluates_its_task(
    method: str, adapted_run: AdaptedRun, encoder_run: Path
) -> None:
    run_dir = adapted_run(method)
    adapted = t5x_lite.load(run_dir)
    base = t5x_lite.load(encoder_run)
    adapted_weights = flatten_names(adapted.params)
    base_weights = flatten_names(base.params)
    trained = adapted.config.trainable_split(adapted.params).trained(adapted.params)
    trained_sizes = {name: math.prod(array.shape) for name, array in flatten_names(trained).items()}
    if method in TRAINED_PARAMETERS:
        assert sum(trained_sizes.values()) == TRAINED_PARAMETERS[method], trained_sizes
    moved = set()
    for name in adapted_weights.keys() & base_weights.keys():
        if not np.array_equal(adapted_weights[name], base_weights[name]):
            moved.add(name)
    assert moved <= trained_sizes.keys()
    if method == "top":
        for name in moved:
            if ".layers." in name:
                np.testing.assert_array_equal(adapted_weights[name][:1], base_weights[name][:1])
    checkpoints = adapted.run.checkpoints
    assert checkpoints.meta(checkpoints.steps()[-1])["base"]["step"] == 2
    _, saved_weights, _ = adapted.run.trained_weights(adapted.mesh)
    saved_sizes = {name: array.size for name, array in flatten_names(saved_weights).items()}
    assert saved_sizes == trained_sizes
    assert "eval/fox/accuracy" in lines(run_dir)[-1]
    assert "eval/loss" in lines(run_dir)[-1]
    assert "eval/perplexity" not in lines(run_dir)[-1]  # the loss is that of labels
    assert (run_dir / "eval" / "3" / "fox.jsonl").is_file()


def test_the_optimizer_has_state_for_trained_parameters_only(adapted_run: AdaptedRun) -> None:
    state_bytes = {}
    for method in ("full", "lora"):
        model = t5x_lite.load(adapted_run(method))
        steps = make_steps(model.config, model.spec, make_mesh(model.config.mesh))
        arrays = jax.tree.leaves(steps.state.opt_state)
        state_bytes[method] = sum(array.size * array.dtype.itemsize for array in arrays)
    # Two float32 moments, and counts.
    assert state_bytes["lora"] <= 2 * 4 * TRAINED_PARAMETERS["lora"] + 64
    assert state_bytes["full"] > 20 * state_bytes["lora"]


@pytest.mark.parametrize("method", ["lora", "ia3"])
def test_merged_weights_are_a_plain_model_with_equal_states(method: str, adapted_run: AdaptedRun) -> None:
    model = t5x_lite.load(adapted_run(method))
    rng = np.random.default_rng(0)

    def add_noise(array: jax.Array) -> jax.Array:
        return array + 0.1 * rng.standard_normal(array.shape).astype(array.dtype)

    # After three steps the effect of the added parameters is tiny.
    params = jax.tree.map(add_noise, model.params)
    merged = model.config.method.merged_weights(flatten_names(params))
    tokens = rng.integers(0, 300, (2, 12))
    adapted_module = model.spec.model(params)
    plain_module = model_spec(model.config.model).model(unflatten_names(merged))
    np.testing.assert_allclose(adapted_module(tokens), plain_module(tokens), atol=2e-4)


@pytest.mark.parametrize("method", ["lora", "houlsby", "pfeiffer", "ia3"])
def test_added_parameters_do_not_change_the_states_at_first(
    method: str, method_config: MethodConfig, encoder_run: Path
) -> None:
    base = t5x_lite.load(encoder_run)
    config = method_config(method_override(method))
    spec = model_spec(config.model, config.method.surgery)
    params, _ = initial_weights(config, spec, make_mesh(config.mesh))
    tokens = np.random.default_rng(0).integers(0, 300, (2, 12))
    expected_states = base.spec.model(base.params)(tokens)
    np.testing.assert_allclose(spec.model(params)(tokens), expected_states, atol=1e-5)


def test_an_adapted_run_resumes_and_refuses_another_base(
    fox_config: Path,
    adapted_run: AdaptedRun,
    encoder_run: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    run_dir = adapted_run("lora")
    command = ["train", str(fox_config), f"run_dir={run_dir}", method_override("lora")]
    assert main([*command, "train.steps=5", "train.allow_changed_config=true"]) == 0
    assert "resumed from step 3" in capsys.readouterr().err
    other_base = tmp_path / "other_base"
    overrides = [f"run_dir={other_base}", "train.seed=5", "train.allow_changed_config=true"]
    assert main(["train", str(encoder_run / "config.yaml"), *overrides]) == 0
    capsys.readouterr()
    assert main(["eval", str(run_dir), f"adapt.from={other_base}"]) == 2
    assert "is not the base that this run was adapted from" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("overrides", "differences"),
    [
        (("model.embed=64", "model.dropout=0.1"), "model.embed is 32 there, 64 here"),
        (("model.layers=3", "adapt.method=lora"), "model.layers is 2 there, 3 here"),
        (("model.mlp=64", "model.layers=1", "adapt.method=copy_layers"), "model.mlp is 128 there, 64 here"),
        (
            ("model.vocab=400", "model.bias=false", "model.mlp=96"),
            "model.bias is True there, False here; model.mlp is 128 there, 96 here; model.vocab is 300 there, 400 here",
        ),
        (("model.query_key_norm=head",), "model.query_key_norm is 'none' there, 'head' here"),
        (("adapt.method=lottery", "model.embed=64"), "model.embed is 32 there, 64 here"),
    ],
)
def test_a_run_of_another_model_is_refused_by_its_settings_before_data_are_opened(
    overrides: tuple[str, ...],
    differences: str,
    fox_config: Path,
    encoder_run: Path,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
) -> None:
    words = ["train", str(fox_config), f"run_dir={tmp_path}/run", "data.files=/nowhere.tsv", *overrides]
    assert main(words) == 2
    message = capfd.readouterr().err
    assert str(encoder_run) in message
    assert differences in message
    assert not (tmp_path / "run").exists()
    if "adapt.method=lottery" not in overrides:
        start = f"t5x-lite: adapt.from {encoder_run}: its weights do not make this config's model"
        assert message == f"{start}: {differences}\n"


@pytest.mark.parametrize(
    "overrides",
    [
        ("model.dropout=0.1", "model.kernel=xla", "model.remat=full", "model.compute=bfloat16", "model.unroll=0"),
        ("model.layers=1", "adapt.method=copy_layers"),
        (method_override("prefix"),),
    ],
)
def test_a_model_of_the_same_arrays_is_accepted_before_data_are_opened(
    overrides: tuple[str, ...], fox_config: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert main(["train", str(fox_config), f"run_dir={tmp_path}/run", "data.files=/nowhere.tsv", *overrides]) == 2
    assert "no file matches '/nowhere.tsv'" in capfd.readouterr().err


def test_a_soft_prompt_comes_before_every_text(adapted_run: AdaptedRun) -> None:
    model = t5x_lite.load(adapted_run("prompt"))
    token_ids = model.encode_text("the quick brown fox")
    cls = model.tokenizer.vocabulary().named["[CLS]"]
    assert token_ids[:4].tolist() == [-1, -2, -3, cls]
    (embedding,) = model.embed(["the quick brown fox"], pool="cls")
    states = np.asarray(model.spec.model(model.params)(token_ids[None]))
    np.testing.assert_allclose(embedding, states[0, 3], atol=1e-5)


@pytest.mark.parametrize("method", ["prompt", "prefix"])
def test_an_objective_without_soft_tokens_is_refused(
    method: str, encoder_run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = REPOSITORY / "configs/quickstart_bert.yaml"
    assert main(["train", str(config), f"adapt.from={encoder_run}", f"adapt.method={method}"]) == 2
    assert "objective masked has no place for virtual tokens" in capsys.readouterr().err


@pytest.mark.slow
def test_a_softmax_mix_of_layers_learns_its_shares_and_its_factor(fox_config: Path, tmp_path: Path) -> None:
    method = "adapt.method={features: {layers: 3, mix: softmax}}"
    overrides = [f"run_dir={tmp_path / 'run'}", method, "optimizer.learning_rate=0.1"]
    assert main(["train", str(fox_config), *overrides]) == 0
    weights = flatten_names(t5x_lite.load(tmp_path / "run").params)
    assert (np.abs(np.asarray(weights["encoder.stack.mix.weights"])) > 0.01).all()
    assert abs(float(weights["encoder.stack.mix.gamma"]) - 1) > 0.01
    assert "mix" in (tmp_path / "run/config.yaml").read_text()
