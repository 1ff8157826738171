"""The output of `prepare`: counts of the rows of each source, and the folder of its corpus."""

from collections.abc import Sequence

from t5x_lite.data.open_data import PreparedSource
from t5x_lite.data.row_statistics import RowStatistics, add_statistics


def prepared_as_json(prepared: Sequence[PreparedSource]) -> dict[str, object]:
    """Return the counts of the training rows of all sources, and of each split of each source.

    The keys `documents`, `tokens`, `rows`, `fill` and `cut_documents` are those of the training text.
    """
    sources: dict[str, object] = {}
    for source in prepared:
        counts: dict[str, object] = {"folder": source.folder}
        for split, statistics in source.statistics.items():
            counts[split] = _counts_as_json(statistics)
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
    }


def print_prepared(prepared: Sequence[PreparedSource]) -> None:
    """Print a line for each source with the counts of its training rows, then a line with its folder."""
    width = max(len(source.name) for source in prepared)
    for source in prepared:
        print(f"{source.name:<{width}}  {_describe(source.statistics['train'])}")
    for source in prepared:
        print(f"{source.name}: {source.folder}")


def _describe(statistics: RowStatistics) -> str:
    fills = " and ".join(f"{100 * fill:.1f}" for fill in statistics.fill_by_kind)
    return (
        f"{statistics.documents:>13,} documents  {statistics.tokens:>17,} tokens  {statistics.rows:>13,} rows  "
        f"{fills:>5} % full  {statistics.cut_documents:>13,} documents cut"
    )
