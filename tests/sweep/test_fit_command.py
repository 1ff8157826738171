"""`sweep fit` as a user sees it: tables, JSON alone, files, one line for an error; and the config that it writes."""

import json
from pathlib import Path

import numpy as np
import pytest
import yaml

from t5x_lite import config as configuration
from t5x_lite.cli import main
from t5x_lite.metrics_file import read_metrics
from t5x_lite.sweep.config import load
from t5x_lite.sweep.grid import expand
from t5x_lite.sweep.model_counts import count_model
from t5x_lite.sweep.planned_run import write_plan
from tests.conftest import Shell
from tests.laws.known_law import BESIROGLU, besiroglu_loss, isoflop_runs


@pytest.fixture
def table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A CSV file of 20 runs, a diverged run and an incomplete row."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    points = isoflop_runs(3)
    rows = [f"{n},{d},{loss}" for n, d, loss in zip(points.parameters, points.tokens, points.loss, strict=True)]
    path = tmp_path / "runs.csv"
    path.write_text("\n".join(["N,D,loss", *rows, "1e9,1e9,inf", "1e9,"]))
    return path


@pytest.mark.slow
def test_fit_prints_one_json_object_and_writes_it_with_a_figure(
    table: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["sweep", "fit", str(table), "--json", "--draws", "10", "--budget", "1e22", "--run", "1e10", "2e11"]
    assert main(words) == 0
    law = json.loads(capsys.readouterr().out)
    assert law["points"] == len(law["runs"]) == 20
    assert set(law["runs"][0]) == {"name", "parameters", "tokens", "flops", "loss", "residual"}
    assert law["left_out"] == {"line 22": "diverged: loss is inf", "line 23": "the last row is incomplete"}
    assert law["laws"]["L(N, D)"]["constants"]["E"]["value"] == pytest.approx(BESIROGLU["E"], rel=0.05)
    best = law["prediction"]["L(N, D)"]
    assert best["parameters"]["value"] * best["tokens"]["value"] * 6 == pytest.approx(1e22)
    assert law["run"]["loss"]["value"] == pytest.approx(besiroglu_loss(1e10, 2e11), rel=0.01)
    assert law["held_out"]["budget"]["points"] == 5
    assert law["held_out"]["budget"]["largest_error"] < 0.02
    assert json.loads((table.parent / "sweeps/runs/law.json").read_text()) == law
    assert (table.parent / "sweeps/runs/law.png").read_bytes()[:4] == b"\x89PNG"


@pytest.mark.slow
def test_fit_prints_tables_and_drops_the_highest_loss(table: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["sweep", "fit", str(table), "--draws", "10", "--drop-highest", "1"]) == 0
    output = capsys.readouterr().out
    assert "19 points" in output
    assert "is among the 1 highest" in output
    assert "fitted without the largest budget" in output
    assert "training curves: not fitted: needs training curves of 3 sizes" in output


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["fit"], "give a sweep's YAML file or a CSV"),
        (["fit", "none.csv"], "none.csv: cannot be read"),
        (["fit", "none.yaml"], "none.yaml: no such config file"),
        (["fit", "runs.csv", "--emit", "c.yaml"], "a table has no config"),
        (["fit", "runs.csv", "--budget", "-1"], "--budget and --run must be above 0"),
        (["fit", "runs.csv", "--drop-highest", "16"], "points are too few"),
        (["runs.csv", "--hurry"], "unknown option --hurry"),
        (["fit", "equal.csv"], "the 7 points have one loss, 3, of which no law can be fitted"),
        (["fit", "negative.csv"], "negative.csv:2: the loss must be above 0 (nats per token), found -3.0"),
        (["status", "runs.csv"], "there is no action 'status'; there are fit, eval, plot"),
    ],
)
def test_an_error_is_one_line(table: Path, capsys: pytest.CaptureFixture[str], words: list[str], message: str) -> None:
    for name, loss in (("equal", 3.0), ("negative", -3.0)):
        rows = [f"{n}e6,{n + number}e7,{loss}" for number, n in enumerate((1, 1, 2, 2, 3, 3, 4))]
        (table.parent / f"{name}.csv").write_text("\n".join(["n,d,loss", *rows]))
    assert main(["sweep", *words]) == 2
    output = capsys.readouterr()
    assert output.out == ""
    assert message in output.err
    assert output.err.count("\n") == 1


