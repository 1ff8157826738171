"""The interface of an adaptation method: what it adds to a model, what of it trains, and the first weights.

A method is one file: a class of this kind with its settings, the parameters that it adds and their arithmetic, and an
entry in `ADAPTATIONS`. It imports JAX inside its methods, so that a config is checked before JAX starts.
"""

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, TypeAlias

from jaxtyping import Float, Int

from t5x_lite.arrays import Array
from t5x_lite.models.config import ModelConfig
from t5x_lite.schema import Config

if TYPE_CHECKING:
    from t5x_lite.models.layers import SortedRows, WeightAxes
    from t5x_lite.models.surgery import Adapter, Surgeon

NamedArrays: TypeAlias = Mapping[str, Array]
"""Arrays by dotted name; those of a stack's layers have a leading axis over the repeats of its pattern."""
WriteOutput: TypeAlias = Callable[[Array], Array]
"""Maps the output of a sublayer to the states after it, both `[batch, length, embed]`."""
ADDED_PARTS = (".adapter.", ".adapters.", ".prefix.", ".prompt.", ".mix.")
"""Parts of the names of parameters that surgery adds."""


def is_added_parameter(name: str) -> bool:
    """Return whether surgery has added a parameter."""
    return any(part in name for part in ADDED_PARTS)


@dataclass(frozen=True)
class ModelPair:
    """The model that is adapted, and the model that it becomes."""

    old: ModelConfig
    new: ModelConfig


class AdaptationMethod(Config):
    """A way from the weights of one model to those of another."""

    freezes_base: ClassVar[bool] = False
    """Nothing of the old model trains."""
    trains_head_alone: ClassVar[bool] = False
    """Nothing but the head of a task, and what mixes the states that it reads, trains."""
    copies_base: ClassVar[bool] = False
    """A copy of the first weights stays in memory, for nothing but losses that compare with the first model."""
    rewinds: ClassVar[bool] = False
    """The run begins with an early state of the other one, and not with weights of its last checkpoint."""
    changed_settings: ClassVar[tuple[str, ...]] = ()
    """Settings of the model in which the new one may differ, although arrays depend on them."""

    @property
    def keeps_base(self) -> bool:
        """Return whether the first weights stay in memory, so that losses can compare with the first model."""
        return self.copies_base or (self.freezes_base and not self.num_virtual_tokens)

    @property
    def num_virtual_tokens(self) -> int:
        """Return the number of virtual tokens, of ids -1, -2, …, before each input."""
        return 0

    @property
    def sources(self) -> tuple[str, ...]:
        """Return run directories, beside the one that is adapted, whose weights are used too."""
        return ()

    def with_sources(self, sources: tuple[str, ...]) -> "AdaptationMethod":
        """Return the method with other names for its `sources`."""
        return self

    def check_source(self, method: "AdaptationMethod") -> None:
        """Raise ValueError for one of the `sources` that another method, or one of other settings, has trained."""

    def check(self, model: ModelConfig) -> None:
        """Raise ValueError for a model that cannot be created this way."""

    def check_models(self, models: ModelPair) -> None:
        """Raise ValueError for a new model that would not begin as the old one, though their weights fit."""

    def check_stages(self, pipeline: int) -> None:
        """Raise ValueError for a number of stages (`mesh.pipeline`) that the layers cannot run in."""

    def surgery(self, surgeon: "Surgeon") -> None:
        """Add modules to a model. A method that adds nothing leaves this out."""

    def first_trained_repeat(self, name: str, model: ModelConfig) -> int | None:
        """Return from which repeat of a stack on a parameter trains: 0 if all of it does, None if it is frozen.

        A head always trains.
        """
        if self.freezes_base and not is_added_parameter(name):
            return None
        return 0

    def learning_rate_factor(self, name: str, model: ModelConfig, progress: Array) -> Array | None:
        """Return a factor on the learning rate of a parameter at a share `progress` of the run.

        It is one number, or one for each repeat; at 0 the parameter does not train. None, for every parameter, is 1
        throughout and costs nothing.
        """
        return None

    def penalty(self, weights: NamedArrays) -> Array | None:
        """Return what is added to the training loss for the model's weights; None adds nothing."""
        return None

    def prunes(self, name: str, axes: "WeightAxes") -> bool:
        """Return whether the state has a mask for a parameter, which says what of it stays zero."""
        return False

    def initial_weights(self, old: NamedArrays, fresh: NamedArrays, models: ModelPair) -> dict[str, Array]:
        """Return the first weights of the new model, by the names of `fresh`, which are newly drawn.

        A name that the method has no weight for is left out. The default is the old weights, and fresh ones for what is
        new: a head, and what surgery has added.
        """
        weights = {name: old[name] for name in fresh if name in old}
        scores = "head.scores.weight"
        if scores in fresh and (scores not in old or fresh[scores].shape != old[scores].shape):
            for name in fresh:
                if name.startswith("head."):
                    weights[name] = fresh[name]
        for name in fresh:
            if name.startswith("head.pooler.") and name not in old:
                sentence_pooler = name.replace("head.", "sentence.")
                if sentence_pooler in old:
                    weights[name] = old[sentence_pooler]
        for name, value in fresh.items():
            if name not in weights and is_added_parameter(name):
                weights[name] = value
        return weights

    def merged_weights(self, weights: NamedArrays) -> dict[str, Array] | None:
        """Return the weights of a plain model that computes the same; None where there is none."""
        if any(is_added_parameter(name) for name in weights):
            return None
        return dict(weights)

    def adapt_linear(
        self,
        adapter: "Adapter",
        product: "Callable[[Array, SortedRows | None], Array]",
        x: Float[Array, "..."],
        sorted_rows: "SortedRows | None",
    ) -> Float[Array, "..."]:
        """Return the output of a linear map; `product` is the map without its adapter."""
        raise TypeError(f"{type(self).__name__} does not adapt linear maps")

    def adapt_sublayer(self, adapter: "Adapter", y: Float[Array, "b l d"], write: WriteOutput) -> Float[Array, "b l d"]:
        """Return the states after a sublayer.

        Args:
            adapter: the added parameters.
            y: the output of the sublayer.
            write: maps an output to the states after it: it adds the residual, and after a norm of the sum applies it.
        """
        raise TypeError(f"{type(self).__name__} does not adapt sublayers")

    def adapt_keys_values(
        self,
        adapter: "Adapter",
        key: Float[Array, "b m n k"],
        value: Float[Array, "b m n k"],
        positions: Int[Array, "b m"],
    ) -> tuple[Float[Array, "b m n k"], Float[Array, "b m n k"]]:
        """Return keys and values of attention."""
        raise TypeError(f"{type(self).__name__} does not adapt keys and values")

    def adapt_embedding(
        self, adapter: "Adapter", x: Float[Array, "b l d"], tokens: Int[Array, "b l"]
    ) -> Float[Array, "b l d"]:
        """Return token vectors."""
        raise TypeError(f"{type(self).__name__} does not adapt the embedding")


def pattern_problems(name: str, pattern: str) -> Iterator[str]:
    """Yield why the setting of this name is not a regular expression."""
    try:
        re.compile(pattern)
    except re.error as error:
        yield f"{name} {pattern!r} is not a regular expression: {error}"


def without_added(weights: NamedArrays) -> dict[str, Array]:
    """Return the weights that surgery has not added."""
    return {name: value for name, value in weights.items() if not is_added_parameter(name)}
