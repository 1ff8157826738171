"""Collectives that a compiled program overlaps with other work, read from its schedule.

The instructions of a computation stand in the order in which a device starts them. An asynchronous collective has a
start and a done, and is hidden as far as there is work between the two. The TPU compiler also spreads a collective over
fusions, which send a part of it while they compute; it names their computations `async_collective_fusion`.
"""

import re
from collections.abc import Iterator, Sequence

FUSED_WITH_WORK = "async_collective_fusion"
_START = re.compile(r"\s*(?:ROOT )?(%[\w.\-]+) = .* (?:[\w\-]+-start|send)\(")
_WORK = re.compile(r" (?:fusion|custom-call|convolution|dot|while|conditional)\(")
_START_OR_DONE_OF_FUSIONS = re.compile(r"%async-collective-(?:start|done)[\w.\-]* = ")


def overlapped_lines(lines: Sequence[str]) -> Iterator[str]:
    """Yield the lines of a computation that start a collective, with work before the line that waits for it."""
    for number, line in enumerate(lines):
        start = _START.match(line)
        if start and _has_work_before_done(lines[number + 1 :], start[1]):
            yield line


def _has_work_before_done(lines: Sequence[str], name: str) -> bool:
    done = re.compile(rf"-done\({re.escape(name)}\)")
    has_work = False
    for line in lines:
        if done.search(line):
            return has_work
        if _WORK.search(line) and not _START_OR_DONE_OF_FUSIONS.search(line):
            has_work = True
    return False
