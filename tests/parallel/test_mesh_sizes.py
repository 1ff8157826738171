"""Sizes of batches, rows and experts that a mesh divides, and those that are refused."""

import subprocess
from pathlib import Path

import pytest

from t5x_lite.models.config import ModelConfig
from t5x_lite.models.mesh_sizes import check_mesh_sizes
from t5x_lite.models.pipeline import check_microbatch_count, microbatch_count
from tests.simulated_devices import simulated
from tests.train.whole_runs import train_command


@pytest.mark.parametrize(("rows", "count"), [(8, 4), (2, 2), (6, 2), (1, 1)])
def test_a_batch_of_few_rows_goes_through_a_pipeline_in_fewer_microbatches(rows: int, count: int) -> None:
    """Four are asked for, which is for training: an evaluation has other batches."""
    assert microbatch_count(4, rows, stages=2) == count


def test_microbatches_of_a_pipeline_divide_the_rows_of_training() -> None:
    check_microbatch_count(4, 8)
    with pytest.raises(ValueError, match="pipeline_microbatches 4 does not divide the 6 rows"):
        check_microbatch_count(4, 6)


def test_tokens_of_a_batch_do_not_compete_in_microbatches_of_a_pipeline() -> None:
    experts = {"experts": 2, "dispatch": {"capacity": {"factor": 1.0, "group": "batch"}}}
    model = ModelConfig.model_validate({"layers": 2, "embed": 8, "heads": 2, "feedforward": {"moe": experts}})
    check_mesh_sizes(model, expert=2, tensor=1, pipeline=1)
    with pytest.raises(ValueError, match=r"set dispatch\.capacity\.group to row"):
        check_mesh_sizes(model, expert=1, tensor=1, pipeline=2)


def test_rows_that_do_not_divide_over_context_are_refused(tiny_config: Path, tmp_path: Path) -> None:
    """Each of the three devices would compute as much as a device alone."""
    command = train_command(tiny_config, tmp_path / "run", "train.seq_len=16", "mesh.data=1", "mesh.context=3")
    process = subprocess.run(command, env=simulated(3), capture_output=True, text=True, check=False)
    assert process.returncode == 2
    assert "train.seq_len 16 does not divide over the 3 devices of the mesh axis context" in process.stderr
