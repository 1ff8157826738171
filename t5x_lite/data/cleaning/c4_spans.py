"""C4's deduplication: of a span of three sentences that occurs more than once, one occurrence is retained.

Raffel et al. 2020, section 2.2: "we discarded all but one of any three-sentence span occurring more than once in the
data set". C4's program in TensorFlow Datasets (`c4_utils.py`) compares lines. As there, capitals do not matter, and
documents that become too short are dropped.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool
from numpy.lib.stride_tricks import sliding_window_view

from t5x_lite.data.cleaning.sentences import SentenceSpans
from t5x_lite.data.cleaning.sorted_hashes import SortedHashes
from t5x_lite.schema import Config, Int, setting


class C4Spans(Config):
    """Remove spans of sentences that repeat an earlier one, in the order of the corpus, that is retained."""

    span_sentences: Int = setting(3, "sentences of a span", ge=1, source="Raffel et al. 2020, §2.2")
    min_sentences: Int = setting(
        3, "fewest sentences that are left of a document that lost some; with fewer it is dropped", ge=1
    )

    def check(self) -> None:
        """Accept every machine: no library is needed."""

    def fingerprint(self, text: str) -> SentenceSpans:
        """Return the sentences of a document, with the hashes by which their spans are compared."""
        return SentenceSpans.of_text(text, self.span_sentences)

    def build_index(self) -> "SpanIndex":
        """Return an index without spans."""
        return SpanIndex(self)


@dataclass(frozen=True)
class RepeatedSpans:
    """The parts of documents that repeat something.

    Attributes:
        is_dropped: documents that lost sentences, and of which too few are left.
        is_removed: sentences of a span that repeats a retained one, in dropped documents too.
    """

    is_dropped: Bool[np.ndarray, "documents"]
    is_removed: Bool[np.ndarray, "sentences"]


class SpanIndex:
    """The spans that were retained so far, by their hashes.

    Args:
        settings: lengths of spans and documents.
    """

    def __init__(self, settings: C4Spans) -> None:
        self._span_sentences = settings.span_sentences
        self._min_sentences = settings.min_sentences
        self._retained = SortedHashes()

    def add(self, spans: SentenceSpans) -> RepeatedSpans:
        """Return what repeats an earlier span, in this call or before, and add the spans that are retained.

        A span that lost a sentence to a repetition is not retained, and neither are those of a dropped document, so
        their next occurrence stays: what is removed is always somewhere else.
        """
        hashes, numbers, counts = np.unique(spans.hashes, return_inverse=True, return_counts=True)
        is_known = self._retained.contains(hashes)
        may_repeat = (is_known | (counts > 1))[numbers]
        known = set(np.flatnonzero(is_known).tolist())
        is_dropped = np.zeros(len(spans.sentence_counts), np.bool_)
        is_removed = np.zeros(len(spans.sentence_bytes), np.bool_)
        is_retained = np.ones(len(numbers), np.bool_)
        first_sentences = np.cumsum(spans.sentence_counts) - spans.sentence_counts
        first_spans = np.cumsum(spans.span_counts) - spans.span_counts
        document_of_span = np.repeat(np.arange(len(spans.span_counts)), spans.span_counts)
        for document in np.unique(document_of_span[may_repeat]).tolist():
            its_spans = slice(first_spans[document], first_spans[document] + spans.span_counts[document])
            its_sentences = slice(
                first_sentences[document], first_sentences[document] + spans.sentence_counts[document]
            )
            repetitions = find_repetitions(numbers[its_spans].tolist(), known, self._span_sentences)
            is_dropped[document] = any(repetitions) and repetitions.count(False) < self._min_sentences
            is_removed[its_sentences] = repetitions
            loses_sentence = sliding_window_view(is_removed[its_sentences], self._span_sentences).any(axis=1)
            is_retained[its_spans] = False if is_dropped[document] else ~loses_sentence
            known.update(numbers[its_spans][is_retained[its_spans]].tolist())
        self._retained.add(hashes[np.unique(numbers[is_retained])])
        return RepeatedSpans(is_dropped, is_removed)


def find_repetitions(spans: list[int], known: set[int], span_sentences: int) -> list[bool]:
    """Return which sentences of a document are in a span that is known, or that the document retains before.

    Occurrences in one document that overlap are no repetitions of each other.

    Args:
        spans: number of the span that begins at each sentence but the last ones.
        known: numbers of the spans that earlier documents retain.
        span_sentences: sentences of a span.
    """
    is_removed = [False] * (len(spans) + span_sentences - 1)
    before: set[int] = set()
    for start, span in enumerate(spans):
        # No span from here on has a sentence of the one that ends here, so that is retained if it is whole.
        ended = start - span_sentences
        if ended >= 0 and not any(is_removed[ended:start]):
            before.add(spans[ended])
        if span in known or span in before:
            is_removed[start : start + span_sentences] = [True] * span_sentences
    return is_removed
