"""Runs of a sweep: combinations, counts, rules, branches."""

from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from t5x_lite import config as configuration
from t5x_lite.errors import UserError
from t5x_lite.sweep import config
from t5x_lite.sweep.grid import expand
from t5x_lite.sweep.planned_run import job_name
from t5x_lite.sweep.rules import batch_tokens_by_rule, learning_rate_by_rule
from t5x_lite.train.schedules import Constant
from tests.sweep.conftest import SweepFactory


def test_axes_and_seeds_are_combined_and_the_keys_of_one_axis_vary_together(
    make_sweep: SweepFactory, tmp_path: Path, tiny_config: Path
) -> None:
    axes = {
        "size": {"model.embed": [16, 32], "model.layers": [1, 2]},
        "rate": {"optimizer.learning_rate": {"log": [0.001, 0.1, 3]}},
    }
    derived = {"model.mlp": "3 * model.embed", "optimizer.warmup_steps": "train.steps // 4"}
    runs = expand(make_sweep(axes=axes, derived=derived, seeds=[0, 5]))
    assert len(runs) == 2 * 3 * 2
    assert len({run.name for run in runs}) == 12
    sizes = {(run.overrides["model.embed"], run.overrides["model.layers"], run.overrides["model.mlp"]) for run in runs}
    assert sizes == {(16, 1, 48), (32, 2, 96)}
    assert {run.overrides["train.seed"] for run in runs} == {0, 5}
    run_config = configuration.load(tiny_config, runs[0].words)
    assert (run_config.optimizer.warmup_steps, run_config.model.mlp) == (3, 48)
    assert run_config.run_dir == str((tmp_path / "sweep/runs" / runs[0].name).absolute())


def test_a_list_of_configs_is_an_axis(make_sweep: SweepFactory, tiny_config: Path, tmp_path: Path) -> None:
    wide = tmp_path / "wide.yaml"
    wide.write_text(yaml.safe_dump({"base": [str(tiny_config)], "model": {"embed": 64}}))
    rates = {"rate": {"optimizer.learning_rate": [0.1, 0.2]}}
    runs = expand(make_sweep(config=[str(tiny_config), "wide.yaml"], axes=rates))
    names = [f"{config}-learning-rate{rate}" for config in ("tiny", "wide") for rate in (0.1, 0.2)]
    assert [run.name for run in runs] == names  # the cheapest first
    widths = [configuration.load(run.config, run.words).model.embed for run in runs]
    assert widths == [32, 32, 64, 64]
    with pytest.raises(UserError, match="two runs would be named tiny-learning-rate"):
        expand(make_sweep(config=[str(tiny_config), str(tiny_config)], axes=rates))


def test_n_d_and_c_equal_a_count_by_hand(make_sweep: SweepFactory) -> None:
    """A GPT of d = 32, 2 layers, 4·d inside, 300 tokens, 32 positions, 16 tokens a row; C as in PaLM's appendix B."""
    embed = 32
    mlp = 128
    layer = 4 * embed * embed + 4 * embed + 2 * embed * mlp + mlp + embed + 4 * embed
    tables = 300 * embed + 32 * embed
    weights = 2 * layer + 2 * embed + tables
    matrices = 2 * (4 * embed * embed + 2 * embed * mlp) + 300 * embed
    attention = 12 * 2 * embed * 16 / 2
    expected = {
        ("all", "6nd"): (weights, 6 * weights),
        ("active", "model"): (weights, 6 * matrices + attention),
        ("non_embedding", "6nd"): (weights - tables, 6 * (weights - tables)),
    }
    for (parameters, flops), (expected_parameters, flops_per_token) in expected.items():
        (run,) = expand(make_sweep(parameters=parameters, flops=flops))
        assert (run.parameters, run.tokens) == (expected_parameters, 12 * 4 * 16)
        assert run.flops == pytest.approx(flops_per_token * 12 * 4 * 16)


def test_active_parameters_count_the_experts_that_a_token_is_routed_to(make_sweep: SweepFactory) -> None:
    axes = {"e": {"model.feedforward.moe.experts": [1, 4, 8]}}
    runs = expand(make_sweep(axes=axes))
    assert sorted(run.experts for run in runs) == [1, 4, 8]
    router = 32 * 2  # one column per layer and expert
    parameters = [run.parameters for run in runs]
    assert max(parameters) - min(parameters) == 7 * router
    runs_counted_whole = expand(make_sweep(axes=axes, parameters="all"))
    assert runs_counted_whole[-1].parameters > 2 * runs[0].parameters


