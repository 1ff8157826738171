"""What a run prints and draws, and the peaks that MFU is measured against."""

from pathlib import Path
from types import SimpleNamespace

import pytest
from tensorboardX import SummaryWriter
from tensorboardX.proto.event_pb2 import Event, SessionLog

from t5x_lite.train.device_speed import peak_flops
from t5x_lite.train.display import Display
from t5x_lite.train.metrics import MetricsWriter


def test_a_line_is_printed_as_it_is_whatever_brackets_it_holds(capsys: pytest.CaptureFixture[str]) -> None:
    with Display(3) as display:
        display.print("in runs/[/bold]/[red]x :smile:")
    assert "in runs/[/bold]/[red]x :smile:" in capsys.readouterr().err


def test_one_device_of_a_tpu7x_has_half_of_its_chip() -> None:
    # Google Cloud, TPU7x: 2307 TFLOP/s of bfloat16 a chip; a chip is two JAX devices.
    assert peak_flops(SimpleNamespace(device_kind="TPU7x"), None)[0] == 2307e12 / 2


def test_a_run_that_starts_anew_purges_the_old_curves_from_tensorboard(tmp_path: Path) -> None:
    with SummaryWriter(str(tmp_path / "tensorboard")) as board:
        board.add_scalar("loss", 1.0, 7)
    writer = MetricsWriter(tmp_path, resumed_step=0)
    writer.write(1, {"loss": 2.0})
    writer.close()
    newest = max((tmp_path / "tensorboard").iterdir(), key=lambda path: path.stat().st_mtime_ns).read_bytes()
    starts = [event for event in _events(newest) if event.session_log.status == SessionLog.START]
    assert [event.step for event in starts] == [1]


def _events(content: bytes) -> list[Event]:
    """TFRecord: length (8 bytes), its checksum (4), the message, its checksum (4)."""
    events = []
    while content:
        size = int.from_bytes(content[:8], "little")
        events.append(Event.FromString(content[12 : 12 + size]))
        content = content[16 + size :]
    return events
