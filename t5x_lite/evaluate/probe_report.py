"""Reports of a probe over the layers of a model: a table, a picture and JSON."""

import json
import sys
from pathlib import Path

import matplotlib
from matplotlib.backend_bases import FigureCanvasBase
from rich.console import Console
from rich.table import Table

from t5x_lite.errors import UserError
from t5x_lite.evaluate.probe import ProbeReport
from t5x_lite.local_copies import with_urls

matplotlib.use("Agg")
from matplotlib import pyplot


def check_picture(path: Path) -> None:
    """Refuse a name whose ending is no kind of picture.

    Raises:
        UserError: with the endings that are.
    """
    kinds = FigureCanvasBase.get_supported_filetypes()
    if path.suffix[1:].lower() not in kinds:
        raise UserError(f"--to {path}: is not the name of a picture; it ends in .{' or .'.join(sorted(kinds))}")


def print_probe(report: ProbeReport, *, as_json: bool) -> None:
    """Print a table with a row for each layer, or all numbers as JSON."""
    if as_json:
        print(json.dumps(report.as_json()))
        return
    table = Table(box=None, padding=(0, 2), header_style="")
    for title in ("layer", "train", "test", "anisotropy", "self-similarity"):
        table.add_column(title, justify="right")
    for layer in report.layers:
        similarity = "-"
        if layer.self_similarity is not None:
            similarity = f"{layer.self_similarity:.3f}"
        accuracies = [f"{layer.train_accuracy:.1%}", f"{layer.accuracy:.1%}"]
        anisotropy = "–" if layer.anisotropy is None else f"{layer.anisotropy:.3f}"
        table.add_row(str(layer.layer), *accuracies, anisotropy, similarity)
    console = Console(highlight=False, markup=False, emoji=False, soft_wrap=True)
    console.print(table)
    console.print(f"most frequent label of the training texts: {report.majority:.1%}")


def write_probe(report: ProbeReport, picture: Path) -> None:
    """Write the picture, and the numbers as JSON beside it.

    Raises:
        UserError: a file cannot be written.
    """
    try:
        _draw_probe(report, picture)
    except OSError as error:
        raise UserError(f"{picture}: cannot be written: {error.strerror}") from None
    report.save(picture.with_suffix(".json"))
    print(f"probe: {with_urls(str(picture))}", file=sys.stderr, flush=True)


def _draw_probe(report: ProbeReport, to: Path) -> None:
    """Draw accuracy, and below it anisotropy and self-similarity, over the layers."""
    numbers = [layer.layer for layer in report.layers]
    figure, (above, below) = pyplot.subplots(2, 1, figsize=(7, 7), sharex=True)
    above.plot(numbers, [layer.accuracy for layer in report.layers], marker="o", label="test")
    above.plot(numbers, [layer.train_accuracy for layer in report.layers], marker=".", alpha=0.5, label="train")
    above.axhline(report.majority, color="grey", linestyle=":", label="most frequent label")
    above.set(ylabel="accuracy of a linear probe", title=f"{len(report.classes)} classes")
    above.legend()
    below.plot(numbers, [layer.anisotropy for layer in report.layers], marker="o", label="anisotropy")
    similarities = [
        (layer.layer, layer.self_similarity) for layer in report.layers if layer.self_similarity is not None
    ]
    if similarities:
        below.plot(*zip(*similarities, strict=True), marker="o", label="self-similarity")
    below.set(xlabel="layer (0: input of the first)", ylabel="mean cosine")
    below.legend()
    to.parent.mkdir(parents=True, exist_ok=True)
    figure.tight_layout()
    figure.savefig(to)
    pyplot.close(figure)