def test_steps_follow_from_the_budget(make_sweep: SweepFactory) -> None:
    axes = {"size": {"model.embed": [16, 32]}}
    runs = expand(make_sweep(axes=axes, budgets=[1e9, 4e9]))
    assert len(runs) == 4
    for run in runs:
        assert run.flops == pytest.approx(run.budget, rel=0.02)
        assert run.tokens == run.steps * 64 == run.overrides["train.steps"] * 64
    with pytest.raises(UserError, match="less than one step of 64 tokens"):
        expand(make_sweep(budgets=[1e3]))


def test_steps_are_an_integer_also_where_the_file_gives_a_float(make_sweep: SweepFactory) -> None:
    """`1e1` is a float in YAML; the folder of the last checkpoint is named after the steps."""
    (run,) = expand(make_sweep(set={"train.steps": 1e1}))
    assert str(run.steps) == "10"


def test_tokens_can_follow_from_the_parameters(make_sweep: SweepFactory) -> None:
    """20 tokens for each parameter (Hoffmann et al. 2022), in steps of 8 rows of 16 tokens."""
    axes = {"size": {"model.embed": [16, 32]}}
    derived = {"train.batch_size": "2 * 4", "train.steps": "round(20 * N / (train.batch_size * train.seq_len))"}
    for run in expand(make_sweep(axes=axes, derived=derived)):
        assert run.overrides["train.batch_size"] == 8
        assert run.steps == run.overrides["train.steps"] == round(20 * run.parameters / 128)
        assert run.tokens == run.steps * 128
        assert run.flops == pytest.approx(run.steps * run.step_flops)


def test_rules_for_learning_rate_and_batch_size_are_the_published_ones(make_sweep: SweepFactory) -> None:
    """DeepSeek LLM 2024, §3.1: for 1e17 FLOPs η = 0.3118·C^-0.125 and B = 0.292·C^0.3271 tokens; Kaplan, eq. D.1."""
    assert learning_rate_by_rule("deepseek", 0.0, 1e17) == pytest.approx(2.338e-3, rel=1e-3)
    assert batch_tokens_by_rule("deepseek", 0.0, 1e17) == pytest.approx(106_500, rel=5e-3)
    assert learning_rate_by_rule("kaplan", 1e8, 0.0) == pytest.approx(6.69e-4, rel=1e-3)
    assert batch_tokens_by_rule("kaplan", 8.8e13, 0.0) == pytest.approx(2e8)  # where the loss is 1
    settings = {"budgets": [1e12], "learning_rate": "deepseek", "batch_size": "deepseek", "batch_multiple": 4}
    (run,) = expand(make_sweep(**settings))
    assert run.overrides["optimizer.learning_rate"] == pytest.approx(0.3118 * run.flops**-0.125, rel=1e-4)
    assert run.overrides["train.batch_size"] == round(0.292 * 1e12**0.3271 / 16 / 4) * 4
    with pytest.raises(UserError, match="needs `budgets`"):
        expand(make_sweep(batch_size="deepseek"))


def test_branches_leave_a_trunk_where_their_decay_begins(make_sweep: SweepFactory, tiny_config: Path) -> None:
    axes = {"length": {"train.steps": [12, 20, 40]}, "size": {"model.embed": [16, 32]}}
    schedule = {"optimizer.schedule": {"wsd": {"decay": 0.25}}, "optimizer.warmup_steps": 2}
    runs = expand(make_sweep(axes=axes, set=schedule, branches=True))
    trunks = [run for run in runs if run.trunk]
    assert len(runs) == 2 + 6
    assert runs[:2] == trunks
    for trunk in trunks:
        assert trunk.steps == 30
        trunk_config = configuration.load(tiny_config, trunk.words)
        assert trunk_config.checkpoint.keep_steps == (9, 15, 30)
        assert isinstance(trunk_config.optimizer.schedule, Constant)
        branches = [run for run in runs if run.after == trunk.name]
        assert {(run.steps, run.computed_steps, run.overrides["branch.step"]) for run in branches} == {
            (12, 3, 9),
            (20, 5, 15),
            (40, 10, 30),
        }
    flops_without_sharing = sum(run.flops for run in runs if not run.trunk)
    flops = sum(run.computed_flops for run in runs)
    assert flops == pytest.approx(flops_without_sharing * (30 + 3 + 5 + 10) / 72)


