"""A warning about text whose pairs of sentences have labels of one kind."""

import logging

from t5x_lite.data.row_statistics import RowStatistics

MAX_SHARE = 0.2
"""Share of the rows with one sentence from which on a warning is due: the labels are 60 to 40 then instead of even."""

logger = logging.getLogger(__name__)


def unrelated_share(statistics: RowStatistics) -> float:
    """Return the expected share of label 1 among the pairs: all of rows with one sentence, and half of the others.

    Shorter pairs (`short_share`) of one sentence are not counted.
    """
    return (1 + statistics.single_sentences / max(statistics.rows, 1)) / 2


def warn_of_single_sentences(source: str, statistics: RowStatistics) -> None:
    """Warn if many rows of a source hold one sentence, which has no second text in its document."""
    if statistics.single_sentences <= MAX_SHARE * statistics.rows:
        return
    share = statistics.single_sentences / statistics.rows
    logger.warning(
        "source %s: %s of %s training rows (%.1f %%) hold one sentence, so that their second text is always of another "
        "document: %.1f %% of the labels of sentence pairs are 1 (unrelated or swapped), not half; use documents of "
        "more sentences, data.parts=punctuation or a longer train.seq_len",
        source,
        f"{statistics.single_sentences:,}",
        f"{statistics.rows:,}",
        100 * share,
        100 * unrelated_share(statistics),
    )
