"""The interface of an adaptation method: what is added to a model, what of it trains, and from which weights.

No JAX here: a method describes, and the arrays that it is given do the work.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from t5x_lite.models.config import ModelConfig
from t5x_lite.schema import Config

if TYPE_CHECKING:
    from t5x_lite.models.adapters import Surgeon
else:
    Surgeon = Any
    """What can be done to a model: `models.adapters.Surgeon`."""

NamedArrays = Mapping[str, Any]
"""Arrays by dotted name; those of a stack's layers have a leading axis over the repeats of its pattern."""


@dataclass(frozen=True)
class ModelPair:
    """The model that is adapted, and the one that it becomes."""

    old: ModelConfig
    new: ModelConfig


class Method(Config):
    """A way from one model to another. Its fields are its settings.

    `placeholders`: soft tokens that begin every input. `sources`: further runs whose weights it takes. `light`: of the
    old model nothing trains.
    """

    light: ClassVar[bool] = False

    @property
    def placeholders(self) -> int:
        """Tokens with the ids -1, -2, … before each input."""
        return 0

    @property
    def sources(self) -> tuple[str, ...]:
        """Run directories beside the one that is adapted."""
        return ()

    def check(self, model: ModelConfig) -> None:
        """Refuse a model that cannot be made this way, with a ValueError that says why."""

    def surgery(self, surgeon: Surgeon) -> None:
        """What is added to the model. A method that adds nothing leaves this out."""

    def trains(self, name: str, model: ModelConfig) -> bool | int:
        """Whether a parameter trains; of one stacked over layers, or from which repeat on. A head always does."""
        return is_added_parameter(name) or not self.light

    def rates(self, name: str, model: ModelConfig, progress: Any) -> Any:
        """Factor on the learning rate of a parameter at a share `progress` of the run; one a repeat, or one; 0 is off.

        None is 1 throughout, and costs nothing.
        """
        return None

    def weights(self, old: NamedArrays, fresh: NamedArrays, models: ModelPair, xp: Any) -> dict[str, Any]:
        """The first weights of the new model, by the names of `fresh`, which are newly drawn; `xp` is `jax.numpy`.

        A name that the method cannot make is left out. Here: the old ones, and fresh ones for what is new: a head, and
        what surgery has added.
        """
        made = {name: old[name] for name in fresh if name in old}
        scores = "head.scores.weight"
        if scores in fresh and (scores not in old or fresh[scores].shape != old[scores].shape):
            made |= {name: fresh[name] for name in fresh if name.startswith("head.")}
        pooled = {name.replace("head.", "sentence."): name for name in fresh if name.startswith("head.pooler.")}
        made |= {name: old[source] for source, name in pooled.items() if source in old and name not in old}
        return made | {name: value for name, value in fresh.items() if name not in made and is_added_parameter(name)}

    def merged(self, weights: NamedArrays, xp: Any) -> dict[str, Any] | None:
        """The weights of a plain model that computes the same; None where there is none."""
        return dict(weights) if not any(is_added_parameter(name) for name in weights) else None


ADDED = (".adapter.", ".adapters.", ".prefix.", ".prompt.")
"""In the names of what surgery adds."""


def is_added_parameter(name: str) -> bool:
    """Whether surgery has added a parameter."""
    return any(part in name for part in ADDED)
