"""Write the reports of runs: a picture, a page, and a table of scores before and after an adaptation."""

from collections.abc import Sequence
from pathlib import Path

from t5x_lite.evaluate.page.page import write_page
from t5x_lite.evaluate.report import draw_report

PAGE_SUFFIXES = (".html", ".htm")


def write_reports(runs: Sequence[Path], to: Path | None = None) -> list[Path]:
    """Write the reports of runs.

    Args:
        runs: the run directories.
        to: a picture or a page to write; None writes `report.png` and `report.html` in the first run directory.

    Returns:
        The files.

    Raises:
        UserError: a run without metrics; a file of another kind, or one that cannot be written.
    """
    if to is None:
        return [draw_report(runs, runs[0] / "report.png"), write_page(runs, runs[0] / "report.html")]
    if to.suffix.lower() in PAGE_SUFFIXES:
        return [write_page(runs, to)]
    return [draw_report(runs, to)]


def print_comparison(runs: Sequence[Path]) -> None:
    """Evaluate adapted runs before and after, and print the scores; see `evaluate.forgetting`.

    Raises:
        UserError: a run that adapts no other; a checkpoint or data that are missing.
    """
    from t5x_lite.evaluate.forgetting import compare_runs, format_comparison  # needs JAX, which pictures do not

    print(format_comparison(compare_runs(runs)))
