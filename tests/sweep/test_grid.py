"""Sweep files: values, expressions, combinations, counts, rules, branches."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from t5x_lite import config as configuration
from t5x_lite.errors import UserError
from t5x_lite.sweep import config, grid
from t5x_lite.sweep.expression import evaluate

NAMES = {"model.embed": 64, "N": 1e6, "data.files": "x"}


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("8 * round(model.embed / 3)", 168),
        ("-2 ** 2 + 7 // 2 % 2", -3),
        ("max(sqrt(16), log2(8), floor(2.9))", 4),
        ("0.003239 - 0.0001395 * log(N)", 0.0013117),
    ],
)
def test_arithmetic(text: str, value: float) -> None:
    assert evaluate(text, NAMES.__getitem__) == pytest.approx(value, rel=1e-4)


@pytest.mark.parametrize(
    "text",
    [
        *("__import__('os')", "N.__class__", "'a' * 3", "model.layers", "1 +", "[1][0]", "data.files"),
        *("(lambda: 1)()", "1/0", "9.0**9999", "True", "round(1, ndigits=2)"),
    ],
)
def test_what_is_not_arithmetic_is_refused(text: str) -> None:
    with pytest.raises(UserError, match="'"):
        evaluate(text, NAMES.__getitem__)


def test_values_of_an_axis() -> None:
    assert config.values_of("k", [1, 2]) == [1, 2]
    assert config.values_of("k", {"range": [1, 7, 3]}) == [1, 4, 7]
    assert config.values_of("k", {"log": [1e-3, 1e-1, 3]}) == [1e-3, 1e-2, 1e-1]
    for wrong in ([], 5, {"log": [0, 1, 3]}, {"range": [1, 2, 0]}, {"linear": [1, 2, 3]}):
        with pytest.raises(UserError, match="k: expected a list"):
            config.values_of("k", wrong)


def sweep(folder: Path, base: Path, **settings: Any) -> config.Sweep:
    path = folder / "grid.yaml"
    path.write_text(yaml.safe_dump({"config": str(base), "dir": str(folder / "sweep"), **settings}))
    return config.load(path)


def test_every_combination_of_axes_and_seeds_keys_of_one_axis_together(tmp_path: Path, tiny_config: Path) -> None:
    axes = {
        "size": {"model.embed": [16, 32], "model.layers": [1, 2]},
        "rate": {"optimizer.learning_rate": {"log": [0.001, 0.1, 3]}},
    }
    derived = {"model.mlp": "3 * model.embed", "optimizer.warmup_steps": "train.steps // 4"}
    runs = grid.expand(sweep(tmp_path, tiny_config, axes=axes, derived=derived, seeds=[0, 5]))
    assert len(runs) == 2 * 3 * 2
    assert len({run.name for run in runs}) == 12
    assert {(r.overrides["model.embed"], r.overrides["model.layers"], r.overrides["model.mlp"]) for r in runs} == {
        (16, 1, 48),
        (32, 2, 96),
    }
    assert {run.overrides["train.seed"] for run in runs} == {0, 5}
    own = configuration.load(tiny_config, runs[0].words)
    assert (own.optimizer.warmup_steps, own.model.mlp) == (3, 48)
    assert own.run_dir == str((tmp_path / "sweep/runs" / runs[0].name).absolute())


def test_n_d_and_c_are_counted_by_hand(tmp_path: Path, tiny_config: Path) -> None:
    """A GPT of d = 32, 2 layers, 4·d inside, 300 tokens, 32 positions, 16 tokens a row; C as in PaLM's appendix B."""
    d, inner = 32, 128
    layer = 4 * d * d + 4 * d + 2 * d * inner + inner + d + 4 * d
    tables = 300 * d + 32 * d
    weights = 2 * layer + 2 * d + tables
    matrices = 2 * (4 * d * d + 2 * d * inner) + 300 * d
    attention = 12 * 2 * d * 16 / 2
    expected = {
        ("all", "6nd"): (weights, 6 * weights),
        ("active", "model"): (weights, 6 * matrices + attention),
        ("non_embedding", "6nd"): (weights - tables, 6 * (weights - tables)),
    }
    for (parameters, flops), (n, per_token) in expected.items():
        (run,) = grid.expand(sweep(tmp_path, tiny_config, parameters=parameters, flops=flops))
        assert (run.parameters, run.tokens) == (n, 12 * 4 * 16)
        assert run.flops == pytest.approx(per_token * 12 * 4 * 16)


def test_experts_count_as_many_as_a_token_passes(tmp_path: Path, tiny_config: Path) -> None:
    axes = {"e": {"model.feedforward.moe.experts": [1, 4, 8]}}
    runs = grid.expand(sweep(tmp_path, tiny_config, axes=axes))
    assert [run.experts for run in sorted(runs, key=lambda run: run.experts)] == [1, 4, 8]
    router = 32 * 2  # one column a layer and expert
    assert max(run.parameters for run in runs) - min(run.parameters for run in runs) == 7 * router
    assert (
        grid.expand(sweep(tmp_path, tiny_config, axes=axes, parameters="all"))[-1].parameters > 2 * runs[0].parameters
    )


