"""Print how far every model type is from its implementation in Hugging Face Transformers; see parity.sh."""

import tempfile
from collections.abc import Sequence
from pathlib import Path

import jax
import torch
import transformers
from rich.console import Console
from rich.progress import track

from tests.reference.cases import make
from tests.reference.tiny_models import TINY_MODELS

COLUMNS = ("family", "objective", "reference", "logits", "loss", "gradients")


def main() -> None:
    """Print one Markdown table, in float32 on the CPU, with padding in the batch."""
    rows = []
    for name in track(TINY_MODELS, description="comparing", console=Console(stderr=True)):
        rows.append(compare(name))
    print_markdown(COLUMNS, rows)
    print("\nLargest absolute difference of logits and loss; of gradients, relative to each parameter's largest.")
    print(f"transformers {transformers.__version__}, torch {torch.__version__}, jax {jax.__version__}, float32, CPU")


def compare(name: str) -> tuple[str, ...]:
    """Return the row of one tiny model."""
    with tempfile.TemporaryDirectory() as folder:
        case = make(name, Path(folder))
        differences = case.differences()
    return (
        name,
        case.objective,
        type(case.theirs).__name__,
        f"{differences.logits:.1e}",
        f"{differences.loss:.1e}",
        f"{differences.gradients:.1e}",
    )


def print_markdown(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print a table with columns of equal width."""
    widths = [max(map(len, cells)) for cells in zip(columns, *rows, strict=True)]
    rule = ["-" * width for width in widths]
    for row in (columns, rule, *rows):
        cells = [cell.ljust(width) for cell, width in zip(row, widths, strict=True)]
        print(f"| {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
