"""Runs with stages (`data.schedule`): resumed across a border, their metrics, branches, report and plan."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from t5x_lite.evaluate.report import draw_report
from tests.conftest import lines
from tests.train.whole_runs import assert_same_weights, train


@pytest.fixture(scope="module")
def staged_config(tiny_config: Path, prose: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two sources; 8 steps of 8 sequences of 8 tokens, then 4 of 2 sequences of 32, the last 2 on the other source."""
    path = tmp_path_factory.mktemp("staged") / "staged.yaml"
    settings = json.loads(tiny_config.read_text())
    del settings["data"]["files"]
    settings["data"]["mixture"] = [
        {"name": "a", "files": f"{prose}/[0-2]*.txt", "weight": 3.0},
        {"name": "b", "files": f"{prose}/[3-5]*.txt", "weight": 1.0},
    ]
    settings["data"]["schedule"] = [
        {"name": "short", "seq_len": 8},
        {"name": "long", "after_steps": 8, "seq_len": 32},
        {"name": "anneal", "after_steps": 10, "seq_len": 32, "batch_size": 4, "weights": {"b": 1.0}},
    ]
    settings["train"]["seq_len"] = 16
    settings["tokenizer"] = {"unigram": {"vocab": 290}}
    settings["checkpoint"] = {"every_steps": 3, "keep": 9}
    path.write_text(json.dumps(settings))
    return path


@pytest.fixture(scope="module")
def staged_run(staged_config: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A complete run of the config, without a break."""
    folder = tmp_path_factory.mktemp("staged_runs") / "run"
    assert train(staged_config, folder) == 0
    return folder


def test_metrics_count_the_tokens_and_the_work_of_each_stage(staged_run: Path) -> None:
    records = lines(staged_run)
    assert [record["tokens"] for record in records] == [64 * step for step in range(1, 11)] + [768, 896]
    # MFU · time is the FLOPs of a step, at a peak of 10^9: attention over 32 tokens costs more than over 8.
    flops = [record["mfu"] * record["seconds_per_step"] for record in records]
    np.testing.assert_allclose(flops[:8], flops[0])
    np.testing.assert_allclose(flops[8:10], flops[8])
    np.testing.assert_allclose(flops[10:], 2 * flops[8])
    assert flops[8] > flops[0]
    speeds = [record["tokens_per_second"] * record["seconds_per_step"] for record in records]
    np.testing.assert_allclose(speeds, [64] * 10 + [128] * 2)


@pytest.mark.parametrize("last_step", [pytest.param(6, marks=pytest.mark.slow), 9])
def test_a_run_that_resumes_across_a_border_ends_bit_for_bit_as_one_without_a_break(
    last_step: int, staged_config: Path, staged_run: Path, tmp_path: Path
) -> None:
    """The run is copied as it was at a checkpoint before, or between, the borders after steps 8 and 10."""
    run = tmp_path / "run"
    shutil.copytree(staged_run, run)
    for step in (6, 9, 12):
        if step > last_step:
            for path in (run / "checkpoints").glob(f"*{step}*"):
                shutil.rmtree(path) if path.is_dir() else path.unlink()
    text = (run / "metrics.jsonl").read_text().splitlines(keepends=True)
    (run / "metrics.jsonl").write_text("".join(text[:last_step]))
    assert train(staged_config, run) == 0
    losses = [record["loss"] for record in lines(run)]
    assert losses == [record["loss"] for record in lines(staged_run)]
    assert_same_weights(run, staged_run)


def test_the_report_of_a_run_draws_its_stages(staged_run: Path, tmp_path: Path) -> None:
    stages = json.loads((staged_run / "mixture.json").read_text())["stages"]
    assert [(stage["name"], stage["first_step"], stage["shares"]) for stage in stages] == [
        ("short", 0, {"a": 0.75, "b": 0.25}),
        ("long", 8, {"a": 0.75, "b": 0.25}),
        ("anneal", 10, {"a": 0.0, "b": 1.0}),
    ]
    picture = draw_report([staged_run], tmp_path / "report.svg").read_text()
    assert "share of each source" in picture
    assert "anneal" in picture


@pytest.mark.slow
def test_a_branch_may_anneal_on_another_mixture_and_begins_with_the_batches_of_its_source(
    staged_config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A run of 6 steps, branched off at step 3 with other weights, equals a run that had them in its schedule."""
    flat = ["train.seq_len=16", "train.steps=6", "eval.every_steps=6", "optimizer.schedule=constant"]
    anneal = "data.schedule=[{name: main}, {name: anneal, after_steps: 3, weights: {b: 1}}]"
    assert train(staged_config, tmp_path / "trunk", *flat, "data.schedule=[]") == 0
    branch = [*flat, f"branch.from={tmp_path}/trunk", "branch.step=3"]
    assert train(staged_config, tmp_path / "branch", *branch, anneal) == 0
    assert train(staged_config, tmp_path / "planned", *flat, anneal) == 0
    assert_same_weights(tmp_path / "branch", tmp_path / "planned")
    capsys.readouterr()
    too_early = anneal.replace("after_steps: 3", "after_steps: 2")
    assert train(staged_config, tmp_path / "early", *branch, too_early) == 2
    assert "differs from that of the source before step 3" in capsys.readouterr().err
    longer = anneal.replace("weights: {b: 1}", "seq_len: 32")
    assert train(staged_config, tmp_path / "longer", *branch, longer) == 2
    assert "other stages than the source and lengths 16 and 32" in capsys.readouterr().err