def test_a_trunk_keeps_its_name_where_runs_are_added(make_sweep: SweepFactory) -> None:
    schedule = {"optimizer.schedule": {"wsd": {"decay": 0.25}}, "optimizer.warmup_steps": 2}
    for steps in ([20, 40], [12, 20, 40, 80]):
        axes = {"length": {"train.steps": steps}, "size": {"model.embed": [16, 32]}}
        runs = expand(make_sweep(axes=axes, set=schedule, branches=True))
        assert [run.name for run in runs if run.trunk] == ["embed16-trunk", "embed32-trunk"]
    axes = {"length": {"train.steps": [20, 40]}}
    assert expand(make_sweep(axes=axes, set=schedule, branches=True))[0].name == "trunk"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"axes": {"a": {"model.embed": [16, 32], "model.layers": [1]}}}, "axes.a: the keys of one axis need equally"),
        ({"axes": {"a": {"model.embd": [16]}}}, "unknown key `model.embd`; did you mean `model.embed`"),
        ({"axes": {"a": {"model.heads": [3]}}}, "run heads3 of the sweep.*not a multiple of heads 3"),
        ({"derived": {"model.mlp": "N * 2"}}, "derived.model.mlp: 'N \\* 2': N is not set"),
        ({"derived": {"train.steps": "D / 100"}}, "derived.train.steps: 'D / 100': D is not set"),
        ({"derived": {"train.steps": "1.5"}}, "run run of the sweep: `train.steps` is 1.5"),
        ({"budget": [1]}, "unknown key `budget`; did you mean `budgets`"),
        ({"branches": True}, "no two runs of the sweep differ in train.steps alone"),
        ({"branches": True, "axes": {"a": {"train.steps": [4, 8]}}}, "need optimizer.schedule wsd"),
        ({"axes": {"a": {"optimizer.learning_rate": [0.1, 0.1]}}}, "two runs would be named learning-rate0.1"),
        (
            {"set": {"checkpoint.folder": "x"}, "axes": {"a": {"optimizer.learning_rate": [0.1, 0.2]}}},
            r"checkpoint.folder x would have the checkpoints of \d runs",
        ),
        ({"set": {"train.sample_prompt": "two words"}}, "cannot hold white space"),
        ({"where": "tpu_vm"}, "`where` tpu_vm needs `dir` in a bucket"),
        ({"where": "gke"}, "`where` gke needs `dir` in a bucket, such as gs://BUCKET/sweeps/NAME"),
        ({"where": "moon"}, "expected local, slurm, gke or tpu_vm|`where`"),
    ],
)
def test_a_wrong_setting_is_refused_by_its_key(
    make_sweep: SweepFactory, settings: dict[str, object], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        expand(make_sweep(**settings))


def test_the_shipped_sweeps_have_enough_sizes_and_budgets() -> None:
    folder = Path(__file__).resolve().parents[2] / "configs/sweeps"
    for path in sorted(folder.glob("*.yaml")):
        runs = [run for run in expand(config.load(path)) if not run.trunk]
        assert len({run.parameters for run in runs}) >= 4
        assert len({run.budget for run in runs}) >= 4
        # Rounding to whole steps moves no run far from its budget.
        assert all(run.flops == pytest.approx(run.budget, rel=0.02) for run in runs), path


def test_names_of_jobs_are_valid_on_clusters(make_sweep: SweepFactory) -> None:
    sweep = make_sweep()
    sweep = replace(sweep, config=sweep.config.model_copy(update={"where": "tpu_vm"}))
    assert job_name(sweep, "embed64-c1e12") == "grid-embed64-c1e12"
    long_name = job_name(sweep, "embed64-learning_rate0.001-c1e12-s1")
    assert len(long_name) <= 32
    assert long_name != job_name(sweep, "embed64-learning_rate0.001-c1e12-s2")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"set": {"data.schedule": [{"name": "a", "seq_len": 8}]}}, "data.schedule changes seq_len or batch_size"),
        ({"set": {"data.schedule": [{"name": "a"}], "optimizer.schedule": "wsd"}, "branches": True}, "begin elsewhere"),
    ],
    ids=["length", "branches"],
)
def test_schedules_that_a_law_or_a_trunk_has_no_place_for_are_refused(
    options: dict[str, object], message: str, make_sweep: SweepFactory
) -> None:
    with pytest.raises(UserError, match=message):
        expand(make_sweep(axes={"length": {"train.steps": [12, 20]}}, **options))


def test_an_axis_without_a_name_is_refused(make_sweep: SweepFactory) -> None:
    with pytest.raises(
        UserError, match=r"an axis has a name above its keys: write \{NAME: \{model\.embed: \[16, 32\]\}\}"
    ):
        make_sweep(axes={"model.embed": [16, 32]})
