"""`sweep fit` as a user meets it: tables, JSON alone, files, one line for what is wrong; the emitted config."""

import json
from pathlib import Path

import numpy as np
import pytest
import yaml

from t5x_lite import config as configuration
from t5x_lite.cli import main
from t5x_lite.sweep import config, grid
from tests.laws.test_law import PUBLISHED, known_law


@pytest.fixture
def table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    runs = known_law(3)
    rows = [f"{n},{d},{loss}" for n, d, loss in zip(runs.parameters, runs.tokens, runs.loss, strict=True)]
    path = tmp_path / "runs.csv"
    path.write_text("\n".join(["N,D,loss", *rows, "1e9,1e9,inf", "1e9,"]))
    return path


def test_fit_prints_one_object_and_leaves_a_picture(table: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["sweep", "fit", str(table), "--json", "--draws", "40", "--budget", "1e22", "--run", "1e10", "2e11"]
    assert main(words) == 0
    law = json.loads(capsys.readouterr().out)
    assert law["points"] == len(law["runs"]) == 20
    assert set(law["runs"][0]) == {"name", "parameters", "tokens", "flops", "loss", "residual"}
    assert law["left_out"] == {"line 22": "diverged: loss is inf", "line 23": "the last row is not whole"}
    assert law["laws"]["L(N, D)"]["constants"]["E"]["value"] == pytest.approx(PUBLISHED["E"], rel=0.05)
    best = law["prediction"]["L(N, D)"]
    assert best["parameters"]["value"] * best["tokens"]["value"] * 6 == pytest.approx(1e22)
    n, d = 1e10, 2e11
    loss = PUBLISHED["E"] + PUBLISHED["A"] / n ** PUBLISHED["α"] + PUBLISHED["B"] / d ** PUBLISHED["β"]
    assert law["run"]["loss"]["value"] == pytest.approx(loss, rel=0.01)
    assert law["held_out"]["budget"]["points"] == 5
    assert law["held_out"]["budget"]["largest_error"] < 0.02
    assert json.loads((table.parent / "sweeps/runs/law.json").read_text()) == law
    assert (table.parent / "sweeps/runs/law.png").read_bytes()[:4] == b"\x89PNG"


def test_fit_shows_tables_and_leaves_out_the_highest(table: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["sweep", "fit", str(table), "--draws", "20", "--drop-highest", "1"]) == 0
    said = capsys.readouterr().out
    assert "19 points" in said
    assert "is among the 1 highest" in said
    assert "fitted without the largest budget" in said
    assert "training curves: not fitted: needs training curves of 3 sizes" in said


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["fit"], "give a sweep's YAML file or a CSV"),
        (["fit", "none.csv"], "none.csv: cannot be read"),
        (["fit", "none.yaml"], "none.yaml: no such config file"),
        (["fit", "runs.csv", "--emit", "c.yaml"], "a table has no config"),
        (["fit", "runs.csv", "--budget", "-1"], "--budget and --run are above 0"),
        (["fit", "runs.csv", "--drop-highest", "16"], "points are too few"),
        (["runs.csv", "--hurry"], "unknown option --hurry"),
    ],
)
def test_what_is_wrong_is_one_line(
    table: Path, capsys: pytest.CaptureFixture[str], words: list[str], message: str
) -> None:
    assert main(["sweep", *words]) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert message in said.err
    assert said.err.count("\n") == 1


def finished(folder: Path, tiny_config: Path) -> Path:
    """A sweep whose runs have ended as a known law says, but for one that diverged and one that is half way."""
    path = folder / "made.yaml"
    axes = {"size": {"model.embed": [16, 32, 64, 128], "model.heads": [2, 4, 8, 16]}}
    budgets = {"log": [1e9, 8e9, 4]}
    path.write_text(
        yaml.safe_dump({"config": str(tiny_config), "axes": axes, "budgets": budgets, "dir": str(folder / "made")})
    )
    sweep = config.load(path)
    runs = grid.expand(sweep)
    grid.write_plan(sweep, runs)
    noise = np.random.default_rng(0)
    for number, run in enumerate(runs):
        steps = np.unique(np.geomspace(1, run.steps, 60).astype(int))
        if number == 3:
            steps = steps[:-1]
        loss = 1.5 + 30 / run.parameters**0.35 + 40 / (steps * 64) ** 0.3
        loss = loss * np.exp(0.002 * noise.standard_normal(len(steps)))
        lines = [{"step": int(s), "tokens": int(s) * 64, "loss": float(v)} for s, v in zip(steps, loss, strict=True)]
        lines[-1]["eval/loss"] = float(loss[-1])
        (Path(run.run_dir)).mkdir(parents=True)
        (Path(run.run_dir) / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    diverged = {"run": runs[5].name, "state": "diverged", "reason": "step 9: not finite"}
    (sweep.folder / "sweep.jsonl").write_text(json.dumps(diverged) + '\n{"run": "torn')
    return path


def test_the_emitted_config_is_the_predicted_run(
    tmp_path: Path, tiny_config: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    path, to = finished(tmp_path, tiny_config), tmp_path / "best.yaml"
    assert main(["sweep", "fit", str(path), "--json", "--draws", "20", "--budget", "3e10", "--emit", str(to)]) == 0
    law = json.loads(capsys.readouterr().out)
    assert law["points"] == 14
    assert sorted(reason.partition(":")[0] for reason in law["left_out"].values()) == ["diverged", "not complete"]
    assert "training curves of 3 sizes" not in str(law["compute_optimal_exponents"])  # they were read
    sweep, emitted = config.load(path), configuration.load(to)
    own = grid.counts(emitted, sweep.config)
    assert own.parameters == pytest.approx(law["prediction"]["L(N, D)"]["parameters"]["value"], rel=0.25)
    assert own.flops * emitted.train.steps * 64 == pytest.approx(3e10, rel=0.01)
    assert emitted.model.head_dim == 8


@pytest.mark.slow
def test_a_branch_is_the_run_that_it_stands_for(tmp_path: Path, tiny_config: Path, t5x_lite) -> None:  # type: ignore[no-untyped-def]
    """A run of 12 steps whose last 3 decay; and those 3 from the checkpoint of a constant run: bit for bit."""
    wsd = "optimizer.schedule.wsd.decay=0.25"
    from tests.conftest import lines

    for name, words in {
        "whole": [wsd],
        "trunk": ["optimizer.schedule=constant", "train.steps=11", "checkpoint.keep_steps=[9]"],
        "branch": [wsd, f"branch.from={tmp_path}/trunk", "branch.step=9"],
    }.items():
        done = t5x_lite("train", tiny_config, f"run_dir={tmp_path}/{name}", *words)
        assert done.returncode == 0, done.stderr
    whole, branch = (lines(tmp_path / name) for name in ("whole", "branch"))
    assert [line["step"] for line in branch] == [10, 11, 12]
    for one, other in zip(whole[9:], branch, strict=True):
        assert one["loss"] == other["loss"]
        assert one.get("eval/loss") == other.get("eval/loss")
    other = t5x_lite("train", tiny_config, f"run_dir={tmp_path}/x", f"branch.from={tmp_path}/trunk", "train.seed=4")
    assert other.returncode == 2
    assert "train.seed is 0 there, 4 here" in other.stderr
