"""Processes at the same time, each with its share of this machine's devices and a file of its output."""

import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from t5x_lite.sweep.device_share import start_process


@dataclass(frozen=True)
class SlotProcess:
    """A process in a slot, and the file of its output."""

    name: str
    slot: int
    popen: subprocess.Popen[bytes]
    output: Path

    @property
    def exit_code(self) -> int | None:
        """Its exit code; None while it runs."""
        return self.popen.poll()

    @property
    def last_line(self) -> str:
        """The last line that it has printed, which may say why it failed."""
        return last_line(self.output.read_text(encoding="utf-8", errors="replace"))


class ProcessSlots:
    """Slots of processes, each with its share of the devices.

    Args:
        slots: processes at the same time.
        environment: environment variables of the processes.
    """

    def __init__(self, slots: int, environment: Mapping[str, str]) -> None:
        self.slots = slots
        self.environment = environment
        self.running: list[SlotProcess] = []
        self.stop_requested = False

    @property
    def has_free_slot(self) -> bool:
        """Return whether a slot is free, and nobody has asked to stop."""
        return len(self.running) < self.slots and not self.stop_requested

    def start(self, name: str, command: Sequence[str], output: Path) -> SlotProcess:
        """Start a process in a free slot. What it prints is added to the end of `output`."""
        slot = min(set(range(self.slots)) - {process.slot for process in self.running})
        with output.open("ab") as file:
            popen = start_process(command, slot, self.slots, self.environment, file)
        started = SlotProcess(name, slot, popen, output)
        self.running.append(started)
        if self.stop_requested:  # while it was starting
            popen.terminate()
        return started

    def take_ended(self) -> list[SlotProcess]:
        """Return the processes that have ended since the last call."""
        ended = [process for process in self.running if process.exit_code is not None]
        self.running = [process for process in self.running if process not in ended]
        return ended

    def stop(self, *_: object) -> None:
        """Ask every process to end, and start no more; a handler of signals."""
        self.stop_requested = True
        for process in self.running:
            process.popen.terminate()


def last_line(output: str) -> str:
    """Return the last line that a program has printed, which may say why it failed; empty if it printed nothing."""
    lines = output.strip().splitlines()
    return lines[-1] if lines else ""
