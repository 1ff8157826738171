"""Print the tables of docs/results/study.md and draw its picture from complete runs of the study.

python tools/study_table.py NAME=RUN [NAME=RUN …] [--picture docs/images/study.png]
"""

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib
import numpy as np
from markdown_table import print_markdown

matplotlib.use("Agg")
from matplotlib import pyplot

PHENOMENON = "eval/blimp/phenomenon/"
SMOOTHED_LINES = 10
"""Lines of metrics whose mean is a point of a curve."""


def main() -> None:
    """Read the runs, print two tables, and draw the picture if one is asked for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("runs", nargs="+", metavar="NAME=RUN")
    parser.add_argument("--picture", type=Path)
    options = parser.parse_args()
    runs = {}
    for pair in options.runs:
        name, _, folder = pair.partition("=")
        runs[name] = read_run(Path(folder))
    rows = [("run", "steps", "hours of the steps", "validation loss", "bits per byte", "BLiMP")]
    rows += [(name, *summary_cells(lines)) for name, lines in runs.items()]
    print_markdown(rows)
    print()
    print_markdown(phenomenon_rows({name: lines[-1] for name, lines in runs.items()}))
    if options.picture:
        draw(runs, options.picture)


def read_run(folder: Path) -> list[dict[str, float]]:
    """Return the metrics of a run, the scores of its last step among those of the last line."""
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    scores = json.loads((folder / "eval" / str(lines[-1]["step"]) / "scores.json").read_text())
    lines[-1].update(scores)
    return lines


def summary_cells(lines: Sequence[Mapping[str, float]]) -> tuple[str, ...]:
    """Return the cells of one run: what it cost, and what it scored."""
    last = lines[-1]
    bits = last.get("eval/bits_per_byte")
    return (
        f"{last['step']:,.0f}",
        f"{last['goodput/step_seconds'] / 3600:.2f}",
        f"{last['eval/loss']:.3f}",
        f"{bits:.3f}" if bits is not None else "",
        f"{last['eval/blimp/accuracy']:.1%}",
    )


def phenomenon_rows(scores: Mapping[str, Mapping[str, float]]) -> list[tuple[str, ...]]:
    """Return the accuracies of the runs, a row for each phenomenon of BLiMP."""
    rows = [("phenomenon", *scores)]
    for phenomenon in phenomena(scores):
        accuracies = [f"{of_run[PHENOMENON + phenomenon]:.1%}" for of_run in scores.values()]
        rows.append((phenomenon.replace("_", " "), *accuracies))
    return rows


def phenomena(scores: Mapping[str, Mapping[str, float]]) -> list[str]:
    """Return the names of the phenomena, in the order of the alphabet."""
    first = next(iter(scores.values()))
    return sorted(name.removeprefix(PHENOMENON) for name in first if name.startswith(PHENOMENON))


def draw(runs: Mapping[str, Sequence[Mapping[str, float]]], path: Path) -> None:
    """Draw the loss over the tokens that were read, and the accuracies of each phenomenon."""
    figure, (curves, points) = pyplot.subplots(1, 2, figsize=(12, 6), width_ratios=(2, 3))
    colors = [*pyplot.color_sequences["tab10"], "black", "lightgreen", "gold"]
    scores = {name: lines[-1] for name, lines in runs.items()}
    names = phenomena(scores)
    for number, (name, lines) in enumerate(runs.items()):
        tokens = smooth([line["tokens"] / 1e6 for line in lines])
        color = colors[number % len(colors)]
        curves.plot(tokens, smooth([line["loss"] for line in lines]), label=name, color=color)
        places = np.arange(len(names)) + ((number + 0.5) / len(runs) - 0.5) * 0.8
        accuracies = [100 * scores[name][PHENOMENON + phenomenon] for phenomenon in names]
        points.plot(accuracies, places, "o", markersize=5, color=color)
    curves.set_xlabel("million tokens")
    curves.set_ylabel("loss of the own objective (nats per target)")
    curves.legend()
    points.axvline(50, color="grey", linewidth=1)
    points.set_yticks(np.arange(len(names)), [name.replace("_", " ") for name in names])
    points.invert_yaxis()
    points.set_xlabel("BLiMP: pairs whose grammatical sentence is more probable, %")
    points.grid(axis="x", alpha=0.3)
    for border in range(1, len(names)):
        points.axhline(border - 0.5, color="lightgrey", linewidth=0.5)
    figure.tight_layout()
    figure.savefig(path, dpi=100)
    pyplot.close(figure)


def smooth(values: Sequence[float]) -> list[float]:
    """Return the means of successive groups of values; a last group that is not full does not count."""
    count = len(values) // SMOOTHED_LINES
    groups = np.reshape(values[: count * SMOOTHED_LINES], (count, SMOOTHED_LINES))
    return groups.mean(axis=1).tolist()


if __name__ == "__main__":
    main()
