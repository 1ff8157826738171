"""Markdown tables of the other programs in this folder."""

from collections.abc import Sequence


def print_markdown(rows: Sequence[Sequence[str]]) -> None:
    """Print a Markdown table, whose first row is its header."""
    for number, row in enumerate(rows):
        print(f"| {' | '.join(row)} |")
        if number == 0:
            print("|" + "---|" * len(row))
