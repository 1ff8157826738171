"""The configs of `configs/schedules` train, and say what their papers say."""

import json
from pathlib import Path

import pytest

from t5x_lite import config as configuration
from t5x_lite.cli import main
from t5x_lite.train.optimization import make_schedule
from tests.conftest import REPOSITORY, lines
from tests.docs.tiny_runs import tiny_overrides

SCHEDULES = REPOSITORY / "configs" / "schedules"


def test_the_annealing_quickstart_trains_through_its_stages(
    prose: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = str(SCHEDULES / "quickstart_anneal.yaml")
    overrides = [*tiny_overrides(path, prose, configuration.load), "train.steps=5"]
    assert main(["train", path, *overrides, f"run_dir={tmp_path}/run", f"data.cache_dir={tmp_path}/cache"]) == 0
    assert "stage anneal: 4 sequences of 32 tokens, from step 5" in capsys.readouterr().err
    stages = json.loads((tmp_path / "run/mixture.json").read_text())["stages"]
    assert [stage["shares"] for stage in stages] == [{"code": 0.95, "manual": 0.05}, {"code": 0.4, "manual": 0.6}]
    assert [record["tokens"] for record in lines(tmp_path / "run")] == [128 * step for step in range(1, 6)]


def test_the_annealing_quickstart_lowers_its_rate_to_zero_from_the_border_on() -> None:
    config = configuration.load(SCHEDULES / "quickstart_anneal.yaml")
    rate = make_schedule(config.optimizer, config.train.steps)
    assert [stage.first_step for stage in config.stages] == [0, 320]
    assert float(rate(320)) == pytest.approx(0.01)
    assert float(rate(360)) == pytest.approx(0.005)
    assert float(rate(400)) == 0.0


def test_bert_trains_on_128_tokens_for_nine_tenths_of_its_steps_and_then_on_512() -> None:
    config = configuration.load(SCHEDULES / "bert_128_512.yaml")
    short, long = config.stages
    assert config.train.steps == 1_000_000
    assert (short.first_step, short.shape) == (0, (256, 128))
    assert (long.first_step, long.shape) == (900_000, (256, 512))
    assert config.largest_stage == long


@pytest.mark.slow
def test_a_small_bert_trains_on_sentences_of_both_lengths(prose: Path, tmp_path: Path) -> None:
    config = configuration.load(SCHEDULES / "bert_128_512.yaml")
    stages = [{**stage.model_dump(exclude_none=True), "batch_size": 2} for stage in config.data.schedule]
    overrides = [
        f"run_dir={tmp_path}/run",
        f"data.cache_dir={tmp_path}/cache",
        f"data.files={prose}/*.txt",
        "data.validation_fraction=0.2",
        f"data.schedule={json.dumps(stages)}",
        "model.layers=1",
        "model.embed=32",
        "model.heads=2",
        "model.vocab=100",
        "tokenizer.wordpiece.vocab=100",
        "optimizer.warmup_steps=1",
        "train.steps=10",
        "train.batch_size=2",
        "train.peak_flops=1e9",
        "eval.batches=1",
    ]
    assert main(["train", str(SCHEDULES / "bert_128_512.yaml"), *overrides]) == 0
    records = lines(tmp_path / "run")
    assert [record["tokens"] for record in records] == [256 * step for step in range(1, 10)] + [9 * 256 + 1024]
