"""Output on the terminal: lines, tables, and progress bars with the remaining time."""

import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Column, Table


def print_line(console: Console, text: str) -> None:
    """Print text unchanged: without markup, and without breaking long lines."""
    console.print(text, highlight=False, markup=False, emoji=False, soft_wrap=True)


def print_metrics(metrics: Mapping[str, float], *, as_json: bool) -> None:
    """Print metrics, a line each, or as a JSON object, in which one that is not finite is null."""
    if as_json:
        # JSON has no NaN and no infinity.
        finite = {name: value if math.isfinite(value) else None for name, value in metrics.items()}
        print(json.dumps(finite))
        return
    width = max(len(name) for name in metrics)
    for name, value in metrics.items():
        print(f"{name:<{width}}  {value:.6g}")


SI_PREFIXES = ((1e24, "Y"), (1e21, "Z"), (1e18, "E"), (1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"))
"""Factors and prefixes, largest first (BIPM, SI Brochure, 9th edition, Table 7)."""


def print_table(console: Console, title: str, columns: Sequence[str | Column], rows: Sequence[Sequence[str]]) -> None:
    """Print a table with a title and column headers. Nothing is printed if it has no rows.

    In a file, which has no width, no cell is cut or folded.
    """
    if not rows:
        return
    table = Table(*columns, title=title, title_justify="left", show_header=any(columns))
    for row in rows:
        table.add_row(*row)
    if not console.is_terminal:
        unlimited = console.options.update_width(10_000)
        console.width = max(console.width, console.measure(table, options=unlimited).maximum)
    console.print(table)


def progress_bar(*columns: str | ProgressColumn, enabled: bool = True) -> Progress:
    """Return a progress bar on standard error: the columns, the elapsed time and the remaining time.

    It is not shown if standard error is not a terminal.
    """
    console = Console(stderr=True)
    is_shown = enabled and console.is_terminal
    return Progress(*columns, TimeElapsedColumn(), "left", TimeRemainingColumn(), console=console, disable=not is_shown)


@contextmanager
def track_progress(verb: str) -> Iterator[Callable[[str, int, int], None]]:
    """Show a progress bar, and yield the function `advance(current_item, done, total)` that moves it."""
    with progress_bar(verb, BarColumn(), MofNCompleteColumn(), "{task.fields[at]}") as progress:
        task = progress.add_task("", total=None, at="")

        def advance(current_item: str, done: int, total: int) -> None:
            progress.update(task, completed=done, total=total, at=current_item)

        yield advance


def format_si(number: float) -> str:
    """Return a number with three digits and an SI prefix, such as 12.3k for 12345."""
    rounded = float(f"{number:.3g}")  # Before the prefix is chosen: 999,999 is 1M
    for size, prefix in SI_PREFIXES:
        if abs(rounded) >= size:
            return f"{rounded / size:.3g}{prefix}"
    return f"{rounded:.3g}"


def format_duration(seconds: float) -> str:
    """Return a duration in its two largest units, such as 1h06m for 4000 seconds."""
    seconds = round(seconds)
    if seconds < 60:
        return f"{seconds}s"
    minutes, seconds = divmod(seconds, 60)
    if minutes < 60:
        return f"{minutes}m{seconds:02d}s"
    hours, minutes = divmod(minutes, 60)
    return f"{hours}h{minutes:02d}m"