def test_steps_follow_from_the_budget(tmp_path: Path, tiny_config: Path) -> None:
    axes = {"size": {"model.embed": [16, 32]}}
    runs = grid.expand(sweep(tmp_path, tiny_config, axes=axes, budgets=[1e9, 4e9]))
    assert len(runs) == 4
    for run in runs:
        assert run.flops == pytest.approx(run.budget, rel=0.02)
        assert run.tokens == run.steps * 64 == run.overrides["train.steps"] * 64
    with pytest.raises(UserError, match="less than one step of 64 tokens"):
        grid.expand(sweep(tmp_path, tiny_config, budgets=[1e3]))


def test_rules_for_rate_and_batch_are_the_published_ones(tmp_path: Path, tiny_config: Path) -> None:
    """DeepSeek LLM 2024, §3.1: for 1e17 FLOPs η = 0.3118·C^-0.125 and B = 0.292·C^0.3271 tokens; Kaplan, eq. D.1."""
    assert grid.learning_rate("deepseek", 0, 1e17) == pytest.approx(2.338e-3, rel=1e-3)
    assert grid.batch_tokens("deepseek", 0, 1e17) == pytest.approx(106_500, rel=5e-3)
    assert grid.learning_rate("kaplan", 1e8, 0) == pytest.approx(6.69e-4, rel=1e-3)
    assert grid.batch_tokens("kaplan", 8.8e13, 0) == pytest.approx(2e8)  # where the loss is 1
    settings = {"budgets": [1e12], "learning_rate": "deepseek", "batch_size": "deepseek", "batch_multiple": 4}
    (run,) = grid.expand(sweep(tmp_path, tiny_config, **settings))
    assert run.overrides["optimizer.learning_rate"] == pytest.approx(0.3118 * run.flops**-0.125, rel=1e-4)
    assert run.overrides["train.batch_size"] == round(0.292 * 1e12**0.3271 / 16 / 4) * 4
    with pytest.raises(UserError, match="needs `budgets`"):
        grid.expand(sweep(tmp_path, tiny_config, batch_size="deepseek"))


WSD = {"optimizer.schedule": {"wsd": {"decay": 0.25}}, "optimizer.warmup_steps": 2}


def test_branches_leave_one_long_run_where_their_decay_begins(tmp_path: Path, tiny_config: Path) -> None:
    axes = {"length": {"train.steps": [12, 20, 40]}, "size": {"model.embed": [16, 32]}}
    runs = grid.expand(sweep(tmp_path, tiny_config, axes=axes, set=WSD, branches=True))
    trunks = [run for run in runs if run.trunk]
    assert len(runs) == 2 + 6
    assert runs[:2] == trunks
    for trunk in trunks:
        assert trunk.steps == 30
        own = configuration.load(tiny_config, trunk.words)
        assert own.checkpoint.keep_steps == (9, 15, 30)
        assert type(own.optimizer.schedule).__name__ == "Constant"
        after = [run for run in runs if run.after == trunk.name]
        assert {(run.steps, run.own_steps, run.overrides["branch.step"]) for run in after} == {
            (12, 3, 9),
            (20, 5, 15),
            (40, 10, 30),
        }
    whole = sum(run.flops for run in runs if not run.trunk)
    assert sum(run.own_flops for run in runs) == pytest.approx(whole * (30 + 3 + 5 + 10) / 72)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"axes": {"a": {"model.embed": [16, 32], "model.layers": [1]}}}, "axes.a: keys of one axis go together"),
        ({"axes": {"a": {"model.embd": [16]}}}, "unknown key `model.embd`; did you mean `model.embed`"),
        ({"axes": {"a": {"model.heads": [3]}}}, "run heads3 of the sweep.*not a multiple of heads 3"),
        ({"derived": {"model.mlp": "N * 2"}}, "derived.model.mlp: 'N \\* 2': N is not set"),
        ({"budget": [1]}, "unknown key `budget`; did you mean `budgets`"),
        ({"branches": True}, "no two runs of the sweep differ in train.steps alone"),
        ({"branches": True, "axes": {"a": {"train.steps": [4, 8]}}}, "need optimizer.schedule wsd"),
        ({"axes": {"a": {"optimizer.learning_rate": [0.1, 0.1]}}}, "two runs would be named learning-rate0.1"),
        ({"set": {"train.sample_prompt": "two words"}}, "cannot hold blanks"),
        ({"where": "moon"}, "expected local, slurm, gke or tpu_vm|`where`"),
    ],
)
def test_a_wrong_sweep_is_refused_by_key(
    tmp_path: Path, tiny_config: Path, settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        grid.expand(sweep(tmp_path, tiny_config, **settings))


def test_the_shipped_sweeps_make_runs() -> None:
    folder = Path(__file__).resolve().parents[2] / "configs/sweeps"
    for path in sorted(folder.glob("*.yaml")):
        runs = grid.expand(config.load(path))
        points = [run for run in runs if not run.trunk]
        assert len({run.parameters for run in points}) >= 4
        assert len({run.budget for run in points}) >= 4
        # Rounding to whole steps moves no run far from its budget.
        assert all(run.flops == pytest.approx(run.budget, rel=0.02) for run in points), path


def test_names_of_jobs_are_what_clusters_take(tmp_path: Path, tiny_config: Path) -> None:
    own = sweep(tmp_path, tiny_config, where="gke")
    assert grid.job_name(own, "embed64-c1e12") == "grid-embed64-c1e12"
    long = grid.job_name(own, "embed64-learning_rate0.001-c1e12-s1")
    assert len(long) <= 32
    assert long != grid.job_name(own, "embed64-learning_rate0.001-c1e12-s2")
    assert json.loads(json.dumps(grid.expand(own)[0].run_dir)).startswith("/bucket/runs/grid-")
