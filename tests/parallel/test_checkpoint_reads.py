"""No process reads what another has saved, and each byte is verified once."""

import json
import sys
from pathlib import Path

import pytest

from t5x_lite.checkpoint import Checkpoints
from t5x_lite.checkpoint_config import CheckpointConfig
from t5x_lite.errors import UserError
from tests.parallel.checkpoint_reads import SHAPE
from tests.parallel.test_processes import run_processes

NUM_PROCESSES = 4
STATE_BYTES = 2 * 4 * SHAPE[0] * SHAPE[1]
SMALL_FILES_BYTES = 2_000_000
"""Room for Python modules that are imported meanwhile, metadata, and the checksums of other processes."""


@pytest.mark.skipif(sys.platform != "linux", reason="bytes are counted by /proc")
def test_each_of_4_processes_reads_its_part_once_at_save_and_twice_at_restore(tmp_path: Path) -> None:
    script = Path(__file__).with_name("checkpoint_reads.py")
    run_processes(NUM_PROCESSES, script, tmp_path)
    process_part = STATE_BYTES / NUM_PROCESSES
    for number in range(NUM_PROCESSES):
        bytes_read = json.loads((tmp_path / f"{number}.json").read_text())
        assert process_part <= bytes_read["save"] < process_part + SMALL_FILES_BYTES
        # Once for the checksums, once for the values.
        assert 2 * process_part <= bytes_read["restore"] < 2 * process_part + SMALL_FILES_BYTES

    checkpoint = tmp_path / "checkpoints" / "1"
    assert {path.name for path in checkpoint.iterdir()} >= {"manifest.json", "state", "meta"}
    assert not (checkpoint / "checksums").exists()
    listed = json.loads((checkpoint / "manifest.json").read_text())["crc32"]
    assert {f"{checkpoint}/{name}" for name in listed} == {
        str(path) for path in checkpoint.rglob("*") if path.is_file() and path.name != "manifest.json"
    }
    for number in range(NUM_PROCESSES):
        folder = checkpoint / "state" / f"ocdbt.process_{number}"
        largest = max(folder.rglob("*"), key=lambda path: path.stat().st_size if path.is_file() else 0)
        intact = largest.read_bytes()
        middle = len(intact) // 2
        largest.write_bytes(intact[:middle] + bytes([intact[middle] ^ 1]) + intact[middle + 1 :])
        with pytest.raises(UserError, match=largest.name):
            Checkpoints(tmp_path / "checkpoints", CheckpointConfig()).restore({})
        largest.write_bytes(intact)
