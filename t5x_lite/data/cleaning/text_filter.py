"""The interface of filters: rules that look at one document at a time."""

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from t5x_lite.schema import Config


@dataclass(frozen=True)
class FilteredText:
    """A document after a filter.

    Attributes:
        text: the text that is left.
        dropped_by: the rule that drops the document; empty if it is retained.
        removals: what rules removed from the text, such as lines, counted by the rule.
        overlaps: by the file of an evaluation set, the numbers of its examples that occur in the text.
    """

    text: str
    dropped_by: str = ""
    removals: Mapping[str, int] = field(default_factory=dict)
    overlaps: Mapping[str, Sequence[int]] = field(default_factory=dict)


class TextFilter(Config):
    """A set of rules for single documents."""

    @abstractmethod
    def apply(self, text: str) -> FilteredText:
        """Apply the rules in order. The first that a document breaks drops it."""

    def check(self) -> None:
        """Check that the filter can run on this machine.

        Raises:
            UserError: a library or a file that it needs is missing, or does not know a setting's value.
        """

    def fingerprint(self) -> str:
        """Return a text that changes if files that the filter reads may have changed."""
        return ""
