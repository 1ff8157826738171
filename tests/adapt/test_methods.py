"""Every method: what it adds begins as nothing, what it freezes stays, and what it saves is only what differs."""

import json
import math
from pathlib import Path

import jax
import numpy as np
import pytest

import t5x_lite
from t5x_lite import config as configuration
from t5x_lite.adapt import BitFit, Unfreeze
from t5x_lite.adapt.initial_weights import initial_weights
from t5x_lite.cli import main
from t5x_lite.models.config import ModelConfig
from t5x_lite.models.spec import model_spec
from t5x_lite.parallel.mesh import make_mesh
from t5x_lite.run_dir import with_vocab
from t5x_lite.train.steps import make_steps
from t5x_lite.trees import flatten_names, unflatten_names
from tests.conftest import REPOSITORY, lines

LAYERS = 2
E = 32  # embed
METHODS = {
    "full": {},
    "head": {},
    "features": {"layers": 2},
    "top": {"layers": 1},
    "bitfit": {},
    "houlsby": {"width": 4},
    "pfeiffer": {"width": 4},
    "lora": {"rank": 2},
    "ia3": {},
    "prompt": {"length": 3},
    "prefix": {"length": 3},
    "unfreeze": {},
}
HEAD = 2 * E + 2
COUNTS = {
    "head": HEAD,
    "features": HEAD,
    # q, k, v, out: 4(E² + E); up and down 8E² + 5E; two norms 4E; the head.
    "top": 12 * E**2 + 13 * E + HEAD,
    # Of each layer q, k, v, out, down and two norms E each, up 4E; the last norm is in them (post).
    "bitfit": LAYERS * 11 * E + HEAD,
    # Two a layer: 2·4·E + 4 + E; and the norms, two a layer of 2E.
    "houlsby": LAYERS * (2 * (8 * E + 4 + E) + 4 * E) + HEAD,
    "pfeiffer": LAYERS * (8 * E + 4 + E) + HEAD,
    # Two thin matrices for query and value: rank 2, E to E.
    "lora": LAYERS * 2 * 2 * (2 * E) + HEAD,
    # Keys, values: E each; the inner channels: 4E.
    "ia3": LAYERS * 6 * E + HEAD,
    "prompt": 3 * E + HEAD,
    "prefix": LAYERS * 2 * 3 * E + HEAD,
}


