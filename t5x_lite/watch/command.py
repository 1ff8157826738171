"""The command `t5x-lite watch`: show the state of a run until it is complete."""

import json
import time
from collections.abc import Iterator

from rich.console import Console
from rich.live import Live
from rich.text import Text

from t5x_lite.errors import UserError
from t5x_lite.progress import format_duration
from t5x_lite.storage import is_remote
from t5x_lite.watch.display import format_status
from t5x_lite.watch.follower import MetricsFollower
from t5x_lite.watch.status import Status, WatchedRun, open_watched, read_status

LOCAL_SECONDS = 2.0
REMOTE_SECONDS = 30.0
"""Seconds between two looks at a run in a bucket: its metrics are uploaded every 30 seconds."""
MOST_SECONDS = 86400
"""A day, the longest time between two looks."""


def watch(run: str, seconds: float | None, *, once: bool, as_json: bool) -> None:
    """Show the state of a run on standard output, and again whenever it has changed, until the run is complete.

    Args:
        run: the run directory, local or in an object store.
        seconds: between two looks; None takes 2, and 30 for an object store.
        once: print the state and return.
        as_json: print it as one JSON object and return.

    Raises:
        UserError: it is not a run directory, or cannot be read.
    """
    if seconds is not None and not 0 < seconds <= MOST_SECONDS:
        raise UserError(f"--every {seconds:g}: must be above 0 and at most {MOST_SECONDS} seconds")
    watched = open_watched(run)
    follower = MetricsFollower(watched.name)
    follower.update()
    if as_json:
        print(json.dumps(read_status(watched, follower.records).as_json()))
        return
    if once:
        print(format_status(read_status(watched, follower.records)))
        return
    _follow(watched, follower, seconds or (REMOTE_SECONDS if is_remote(run) else LOCAL_SECONDS))


def _follow(run: WatchedRun, follower: MetricsFollower, seconds: float) -> None:
    """Show the state in place until the run is complete. Without a terminal it is printed once, at the end."""
    console = Console(highlight=False, soft_wrap=True)
    if not console.is_terminal:
        for status, _ in _states(run, follower, seconds):
            if status.is_complete:
                print(format_status(status))
        return
    with Live(console=console, auto_refresh=False) as live:
        for status, seconds_unchanged in _states(run, follower, seconds):
            text = format_status(status)
            if not status.is_complete and seconds_unchanged >= 1:
                text += f"\nno new step for {format_duration(seconds_unchanged)}"
            live.update(Text(text), refresh=True)


def _states(run: WatchedRun, follower: MetricsFollower, seconds: float) -> Iterator[tuple[Status, float]]:
    """Yield the state at each look, and the seconds since the last new line, until the run is complete."""
    last_change = time.monotonic()
    while True:
        status = read_status(run, follower.records)
        yield status, time.monotonic() - last_change
        if status.is_complete:
            return
        time.sleep(seconds)
        if follower.update():
            last_change = time.monotonic()
