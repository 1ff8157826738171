"""A bar on the terminal with the time that is left."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn


@contextmanager
def progress(verb: str) -> Iterator[Callable[[str, int, int], None]]:
    """A function of (what is at hand, done, total) that moves a bar on the terminal, where there is one."""
    console = Console(stderr=True)
    columns = (
        TextColumn(verb),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[at]}"),
    )
    with Progress(*columns, console=console, disable=not console.is_terminal) as bar:
        task = bar.add_task("", total=None, at="")
        yield lambda name, done, total: bar.update(task, completed=done, total=total, at=name)
