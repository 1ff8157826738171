"""Where the time of a run went, over all its starts: kept in `RUN/goodput.json`."""

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from t5x_lite.files import write_file

KINDS = ("compile", "data", "step", "evaluation", "checkpoint", "restart", "lost")
"""`data` is waiting for batches, `restart` what a start takes before its first step, `lost` steps that were made again.

The share of `step` in all of them is the goodput (the ratio of Google's ML Goodput, "productive training time").
"""
STARTED = time.monotonic()


class Goodput:
    """Seconds by kind. Every process measures; the first one writes."""

    def __init__(self, folder: Path, *, writes: bool) -> None:
        self._path = folder / "goodput.json" if writes else None
        self.seconds = dict.fromkeys(KINDS, 0.0)
        with suppress(OSError, ValueError):
            earlier = json.loads((folder / "goodput.json").read_text())
            self.seconds |= {kind: float(earlier[kind]) for kind in KINDS if kind in earlier}
        self._begun = False

    @contextmanager
    def measure(self, kind: str) -> Iterator[None]:
        """What is inside counts as `kind`."""
        started = time.monotonic()
        try:
            yield
        finally:
            self.seconds[kind] += time.monotonic() - started

    def begin(self, compiling: float) -> None:
        """The first step begins: the time since this process started, without that for compiling, is `restart`."""
        if not self._begun:
            self._begun = True
            self.seconds["restart"] += time.monotonic() - STARTED - compiling

    def lose(self, seconds: float) -> None:
        """Steps of so many seconds come again."""
        lost = min(seconds, self.seconds["step"])
        self.seconds["step"] -= lost
        self.seconds["lost"] += lost

    def metrics(self) -> dict[str, float]:
        """`goodput`, the share of productive time, and `goodput/KIND_seconds`; written to the run directory too."""
        if self._path is not None:
            write_file(self._path, json.dumps(self.seconds))
        share = self.seconds["step"] / max(sum(self.seconds.values()), 1e-9)
        return {"goodput": share, **{f"goodput/{kind}_seconds": value for kind, value in self.seconds.items()}}

    def line(self) -> str:
        """For people."""
        parts = ", ".join(f"{kind} {value:.1f} s" for kind, value in self.seconds.items() if value >= 0.05)
        return f"goodput {self.metrics()['goodput']:.1%}: {parts}"
