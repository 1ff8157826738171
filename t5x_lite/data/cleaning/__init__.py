"""Cleaning of text: filters and kinds of deduplication, one file each, one entry here."""

from t5x_lite.data.cleaning.c4 import C4
from t5x_lite.data.cleaning.c4_spans import C4Spans
from t5x_lite.data.cleaning.decontaminate import Decontaminate
from t5x_lite.data.cleaning.deduplication import Deduplication
from t5x_lite.data.cleaning.exact import Exact
from t5x_lite.data.cleaning.gopher_quality import GopherQuality
from t5x_lite.data.cleaning.gopher_repetition import GopherRepetition
from t5x_lite.data.cleaning.language import Language
from t5x_lite.data.cleaning.minhash import MinHashLSH
from t5x_lite.data.cleaning.text_filter import TextFilter

CLEANING: dict[str, type[TextFilter] | type[Deduplication] | type[C4Spans]] = {
    "c4": C4,
    "gopher_quality": GopherQuality,
    "gopher_repetition": GopherRepetition,
    "language": Language,
    "decontaminate": Decontaminate,
    "exact": Exact,
    "minhash": MinHashLSH,
    "c4_spans": C4Spans,
}
