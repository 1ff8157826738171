"""Choices of the demonstrations in prompts: one file each, one entry here."""

from t5x_lite.evaluate.demonstrations.balanced import Balanced
from t5x_lite.evaluate.demonstrations.bm25 import BM25
from t5x_lite.evaluate.demonstrations.demonstrations import Demonstrations
from t5x_lite.evaluate.demonstrations.random import Random
from t5x_lite.evaluate.demonstrations.similar import Similar

DEMONSTRATIONS: dict[str, type[Demonstrations]] = {
    "random": Random,
    "balanced": Balanced,
    "similar": Similar,
    "bm25": BM25,
}
