"""The rule by which text becomes rows: all settings that a row plan depends on, apart from the text."""

import hashlib
import json
from dataclasses import dataclass

import numpy as np
from jaxtyping import Int64

from t5x_lite.data.config import DataConfig
from t5x_lite.objectives.objective import ExampleContext, Objective

PLAN_VERSION = 2
"""Version of the rows of documents: 1 was next-fit in a random order that depended on the seed, 2 is best-fit."""


@dataclass(frozen=True)
class RowRule:
    """The rule by which the text of a corpus is cut or packed into rows.

    Attributes:
        data: says what rows are packed from.
        objective: says how many tokens a row has room for, and how much room a document takes.
        context: the context of the objective's examples.
    """

    data: DataConfig
    objective: Objective
    context: ExampleContext

    @property
    def is_packed(self) -> bool:
        """True if which tokens are in a row depends on the lengths of the rows before it, so that a plan is stored."""
        return self.data.packing in {"documents", "sentences"}

    @property
    def length(self) -> int:
        """Tokens of a row."""
        return self.objective.row_length(self.context)

    @property
    def capacity(self) -> tuple[int, ...]:
        """Room of a row, of every kind that `packed_sizes` counts."""
        if self.data.packing in {"documents", "none"}:
            return self.objective.row_capacity(self.context)
        return (self.length,)

    def sizes(self, part_lengths: Int64[np.ndarray, "documents parts"]) -> Int64[np.ndarray, "documents kinds"]:
        """Return the room that documents take whose parts have these lengths."""
        return self.objective.packed_sizes(part_lengths, self.context).astype(np.int64)

    def describe(self) -> dict[str, object]:
        """Return what decides the rows, as JSON: rules with equal descriptions give equal rows of a corpus."""
        description: dict[str, object] = {
            "version": PLAN_VERSION,
            "packing": self.data.packing,
            "row_length": self.length,
            "capacity": list(self.capacity),
        }
        match self.data.packing:
            case "stream":
                description["stride"] = self.objective.stride(self.context)
            case "sentences":
                description["within_documents"] = self.objective.rows.has_second_sentence
                if self.objective.rows.has_second_sentence:
                    description["counts"] = "single_sentences"  # which older plans lack
            case "documents" if not self.objective.rows.keeps_ends:
                # No document takes more than a row, so the sizes of all lengths say everything.
                lengths = np.arange(1, self.length + 1)
                sizes = self.sizes(lengths[:, None])
                description["sizes"] = hashlib.sha256(sizes.tobytes()).hexdigest()
            case _:
                description["objective"] = [self.objective.name, self.objective.model_dump(mode="json")]
                description["family"] = self.context.family
        return description

    @property
    def fingerprint(self) -> str:
        """A hash of the description."""
        return hashlib.sha256(json.dumps(self.describe(), sort_keys=True).encode()).hexdigest()[:16]
