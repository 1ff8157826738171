"""Near-duplicates by MinHash (Broder 1997) and locality-sensitive hashing, with `datasketch` (extra `cleaning`)."""

from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Bool, UInt32

from t5x_lite.data.cleaning.deduplication import Deduplication, DuplicateIndex
from t5x_lite.extras import require_library
from t5x_lite.schema import Int, setting

if TYPE_CHECKING:
    from datasketch import MinHash

SCHEME = "affine32"
SEED = 1


class MinHashLSH(Deduplication):
    """Drop documents whose set of n-grams of words is similar to that of an earlier document that is retained."""

    threshold: float = setting(
        0.8,
        "smallest Jaccard similarity of duplicates: common n-grams over all n-grams, as MinHash estimates it",
        gt=0,
        lt=1,
        source="Lee et al. 2022, §4.2",
    )
    ngram_words: Int = setting(5, "words of an n-gram, in lower case", ge=1, source="Lee et al. 2022, §4.2")
    permutations: Int = setting(
        128, "hash functions; the standard error of an estimate is at most 0.5 / √permutations", ge=16, le=4096
    )

    @property
    def numbers(self) -> int:
        return self.permutations

    def check(self) -> None:
        require_library("data.cleaning: minhash", "datasketch", "cleaning")

    def fingerprint(self, text: str) -> UInt32[np.ndarray, "numbers"]:
        """Return the MinHash of the text."""
        minhash = _empty_minhash(self.permutations).copy()
        minhash.update_batch([ngram.encode("utf-8", errors="replace") for ngram in ngrams(text, self.ngram_words)])
        return np.asarray(minhash.hashvalues, np.uint32)

    def build_index(self) -> DuplicateIndex:
        return _SimilarTexts(self.threshold, self.permutations)


def ngrams(text: str, words_per_ngram: int) -> set[str]:
    """Return the n-grams of the words of a text; of a shorter text, all its words as one."""
    words = text.lower().split()
    last = max(len(words) - words_per_ngram, 0)
    return {" ".join(words[start : start + words_per_ngram]) for start in range(last + 1)}


@lru_cache(maxsize=4)
def _empty_minhash(permutations: int) -> "MinHash":
    from datasketch import MinHash

    return MinHash(permutations, seed=SEED, scheme=SCHEME)


class _SimilarTexts:
    """An index of MinHashes. Candidates of its hash tables are compared with the threshold, hash by hash."""

    def __init__(self, threshold: float, permutations: int) -> None:
        from datasketch import MinHashLSH as Tables

        self._threshold = threshold
        self._permutations = permutations
        self._tables = Tables(threshold, permutations, weights=(0.1, 0.9))
        self._retained: list[np.ndarray] = []

    def add(self, fingerprints: UInt32[np.ndarray, "documents numbers"]) -> Bool[np.ndarray, "documents"]:
        from datasketch import LeanMinHash

        is_duplicate = np.zeros(len(fingerprints), np.bool_)
        for number, fingerprint in enumerate(fingerprints):
            minhash = LeanMinHash(seed=SEED, hashvalues=fingerprint, scheme=SCHEME)
            candidates = self._tables.query(minhash)
            if self._is_similar(fingerprint, candidates):
                is_duplicate[number] = True
                continue
            self._tables.insert(len(self._retained), minhash, check_duplication=False)
            self._retained.append(fingerprint.copy())
        return is_duplicate

    def _is_similar(self, fingerprint: UInt32[np.ndarray, "numbers"], candidates: list[int]) -> bool:
        return any(np.mean(self._retained[number] == fingerprint) >= self._threshold for number in candidates)
