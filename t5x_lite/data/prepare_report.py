"""The output of `prepare`: counts of the rows of each source, and the folder of its corpus."""

from collections.abc import Sequence

from rich.console import Console
from rich.table import Column

from t5x_lite.data.cleaning.deduplicate import REPORT_FILE, CleaningReport, read_report
from t5x_lite.data.open_data import PreparedSource
from t5x_lite.data.row_statistics import RowStatistics, add_statistics
from t5x_lite.progress import print_table
from t5x_lite.storage import join


def prepared_as_json(prepared: Sequence[PreparedSource]) -> dict[str, object]:
    """Return the counts of the training rows of all sources, and of each split of each source.

    The keys `documents`, `tokens`, `rows`, `fill` and `cut_documents` are those of the training text.
    """
    sources: dict[str, object] = {}
    for source in prepared:
        counts: dict[str, object] = {"folder": source.folder}
        for split, statistics in source.statistics.items():
            counts[split] = _counts_as_json(statistics)
        cleaning = read_report(source.folder)
        if cleaning is not None:
            record = cleaning.model_dump(mode="json", exclude={"examples"})
            for evaluation_set in record["contamination"].values():
                del evaluation_set["overlaps"]
            counts["cleaning"] = record
        sources[source.name] = counts
    total = add_statistics(source.statistics["train"] for source in prepared)
    return {**_counts_as_json(total), "sources": sources}


def _counts_as_json(statistics: RowStatistics) -> dict[str, object]:
    return {
        "documents": statistics.documents,
        "tokens": statistics.tokens,
        "rows": statistics.rows,
        "fill": statistics.fill,
        "fill_by_kind": statistics.fill_by_kind,
        "cut_documents": statistics.cut_documents,
        "single_sentences": statistics.single_sentences,
    }


def print_prepared(prepared: Sequence[PreparedSource]) -> None:
    """Print what cleaning dropped, a line for each source with the counts of its training rows, and its folder."""
    for source in prepared:
        cleaning = read_report(source.folder)
        if cleaning is not None:
            _print_cleaning(source, cleaning)
    width = max(len(source.name) for source in prepared)
    for source in prepared:
        print(f"{source.name:<{width}}  {_describe(source.statistics['train'])}")
    for source in prepared:
        print(f"{source.name}: {source.folder}")


def empty_splits(prepared: Sequence[PreparedSource]) -> list[str]:
    """Return a line for each split of a source that fills no row, of which `train` would refuse a run."""
    lines = []
    for source in prepared:
        for split, statistics in source.statistics.items():
            if not statistics.rows:
                lines.append(
                    f"{source.name}: its {split} text of {statistics.tokens:,} tokens fills no row of train.seq_len; a "
                    "run needs more text, or a shorter train.seq_len"
                )
    return lines


def _print_cleaning(source: PreparedSource, report: CleaningReport) -> None:
    """Print a table of the rules that dropped documents or removed lines, the most frequent first."""
    rows = []
    for rule, number in sorted(report.dropped.items(), key=lambda item: -item[1]):
        rows.append([rule, f"{number:,} documents", f"{100 * number / report.documents:.2f} %"])
    for rule, number in sorted(report.removals.items(), key=lambda item: -item[1]):
        rows.append([rule, f"{number:,} removals", ""])
    rows.append(["retained", f"{report.retained_documents:,} documents", f"{_share(report):.2f} %"])
    numbers = [Column("number", justify="right"), Column("share", justify="right")]
    print_table(Console(), f"cleaning of {source.name}: {report.documents:,} documents", ["rule", *numbers], rows)
    sets = []
    for file, counts in report.contamination.items():
        sets.append(
            [file, f"{counts.examples:,}", f"{counts.searched:,}", f"{counts.contaminated:,}", f"{counts.share:.2%}"]
        )
    names = ("examples", "searched", "in the corpus", "share")
    headers = [Column("file", overflow="fold"), *(Column(name, justify="right", no_wrap=True) for name in names)]
    print_table(Console(), f"evaluation sets in {source.name}", headers, sets)
    print(f"cleaning of {source.name}: {join(source.folder, REPORT_FILE)} has examples")


def _share(report: CleaningReport) -> float:
    """Return the percentage of the documents that are retained."""
    return 100 * report.retained_documents / max(report.documents, 1)


def _describe(statistics: RowStatistics) -> str:
    fills = " and ".join(f"{100 * fill:.1f}" for fill in statistics.fill_by_kind)
    return (
        f"{statistics.documents:>13,} documents  {statistics.tokens:>17,} tokens  {statistics.rows:>13,} rows  "
        f"{fills:>5} % full  {statistics.cut_documents:>13,} documents cut"
    )
