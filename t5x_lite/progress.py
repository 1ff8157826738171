"""What people see on the terminal: lines, tables, and a bar with the time that is left."""

from collections.abc import Callable, Iterator, Sequence
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
    """Print a text as it is, whatever signs it holds and however long its lines are."""
    console.print(text, highlight=False, markup=False, emoji=False, soft_wrap=True)


def print_table(console: Console, title: str, columns: Sequence[str | Column], rows: Sequence[Sequence[str]]) -> None:
    """Print rows, if there are any, below a title and the names of the columns."""
    if rows:
        shown = Table(*columns, title=title, title_justify="left", show_header=any(columns))
        for row in rows:
            shown.add_row(*row)
        console.print(shown)


def progress_bar(*columns: str | ProgressColumn, enabled: bool = True) -> Progress:
    """These columns, the time that has gone and the time that is left, where there is a terminal."""
    console, times = Console(stderr=True), (TimeElapsedColumn(), "left", TimeRemainingColumn())
    return Progress(*columns, *times, console=console, disable=not (enabled and console.is_terminal))


@contextmanager
def track_progress(verb: str) -> Iterator[Callable[[str, int, int], None]]:
    """A function of (what is at hand, done, total) that moves a bar on the terminal, where there is one."""
    with progress_bar(verb, BarColumn(), MofNCompleteColumn(), "{task.fields[at]}") as shown:
        task = shown.add_task("", total=None, at="")
        yield lambda name, done, total: shown.update(task, completed=done, total=total, at=name)
