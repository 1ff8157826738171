"""Steps of cleaning that do not go together, or not with the documents of a source."""

from collections.abc import Iterator
from typing import TYPE_CHECKING

from t5x_lite.data.cleaning.c4_spans import C4Spans
from t5x_lite.data.cleaning.text_filter import TextFilter

if TYPE_CHECKING:
    from t5x_lite.data.config import SourceConfig


def cleaning_problems(source: "SourceConfig") -> Iterator[str]:
    """Yield documents that cannot be cleaned, and steps that repeat or undo each other."""
    if not source.cleaning:
        return
    if len(source.field) > 1:
        yield f"cleaning is for documents of one text, found field {list(source.field)}"
    kinds = [type(step) for step in source.cleaning]
    if len(set(kinds)) < len(kinds):
        yield "cleaning names a filter or a kind of deduplication twice"
    without_spans = [step for step in source.cleaning if not isinstance(step, C4Spans)]
    if without_spans != list(source.cleaning[: len(without_spans)]):
        yield "cleaning: c4_spans must come last, since exact and minhash compare the texts that the filters leave"
    is_filter = [isinstance(step, TextFilter) for step in without_spans]
    if is_filter != sorted(is_filter, reverse=True):
        yield "cleaning: exact and minhash must come after all filters, whose texts they compare"
