"""The files of metrics, and the display of a run's progress."""

import json
from pathlib import Path

import pytest
from tensorboardX import SummaryWriter
from tensorboardX.proto.event_pb2 import Event, SessionLog

from t5x_lite.metrics_file import truncate_metrics
from t5x_lite.train.display import Display
from t5x_lite.train.metrics import MetricsWriter
from t5x_lite.train.trackers import TensorBoard
from t5x_lite.train.trackers.tracker import TrackedRun


def test_brackets_in_a_message_are_printed_as_they_are(capsys: pytest.CaptureFixture[str]) -> None:
    with Display(3) as display:
        display.print("in runs/[/bold]/[red]x :smile:")
    assert "in runs/[/bold]/[red]x :smile:" in capsys.readouterr().err


def test_every_line_is_valid_json_for_values_that_are_not_finite_and_after_a_line_cut_short(tmp_path: Path) -> None:
    writer = MetricsWriter(tmp_path, 0)
    writer.write(1, {"loss": float("nan"), "grad_norm": float("inf"), "tokens": 5})
    writer.write(2, {"loss": 1.5, "grad_norm": 1.0, "tokens": 10})
    writer.close()
    path = tmp_path / "metrics.jsonl"
    with path.open("a") as file:
        file.write('{"step": 3, "lo')
    MetricsWriter(tmp_path, 1).close()
    expected = {"step": 1, "loss": None, "grad_norm": None, "tokens": 5}
    assert path.read_text() == json.dumps(expected) + "\n"


def test_removed_lines_return_the_seconds_of_their_steps(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    records = [{"step": step, "seconds_per_step": 0.5} for step in range(1, 8)]
    path.write_text("".join(json.dumps(record) + "\n" for record in records) + '{"step": 8, "seco')
    assert truncate_metrics(path, 4) == 1.5
    assert len(path.read_text().splitlines()) == 4


def test_a_run_that_begins_again_purges_its_old_curves_from_tensorboard(tmp_path: Path) -> None:
    folder = tmp_path / "tensorboard"
    with SummaryWriter(str(folder)) as old_writer:
        old_writer.add_scalar("loss", 1.0, 7)
    writer = TensorBoard().open(TrackedRun(tmp_path, "run", "1f", {}, resumed_step=0, tracked_step=0))
    writer.write(1, {"loss": 2.0})
    writer.close()
    newest_file = max(folder.iterdir(), key=lambda path: path.stat().st_mtime_ns)
    start_steps = []
    for event in read_events(newest_file.read_bytes()):
        if event.session_log.status == SessionLog.START:
            start_steps.append(event.step)
    assert start_steps == [1]


def read_events(content: bytes) -> list[Event]:
    """Parse the records of a TFRecord file.

    Each is the length of a message (8 bytes), a checksum (4), the message, and a checksum (4).
    """
    events = []
    while content:
        size = int.from_bytes(content[:8], "little")
        events.append(Event.FromString(content[12 : 12 + size]))
        content = content[16 + size :]
    return events


def test_lines_after_a_damaged_one_are_not_lost_with_it(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    before = '{"step": 1}\n{"step": \x00\n' + "[" * 5000 + '\n{"step": "2"}\n[3]\n{"step": 4}\n'
    path.write_text(before + '{"step": 5, "seconds_per_step": "x"}\n{"step": 6, "seconds_per_step": 2.0}\n{"step": 7')
    assert truncate_metrics(path, 4) == 2.0
    assert path.read_text() == before
