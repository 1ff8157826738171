"""What a model learns to predict. One file an objective, one entry here."""

from t5x_lite.objectives.causal import Causal
from t5x_lite.objectives.objective import Features, Objective

OBJECTIVES: dict[str, type[Objective]] = {"causal": Causal}

__all__ = ["OBJECTIVES", "Causal", "Features", "Objective"]
