"""Complete a token corpus: write where its documents and parts start in the stream of tokens, and then its summary."""

import hashlib
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Int64

from t5x_lite.data.corpus_files import SPLITS, CorpusFiles, Split, TokenType, load_arrays
from t5x_lite.data.corpus_summary import CorpusSummary, SplitCounts
from t5x_lite.data.sorted_arrays import SortedArrayWriter
from t5x_lite.storage import write_bytes

READ_AT_ONCE = 64
"""Files of units that are read at the same time: in a bucket one of them takes long, but many take no longer."""


def complete_corpus(
    files: CorpusFiles, units: Sequence[str], token_type: TokenType, *, has_parts: bool
) -> CorpusSummary | None:
    """Write the index and the summary of a corpus whose units are complete. The lengths of some units are in memory.

    Returns None, and writes no summary, if there is no token.

    Args:
        files: of the corpus.
        units: names of the units of text, in the order of the rows of the tokens.
        token_type: type of the token ids.
        has_parts: the documents have parts.

    Raises:
        OSError: a file that cannot be written.
        UserError: the file of a unit is damaged, or the store cannot be used.
    """
    splits = {split: _SplitIndex(files, split, has_parts=has_parts) for split in SPLITS}
    for unit, arrays in _read_units(files, units):
        for split, index in splits.items():
            try:
                index.add(arrays)
            except (KeyError, ValueError) as error:
                raise files.damaged(
                    files.unit(unit), f"it does not hold the lengths of {split} documents: {error}"
                ) from None
    summary = CorpusSummary(token_type=token_type, splits={split: index.finish() for split, index in splits.items()})
    if not any(counts.tokens for counts in summary.splits.values()):
        return None
    write_bytes(files.summary, summary.model_dump_json())
    return summary


def _read_units(files: CorpusFiles, units: Sequence[str]) -> Iterator[tuple[str, dict[str, np.ndarray]]]:
    """Yield the arrays in the file of each unit.

    Raises:
        UserError: a file is damaged, or the store cannot be read.
    """
    with ThreadPoolExecutor(READ_AT_ONCE) as pool:
        for first in range(0, len(units), READ_AT_ONCE):
            names = units[first : first + READ_AT_ONCE]
            reads = [pool.submit(load_arrays, files.unit(name)) for name in names]
            for name, read in zip(names, reads, strict=True):
                try:
                    yield name, read.result()
                except ValueError as error:
                    raise files.damaged(files.unit(name), str(error)) from None


@dataclass
class _SplitIndex:
    """Adds up the lengths of one split, unit by unit."""

    files: CorpusFiles
    split: Split
    has_parts: bool
    position: int = 0
    counts: Counter[str] = field(default_factory=Counter)
    unit_tokens: list[int] = field(default_factory=list)
    unit_hashes: list[bytes] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._documents = SortedArrayWriter(self.files.starts(self.split, "documents"))
        self._parts: SortedArrayWriter | None = None
        if self.has_parts:
            self._parts = SortedArrayWriter(self.files.starts(self.split, "parts"))

    def add(self, arrays: dict[str, np.ndarray]) -> None:
        """Add a unit.

        Raises:
            KeyError: an array is missing.
            ValueError: the lengths do not agree with each other.
        """
        documents: Int64[np.ndarray, documents] = arrays[f"{self.split}.documents"]
        tokens = int(documents.sum())
        self._documents.append(self.position + np.cumsum(documents) - documents)
        if self._parts is not None:
            parts: Int64[np.ndarray, parts] = arrays[f"{self.split}.parts"]
            if int(parts.sum()) != tokens:
                raise ValueError(f"{parts.sum()} tokens in parts, {tokens} in documents")
            self._parts.append(self.position + np.cumsum(parts) - parts)
            self.counts["parts"] += len(parts)
        text_bytes, replaced = arrays[f"{self.split}.text"].tolist()
        self.counts.update(documents=len(documents), text_bytes=text_bytes, replaced=replaced)
        self.unit_tokens.append(tokens)
        self.unit_hashes.append(arrays[f"{self.split}.hash"].tobytes())
        self.position += tokens

    def finish(self) -> SplitCounts:
        """Write the end of the stream, and return the counts."""
        end = np.array([self.position])
        self._documents.append(end)
        self._documents.finish()
        parts: int | None = None
        if self._parts is not None:
            self._parts.append(end)
            self._parts.finish()
            parts = self.counts["parts"]
        return SplitCounts(
            documents=self.counts["documents"],
            tokens=self.position,
            text_bytes=self.counts["text_bytes"],
            replaced=self.counts["replaced"],
            parts=parts,
            unit_tokens=self.unit_tokens,
            hash=hashlib.sha256(b"".join(self.unit_hashes)).hexdigest(),
        )
