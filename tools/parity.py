"""Prints how far every model family is from its implementation in Hugging Face Transformers; see parity.sh."""

import tempfile
from pathlib import Path

import jax
import torch
import transformers
from rich.console import Console
from rich.progress import track

from tests.reference.cases import CASES, make


def main() -> None:
    """One Markdown table, in float32 on the CPU, with padding in the batch."""
    rows = []
    for name in track(CASES, description="comparing", console=Console(stderr=True)):
        with tempfile.TemporaryDirectory() as folder:
            case = make(name, Path(folder))
            logits, loss, gradients = case.differences()
            reference = type(case.theirs).__name__
            rows.append((name, case.objective, reference, f"{logits:.1e}", f"{loss:.1e}", f"{gradients:.1e}"))
    head = ("family", "objective", "reference", "logits", "loss", "gradients")
    widths = [max(map(len, column)) for column in zip(head, *rows, strict=True)]
    for row in (head, tuple("-" * width for width in widths), *rows):
        print("| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) + " |")
    print("\nLargest absolute difference of logits and loss; of gradients, relative to each parameter's largest.")
    print(f"transformers {transformers.__version__}, torch {torch.__version__}, jax {jax.__version__}, float32, CPU")


if __name__ == "__main__":
    main()
