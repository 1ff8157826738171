"""Go on with all weights of a run (fine-tuning)."""

from t5x_lite.adapt.method import AdaptationMethod


class Full(AdaptationMethod):
    """All weights train."""
