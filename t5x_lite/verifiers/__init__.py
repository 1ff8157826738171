"""Verifiers of sampled answers: one file each, one entry here."""

from t5x_lite.verifiers.arithmetic import Arithmetic
from t5x_lite.verifiers.contains import Contains
from t5x_lite.verifiers.exact_match import ExactMatch
from t5x_lite.verifiers.verifier import Verifier

VERIFIERS: dict[str, type[Verifier]] = {
    "exact_match": ExactMatch,
    "contains": Contains,
    "arithmetic": Arithmetic,
}

__all__ = ["VERIFIERS", "Arithmetic", "Contains", "ExactMatch", "Verifier"]
