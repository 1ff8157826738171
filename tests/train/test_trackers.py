"""Trackers: TensorBoard, Weights & Biases offline, and MLflow with a folder."""

import errno
import json
import os
import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest
from tensorboardX.event_file_writer import EventsWriter

from t5x_lite import config as configuration
from t5x_lite.cli import main
from t5x_lite.errors import UserError
from t5x_lite.extras import require_library
from t5x_lite.train.metrics import MetricsWriter
from t5x_lite.train.trackers.background import BackgroundWriter
from t5x_lite.train.trackers.open_trackers import open_trackers
from t5x_lite.train.trackers.tensorboard import TensorBoard
from t5x_lite.train.trackers.tracker import TrackedRun, Tracker, TrackerWriter
from tests.conftest import lines

WANDB_BLOCK = 32768
WANDB_FILE_HEADER = 7
WANDB_RECORD_HEADER = 7


def log_two_starts(config_file: Path, run_dir: Path, trackers: str) -> None:
    """Log steps 1 to 6, then resume from step 4 and log steps 5 to 8, as a run that was killed after step 6 does."""
    run_dir.mkdir()
    config = configuration.load(config_file, [f"run_dir={run_dir}", f"train.trackers={trackers}"])
    for first, last in ((1, 6), (5, 8)):
        reports: list[str] = []
        trackers_of_start = open_trackers(config, run_dir, first - 1, reports.append)
        writer = MetricsWriter(run_dir, first - 1, trackers_of_start)
        for step in range(first, last + 1):
            writer.write(step, {"loss": 10.0 - step, "expert_load": [0.25, 0.75]})
        writer.close()
        assert reports == []


