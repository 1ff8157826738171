"""Go on with all weights of a run."""

from typing import Any

from t5x_lite.adapt.method import Method, Models, Weights


class Full(Method):
    """Every weight is taken as it is and trained."""

    def weights(self, old: Weights, fresh: Weights, models: Models, xp: Any) -> dict[str, Any]:
        """The old ones."""
        return {name: old[name] for name in fresh if name in old}
