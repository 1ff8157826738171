"""Exact deduplication: documents with the same text."""

import hashlib

import numpy as np
from jaxtyping import Bool, UInt32

from t5x_lite.data.cleaning.deduplication import Deduplication, DuplicateIndex

DIGEST_BYTES = 16


class Exact(Deduplication):
    """Drop documents whose text, without white space at its ends, is that of an earlier one."""

    @property
    def numbers(self) -> int:
        return DIGEST_BYTES // 4

    def fingerprint(self, text: str) -> UInt32[np.ndarray, "numbers"]:
        """Return a hash of the text."""
        content = text.strip().encode("utf-8", errors="replace")
        return np.frombuffer(hashlib.blake2b(content, digest_size=DIGEST_BYTES).digest(), np.uint32)

    def build_index(self) -> DuplicateIndex:
        return _SeenTexts()


class _SeenTexts:
    def __init__(self) -> None:
        self._digests: set[bytes] = set()

    def add(self, fingerprints: UInt32[np.ndarray, "documents numbers"]) -> Bool[np.ndarray, "documents"]:
        is_duplicate = np.zeros(len(fingerprints), np.bool_)
        for number, fingerprint in enumerate(fingerprints):
            digest = fingerprint.tobytes()
            is_duplicate[number] = digest in self._digests
            self._digests.add(digest)
        return is_duplicate
