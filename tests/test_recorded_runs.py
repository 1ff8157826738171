"""Run directories that earlier versions wrote are resumed and evaluated: what CONTRIBUTING.md promises of a release.

`recorded_runs/VERSION.tar.xz` holds a run directory that VERSION wrote, with the checkpoint of step 2 of 4 and the
metrics of all steps, and its text.
"""

import json
import tarfile
from pathlib import Path
from typing import Any

import pytest

import t5x_lite
from t5x_lite.cli import main
from tests.conftest import lines

RECORDED = Path(__file__).parent / "recorded_runs"


@pytest.mark.parametrize("version", ["0.2.0"])
def test_a_run_of_an_earlier_version_is_evaluated_and_resumed_with_its_numbers(
    version: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    with tarfile.open(RECORDED / f"{version}.tar.xz") as archive:
        # Not as an argument, which Python before 3.11.4 lacks.
        archive.extraction_filter = getattr(tarfile, "data_filter", None)
        archive.extractall(tmp_path)
    monkeypatch.chdir(tmp_path)
    run_dir = tmp_path / "run"
    recorded = lines(run_dir)
    assert [record["step"] for record in recorded] == [1, 2, 3, 4]

    scores = t5x_lite.load("run").evaluate()
    for name in ("loss", "perplexity", "bits_per_byte"):
        assert scores[name] == pytest.approx(recorded[1][f"eval/{name}"], rel=1e-4)
    assert main(["train", "run/config.yaml", "run_dir=run"]) == 0
    assert "resumed from step 2" in capfd.readouterr().err
    resumed = lines(run_dir)
    assert [values(record) for record in resumed[:2]] == [values(record) for record in recorded[:2]]
    for record, expected in zip(resumed[2:], recorded[2:], strict=True):
        assert record["loss"] == pytest.approx(expected["loss"], rel=1e-4)
        assert record["learning_rate"] == pytest.approx(expected["learning_rate"], rel=1e-5)
    assert resumed[3]["eval/loss"] == pytest.approx(recorded[3]["eval/loss"], rel=1e-4)


def values(record: dict[str, Any]) -> str:
    return json.dumps(record, sort_keys=True)