def write_finished_sweep(folder: Path, tiny_config: Path) -> Path:
    """Write a sweep whose runs follow a known law; one of them has diverged, and one is not complete."""
    path = folder / "finished.yaml"
    settings = {
        "config": str(tiny_config),
        "axes": {"size": {"model.embed": [16, 32, 64, 128], "model.heads": [2, 4, 8, 16]}},
        "budgets": {"log": [1e9, 8e9, 4]},
        "dir": str(folder / "finished"),
    }
    path.write_text(yaml.safe_dump(settings))
    sweep = load(path)
    runs = expand(sweep)
    write_plan(sweep, runs)
    rng = np.random.default_rng(0)
    for index, run in enumerate(runs):
        steps = np.unique(np.geomspace(1, run.steps, 60).astype(int))
        if index == 3:
            steps = steps[:-1]
        loss = 1.5 + 30 / run.parameters**0.35 + 40 / (steps * 64) ** 0.3
        loss = loss * np.exp(0.002 * rng.standard_normal(len(steps)))
        records = []
        for step, value in zip(steps, loss, strict=True):
            records.append({"step": int(step), "tokens": int(step) * 64, "loss": float(value)})
        records[-1]["eval/loss"] = float(loss[-1])
        run_dir = Path(run.run_dir)
        run_dir.mkdir(parents=True)
        (run_dir / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    diverged = {"run": runs[5].name, "state": "diverged", "reason": "step 9: not finite"}
    (sweep.folder / "sweep.jsonl").write_text(json.dumps(diverged) + '\n{"run": "torn')
    return path


def test_settings_that_the_plan_was_not_counted_with_are_refused(
    tmp_path: Path, tiny_config: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write_finished_sweep(tmp_path, tiny_config)
    assert main(["sweep", "fit", str(path), "parameters=all"]) == 2
    assert "was planned with other settings: parameters was 'active', is 'all'; start the" in capsys.readouterr().err


@pytest.mark.slow
def test_the_emitted_config_is_that_of_the_predicted_run(
    tmp_path: Path, tiny_config: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    path = write_finished_sweep(tmp_path, tiny_config)
    emitted = tmp_path / "best.yaml"
    words = ["sweep", "fit", str(path), "--json", "--draws", "10", "--budget", "3e10", "--emit", str(emitted)]
    assert main(words) == 0
    law = json.loads(capsys.readouterr().out)
    assert law["points"] == 14
    reasons = [reason.partition(":")[0] for reason in law["left_out"].values()]
    assert sorted(reasons) == ["diverged", "not complete"]
    curves_were_read = "training curves of 3 sizes" not in str(law["compute_optimal_exponents"])
    assert curves_were_read
    config = configuration.load(emitted)
    counts = count_model(config, load(path).config)
    assert counts.parameters == pytest.approx(law["prediction"]["L(N, D)"]["parameters"]["value"], rel=0.25)
    assert counts.flops * config.train.steps * 64 == pytest.approx(3e10, rel=0.01)
    assert config.model.head_dim == 8


@pytest.mark.slow
def test_a_branch_equals_the_run_that_it_replaces(tmp_path: Path, tiny_config: Path, t5x_lite: Shell) -> None:
    """A run of 12 steps, the last 3 of which decay, equals these 3 from a constant run's checkpoint, bit by bit."""
    schedule = "optimizer.schedule.wsd.decay=0.25"
    from_trunk = f"branch.from={tmp_path}/trunk"
    overrides = {
        "unbranched": [schedule],
        "trunk": ["optimizer.schedule=constant", "train.steps=11", "checkpoint.keep_steps=[9]"],
        "branch": [schedule, from_trunk, "branch.step=9"],
    }
    for name, words in overrides.items():
        completed = t5x_lite("train", tiny_config, f"run_dir={tmp_path}/{name}", *words)
        assert completed.returncode == 0, completed.stderr
    unbranched = read_metrics(tmp_path / "unbranched")
    branch = read_metrics(tmp_path / "branch")
    assert [record["step"] for record in branch] == [10, 11, 12]
    for expected, record in zip(unbranched[9:], branch, strict=True):
        assert record["loss"] == expected["loss"]
        assert record.get("eval/loss") == expected.get("eval/loss")
    other_seed = t5x_lite("train", tiny_config, f"run_dir={tmp_path}/x", from_trunk, "train.seed=4")
    assert other_seed.returncode == 2
    assert "train.seed is 0 there, 4 here" in other_seed.stderr


def plan_with(**changes: object) -> object:
    run = {
        "name": "a",
        "config": "tiny.yaml",
        "overrides": {},
        "run_dir": "runs/a",
        "parameters": 1e6,
        "tokens": 1e6,
        "flops": 1e12,
        "budget": 0.0,
        "experts": 1,
        "steps": 10,
        "computed_steps": 10,
        "step_flops": 1e11,
        "trunk": False,
        "after": None,
    }
    return {"sweep": "s", "settings": {}, "runs": [{**run, **changes}]}


@pytest.mark.parametrize(
    ("plan", "message"),
    [
        (plan_with(), "no run is complete and has a validation loss"),
        ([], "is not a JSON object but a list"),
        ({}, "plan.json: sweep: Field required"),
        ({"sweep": "s", "settings": {}, "runs": 5}, "plan.json: runs: Input should be a valid array"),
        ({"sweep": "s", "settings": {}, "runs": [5]}, "plan.json: runs.0: "),
        (plan_with(steps="10"), "plan.json: runs.0.steps: "),
        (plan_with(steps=0), "plan.json: runs.0.steps: "),
        (plan_with(flops=-1.0), "plan.json: runs.0.flops: "),
        (plan_with(tokens=10**400), "plan.json: runs.0.tokens: "),
        (plan_with(tokens=float("nan")), "plan.json: runs.0.tokens: "),
        (plan_with(name=None), "plan.json: runs.0.name: "),
        (plan_with(extra=1), "plan.json: runs.0.extra: "),
    ],
)
def test_a_plan_of_another_shape_is_refused_in_one_line(
    plan: object, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "plan.json").write_text(json.dumps(plan))
    (tmp_path / "sweep.jsonl").write_text('{"run": "a", "state": ["diverged"]}\n{"state": "done"}\n[]\n')
    folder = tmp_path / "runs/a"
    folder.mkdir(parents=True)
    (folder / "metrics.jsonl").write_text('{"eval/loss": 1.0}\n{"step": 10, "eval/loss": "low"}\n')
    assert main(["sweep", "fit", str(tmp_path)]) == 2
    errors = capsys.readouterr().err.splitlines()
    assert len(errors) == 1
    assert message in errors[0]
