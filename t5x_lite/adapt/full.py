"""Go on with all weights of a run (fine-tuning)."""

from t5x_lite.adapt.method import Method


class Full(Method):
    """Every weight is taken as it is and trained."""
