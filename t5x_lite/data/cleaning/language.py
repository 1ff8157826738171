"""A filter by language, which `py3langid` identifies (extra `cleaning`)."""

from functools import lru_cache
from typing import TYPE_CHECKING

from t5x_lite.data.cleaning.text_filter import FilteredText, TextFilter
from t5x_lite.errors import UserError, suggest
from t5x_lite.extras import require_library
from t5x_lite.schema import Strings, setting

if TYPE_CHECKING:
    from py3langid.langid import LanguageIdentifier

IDENTIFIED_CHARACTERS = 10_000
"""Characters from the beginning of a document that its language is identified by."""


class Language(TextFilter):
    """Drop documents in other languages, and those whose language is uncertain."""

    languages: Strings = setting(..., "ISO 639-1 codes of the languages, such as en", min_length=1)
    min_probability: float = setting(0.65, "smallest probability of the language", ge=0, le=1)

    def check(self) -> None:
        require_library("data.cleaning: language", "py3langid", "cleaning")
        known = _identifier().labels
        for language in self.languages:
            if language not in known:
                hint = suggest(language, known) or f"; known are {', '.join(known)}"
                raise UserError(f"data.cleaning: language {language!r} is not known to py3langid{hint}")

    def apply(self, text: str) -> FilteredText:
        language, probability = _identifier().classify(text[:IDENTIFIED_CHARACTERS])
        if language not in self.languages:
            return FilteredText(text, "other_language")
        if probability < self.min_probability:
            return FilteredText(text, "uncertain_language")
        return FilteredText(text)


@lru_cache(maxsize=1)
def _identifier() -> "LanguageIdentifier":
    from py3langid import langid

    return langid.LanguageIdentifier.from_model_file(langid.MODEL_FILE, norm_probs=True)
