"""The measured step of a run that learns a task, whose rows need the task's records."""

import json
from pathlib import Path

import pytest

from t5x_lite.errors import UserError
from t5x_lite.sweep.step_time import measure_step


def test_a_step_of_a_task_is_measured_on_its_records(tiny_run: Path, tmp_path: Path) -> None:
    records = tmp_path / "records.tsv"
    config = tmp_path / "finetune.yaml"
    run_dir = tmp_path / "run"
    settings = {
        "adapt": {"from": str(tiny_run)},
        "tasks": "sst2",
        "objective": {"text_to_text": {}},
        "data": {"files": str(records), "validation_files": str(records), "columns": ["sentence", "label"]},
        "train": {"steps": 12, "batch_size": 4, "seq_len": 32},
        "run_dir": str(run_dir),
    }
    config.write_text(json.dumps(settings))
    records.write_text("dull\t0\nfine\t1\n")
    assert measure_step(str(config), ["model.remat=auto"]) > 0
    assert not run_dir.exists()
    records.write_text("a film without a label\n")
    with pytest.raises(UserError, match=r"records\.tsv"):
        measure_step(str(config), [])
