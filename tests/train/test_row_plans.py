"""Runs on packed documents: resumed with the rows that they began with, or refused."""

import shutil
from pathlib import Path

import pytest

from t5x_lite.train import state_store
from tests.train.whole_runs import assert_same_weights, train


def test_runs_on_packed_documents_resume_with_their_rows_and_not_with_those_of_another_version(
    tiny_config: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = ("data.packing=documents", f"data.cache_dir={tmp_path}", "eval.every_steps=100")
    undisturbed = tmp_path / "undisturbed"
    assert train(tiny_config, undisturbed, *settings) == 0
    assert capfd.readouterr().err.count("rows: ") == 1
    plan_times = {path: path.stat().st_mtime_ns for path in tmp_path.glob("text-*/rows-*")}
    assert len(plan_times) == 5
    interrupted = tmp_path / "interrupted"
    shutil.copytree(undisturbed, interrupted)
    shutil.rmtree(interrupted / "checkpoints/12")
    monkeypatch.setattr(state_store, "PLAN_VERSION", 3)
    assert train(tiny_config, interrupted, *settings) == 2
    error = capfd.readouterr().err.splitlines()[-1]
    assert error.startswith(
        f"t5x-lite: {interrupted}: its checkpoint is of a version that packs documents into other rows"
    )
    assert "train.allow_changed_config=true" in error
    monkeypatch.undo()
    assert train(tiny_config, interrupted, *settings) == 0
    assert "resumed from step 8" in capfd.readouterr().err
    assert_same_weights(interrupted, undisturbed)
    assert {path: path.stat().st_mtime_ns for path in plan_times} == plan_times