def test_a_resumed_run_is_one_run_in_wandb_with_every_step_once(
    tiny_config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("wandb", reason="the extra wandb is not installed")
    monkeypatch.setenv("WANDB_MODE", "offline")
    log_two_starts(tiny_config, tmp_path / "run", "[{wandb: {project: study}}]")
    logged = []
    identifiers = set()
    settings = {}
    for path in sorted((tmp_path / "run/wandb").glob("offline-run-*/*.wandb")):
        for record in wait_for_wandb_records(path):
            if record.WhichOneof("record_type") == "run":
                identifiers.add(record.run.run_id)
                assert record.run.project == "study"
                settings |= {item.key: json.loads(item.value_json) for item in record.run.config.update}
            if record.WhichOneof("record_type") == "history":
                items = {item.key or "/".join(item.nested_key): item.value_json for item in record.history.item}
                logged.append((int(items["_step"]), float(items["loss"]), float(items["expert_load/1"])))
    assert logged == [(step, 10.0 - step, 0.75) for step in range(1, 9)]
    assert identifiers == {json.loads((tmp_path / "run/trackers.json").read_text())["id"]}
    assert settings["train.batch_size"] == 4


def wait_for_wandb_records(path: Path) -> list:
    """Return the records of a log up to the last, which the library's other process may write after the run's end."""
    deadline = time.monotonic() + 20
    while True:
        records = list(read_wandb_records(path.read_bytes()))
        if records[-1:] and records[-1].WhichOneof("record_type") == "exit":
            return records
        assert time.monotonic() < deadline, "the log has no end"
        time.sleep(0.1)


def read_wandb_records(content: bytes) -> Iterator:
    """Parse a transaction log of Weights & Biases: LevelDB's log format after a header, with protocol buffers.

    A file is blocks of 32 KiB. A fragment is a checksum (4 bytes), its size (2), its kind (1) and its bytes; kind 1 is
    a whole record, and 2, 3 and 4 are its first, middle and last fragments.
    """
    from wandb.proto.wandb_internal_pb2 import Record  # type: ignore[attr-defined]

    position = WANDB_FILE_HEADER
    fragments = b""
    while position < len(content):
        if WANDB_BLOCK - position % WANDB_BLOCK < WANDB_RECORD_HEADER:
            position += WANDB_BLOCK - position % WANDB_BLOCK
            continue
        size = int.from_bytes(content[position + 4 : position + 6], "little")
        kind = content[position + 6]
        position += WANDB_RECORD_HEADER
        fragments += content[position : position + size]
        position += size
        if kind in {1, 4}:
            yield Record.FromString(fragments)
            fragments = b""


def test_a_resumed_run_is_one_run_in_mlflow_with_every_step_once(tiny_config: Path, tmp_path: Path) -> None:
    pytest.importorskip("mlflow", reason="the extra mlflow is not installed")
    from mlflow.tracking import MlflowClient

    log_two_starts(tiny_config, tmp_path / "run", f"[{{mlflow: {{tracking_uri: 'file:{tmp_path}/store'}}}}]")
    client = MlflowClient(f"file:{tmp_path}/store")
    experiment = client.get_experiment_by_name("t5x_lite")
    (run,) = client.search_runs([experiment.experiment_id])
    history = client.get_metric_history(run.info.run_id, "loss")
    assert [(metric.step, metric.value) for metric in history] == [(step, 10.0 - step) for step in range(1, 9)]
    assert run.info.status == "FINISHED"
    assert run.info.run_name == "run"
    assert run.data.params["train.batch_size"] == "4"
    assert run.data.metrics["expert_load/1"] == 0.75


class Broken(Tracker):
    """A tracker whose server is away at first, and then refuses every step."""

    def check(self) -> None: ...

    def open(self, run: TrackedRun) -> TrackerWriter:
        raise ConnectionError("no route\nto host")


class Hanging(Tracker):
    """A tracker that never answers."""

    def check(self) -> None: ...

    def open(self, run: TrackedRun) -> TrackerWriter:
        threading.Event().wait()
        raise AssertionError


class Late(Tracker):
    """A tracker whose server is away for the first step."""

    def check(self) -> None: ...

    def open(self, run: TrackedRun) -> TrackerWriter:
        ATTEMPTS.append(run.name)
        if len(ATTEMPTS) == 1:
            raise ConnectionError("no route to host")
        return Recorder()


ATTEMPTS: list[str] = []
RECORDED: list[int] = []


class Recorder:
    def write(self, step: int, scalars: Mapping[str, float]) -> None:
        RECORDED.append(step)

    def close(self) -> None:
        RECORDED.append(-1)


def write_three_steps(tracker: Tracker, folder: Path, close_seconds: float = 20) -> list[str]:
    """Write three steps to metrics.jsonl and to a tracker, and return the lines that were reported."""
    reports: list[str] = []
    run = TrackedRun(folder, "run", "1f", {}, resumed_step=0, tracked_step=0)
    background = BackgroundWriter("broken", tracker, run, reports.append, close_seconds)
    writer = MetricsWriter(folder, 0, [background])
    for step in (1, 2, 3):
        writer.write(step, {"loss": 1.0})
    writer.close()
    assert [line["step"] for line in lines(folder)] == [1, 2, 3]
    return reports


def test_a_tracker_that_raises_is_reported_once_in_one_line(tmp_path: Path) -> None:
    reports = write_three_steps(Broken(), tmp_path)
    assert reports == ["tracker broken failed, and training goes on without it: no route to host"]


def test_a_tracker_that_hangs_delays_only_the_end_and_not_for_long(tmp_path: Path) -> None:
    reports = write_three_steps(Hanging(), tmp_path, close_seconds=0.2)
    assert reports == ["tracker broken did not end within 0.2 s; its last steps may be missing"]


def test_a_tracker_that_comes_back_gets_the_later_steps(tmp_path: Path) -> None:
    assert len(write_three_steps(Late(), tmp_path)) == 1
    assert RECORDED == [2, 3, -1]


def test_a_full_disk_ends_tensorboard_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def flush(writer: EventsWriter) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(EventsWriter, "flush", flush)
    reports = write_three_steps(TensorBoard(), tmp_path)
    assert reports == ["tracker broken failed, and training goes on without it: [Errno 28] No space left on device"]


@pytest.mark.slow
def test_training_ends_well_without_the_server_of_a_tracker(
    tiny_config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("mlflow", reason="the extra mlflow is not installed")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    tracker = "train.trackers=[tensorboard, {mlflow: {tracking_uri: 'http://127.0.0.1:9'}}]"
    assert main(["train", str(tiny_config), f"run_dir={tmp_path}/run", "train.steps=4", tracker]) == 0
    assert [line["step"] for line in lines(tmp_path / "run")] == [1, 2, 3, 4]
    assert list((tmp_path / "run/tensorboard").iterdir())
    assert capsys.readouterr().err.count("tracker mlflow failed") == 1


def test_trackers_are_checked_before_training(tiny_config: Path) -> None:
    with pytest.raises(UserError, match=r"wandb needs no_such_module: pip install 't5x_lite\[wandb\]'"):
        require_library("train.trackers: wandb", "no_such_module", "wandb")
    with pytest.raises(UserError, match="names a tracker twice"):
        configuration.load(tiny_config, ["train.trackers=[tensorboard, tensorboard]"])
    with pytest.raises(UserError, match="expected one of tensorboard, wandb, mlflow"):
        configuration.load(tiny_config, ["train.trackers=[wnadb]"])