@pytest.fixture(scope="module")
def adapted(fox: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A run of each method, made when it is first asked for."""
    folder = tmp_path_factory.mktemp("adapted")

    class Runs(dict[str, Path]):
        def __missing__(self, name: str) -> Path:
            self[name] = folder / name
            method = json.dumps({name: METHODS[name]})
            assert main(["train", str(fox), f"run_dir={self[name]}", f"adapt.method={method}"]) == 0
            return self[name]

    return Runs()


IN_CI = ("full", "head", "top", "lora", "prefix", "unfreeze")


@pytest.mark.parametrize(
    "method", [name if name in IN_CI else pytest.param(name, marks=pytest.mark.slow) for name in METHODS]
)
def test_a_method_trains_what_it_says_and_nothing_else(
    method: str, adapted: dict[str, Path], encoder_run: Path
) -> None:
    run, base = t5x_lite.load(adapted[method]), t5x_lite.load(encoder_run)
    ours, theirs = flatten_names(run.params), flatten_names(base.params)
    trained = run.config.trainable_split(run.params).trained(run.params)
    sizes = {name: math.prod(value.shape) for name, value in flatten_names(trained).items()}
    if method in COUNTS:
        assert sum(sizes.values()) == COUNTS[method], sizes
    moved = {name for name in ours if name in theirs and not np.array_equal(ours[name], theirs[name])}
    if method == "top":
        assert all(np.array_equal(ours[name][:1], theirs[name][:1]) for name in moved if ".layers." in name)
    assert moved <= set(sizes)
    # A checkpoint holds what trains; Adam has two values for each of these.
    step = next((adapted[method] / "checkpoints").iterdir())
    saved = run.run.checkpoints.meta(int(step.name))
    assert saved["base"]["step"] == 2
    trained_state = jax.eval_shape(lambda: trained)
    assert sum(math.prod(x.shape) for x in jax.tree.leaves(trained_state)) == sum(sizes.values())
    assert "eval/fox/accuracy" in lines(adapted[method])[-1]
    assert (adapted[method] / "eval" / "3" / "fox.jsonl").is_file()


def test_the_optimizer_has_state_for_what_trains_alone(adapted: dict[str, Path]) -> None:

    bytes_of = {}
    for method in ("full", "lora"):
        model = t5x_lite.load(adapted[method])
        steps = make_steps(model.config, model.run.spec, make_mesh(model.config.mesh))
        bytes_of[method] = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(steps.state.opt_state))
    assert bytes_of["lora"] <= 2 * 4 * COUNTS["lora"] + 64  # two float32 moments, and counts
    assert bytes_of["full"] > 20 * bytes_of["lora"]


@pytest.mark.parametrize("method", ["lora", "ia3"])
def test_merged_weights_are_a_plain_model_with_equal_scores(method: str, adapted: dict[str, Path]) -> None:

    run = t5x_lite.load(adapted[method])
    rng = np.random.default_rng(0)
    # Weights that matter: after three steps what was added is next to nothing.
    params = jax.tree.map(lambda x: x + 0.1 * rng.standard_normal(x.shape).astype(x.dtype), run.params)
    merged = run.config.method.merged_weights(flatten_names(params))
    tokens = rng.integers(0, 300, (2, 12))
    with_it = run.run.spec.model(params)
    plain = model_spec(run.config.model).model(unflatten_names(merged))
    np.testing.assert_allclose(with_it(tokens), plain(tokens), atol=2e-4)


@pytest.mark.parametrize("method", ["lora", "houlsby", "pfeiffer", "ia3"])
def test_what_is_added_begins_as_nothing(method: str, fox: Path, encoder_run: Path) -> None:

    base = t5x_lite.load(encoder_run)
    config = configuration.load(fox, [f"adapt.method={json.dumps({method: METHODS[method]})}"])
    config = with_vocab(config, base.tokenizer)
    plan = model_spec(config.model, config.method.surgery)
    params, _ = initial_weights(config, plan, make_mesh(config.mesh))
    tokens = np.random.default_rng(0).integers(0, 300, (2, 12))
    np.testing.assert_allclose(plan.model(params)(tokens), base.run.spec.model(base.params)(tokens), atol=1e-5)


def test_an_adapted_run_resumes_and_refuses_another_base(
    fox: Path,
    adapted: dict[str, Path],
    encoder_run: Path,
    tiny_config: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    command = ["train", str(fox), f"run_dir={adapted['lora']}", 'adapt.method={"lora": {"rank": 2}}']
    assert main([*command, "train.steps=5", "train.allow_changed_config=true"]) == 0
    assert "resumed from step 3" in capsys.readouterr().err
    other = tmp_path / "other"
    overrides = [f"run_dir={other}", "train.seed=5", "train.allow_changed_config=true"]
    assert main(["train", str(encoder_run / "config.yaml"), *overrides]) == 0
    capsys.readouterr()
    assert main(["eval", str(adapted["lora"]), f"adapt.from={other}"]) == 2
    assert "is not the base that this run was adapted from" in capsys.readouterr().err


@pytest.mark.parametrize(
    "route", [pytest.param(one, marks=pytest.mark.slow) for one in ("attention", "soft", "hard", "fixed")]
)
def test_adapters_of_two_runs_are_fused_and_stay_as_they_were(
    route: str, fox: Path, adapted: dict[str, Path], tmp_path: Path
) -> None:
    second = tmp_path / "second"
    method = json.dumps({"pfeiffer": {"width": 4}})
    assert main(["train", str(fox), f"run_dir={second}", f"adapt.method={method}", "train.seed=7"]) == 0
    own = {"adapters": [str(adapted["pfeiffer"]), str(second)], "kind": {"width": 4}, "route": route, "chosen": 1}
    run = tmp_path / route
    command = ["train", str(fox), f"run_dir={run}", f"adapt.method={json.dumps({'fusion': own})}"]
    assert main([*command, "train.steps=1"]) == 0
    weights = flatten_names(t5x_lite.load(run).params)
    for number, source in enumerate((adapted["pfeiffer"], second)):
        held = {k: v for k, v in weights.items() if f".adapters.feedforward.adapters.{number}." in k}
        theirs = flatten_names(t5x_lite.load(source).params)
        assert len(held) == 4
        for name, value in held.items():
            plain = name.replace(f".adapters.feedforward.adapters.{number}.", ".adapters.feedforward.")
            np.testing.assert_array_equal(value, theirs[plain])


def test_layers_thaw_from_the_top_at_lower_rates() -> None:
    """ULMFiT's rule by hand: 2 layers, everything thawed at half of the run, each layer 2.6 times slower."""

    model = ModelConfig(layers=2, embed=8, heads=2, family="encoder")
    rates = lambda name, progress: Unfreeze().learning_rate_factor(name, model, progress).tolist()  # noqa: E731
    layer = "encoder.stack.layers.0.attention.query.weight"
    assert rates("head.scores.weight", 0.0) == 1
    assert rates(layer, 0.0) == [0, 0]
    assert rates(layer, 0.17) == pytest.approx([0, 1 / 2.6])
    assert rates(layer, 0.34) == pytest.approx([1 / 2.6**2, 1 / 2.6])
    assert rates("tokens.weight", 0.34) == 0
    assert rates("tokens.weight", 0.5) == pytest.approx(2.6**-3)


def test_berts_biases_are_the_published_share() -> None:
    """Ben Zaken et al. 2022, Table 1: 0.08 % of BERT large; the count by hand."""

    shares = {}
    for size, vocab in (("base", 30522), ("large", 30522)):
        config = configuration.load(REPOSITORY / f"configs/bert/{size}.yaml", ["data.files=x", f"model.vocab={vocab}"])
        plan = model_spec(config.model)
        counts = {name: math.prod(leaf.shape) for name, leaf in flatten_names(plan.shapes).items()}
        biases = sum(
            n
            for name, n in counts.items()
            if BitFit().first_trained_repeat(name, config.model) == 0 and "encoder." in name
        )
        shares[size] = biases / plan.parameters
        width, mlp, layers = (768, 3072, 12) if size == "base" else (1024, 4096, 24)
        assert biases == layers * (7 * width + mlp) + width
    assert shares["base"] == pytest.approx(0.0009, abs=0.0001)
    assert shares["large"] == pytest.approx(0.0008, abs=0.0001)


def test_a_soft_prompt_stands_before_every_text(adapted: dict[str, Path]) -> None:
    run = t5x_lite.load(adapted["prompt"])
    ids = run.encode_text("the quick brown fox")
    cls = run.tokenizer.vocabulary().named["[CLS]"]
    assert ids[:4].tolist() == [-1, -2, -3, cls]
    (vector,) = run.embed(["the quick brown fox"], pool="cls")
    states = np.asarray(run.run.spec.model(run.params)(ids[None]))
    np.testing.assert_allclose(vector, states[0, 3], atol=1e-5)


@pytest.mark.parametrize("method", ["prompt", "prefix"])
def test_an_objective_without_soft_tokens_is_refused(
    method: str, encoder_run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = REPOSITORY / "configs/quickstart_bert.yaml"
    assert main(["train", str(config), f"adapt.from={encoder_run}", f"adapt.method={method}"]) == 2
    assert "objective masked has no place for soft tokens" in capsys.readouterr().err
