"""Split the parameters of a model into those that train and those that are frozen, and join them again."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

from t5x_lite.adapt.method import AdaptationMethod
from t5x_lite.arrays import Array
from t5x_lite.models.config import ModelConfig
from t5x_lite.trees import flatten_names, unflatten_names

NestedDict: TypeAlias = Mapping[str, Any]
"""Parameters, or something for each of them, as nested dicts. jaxtyping's `PyTree` would import JAX."""


@dataclass(frozen=True)
class TrainableSplit:
    """A split of parameters. Trees are nested dicts; where everything trains, the frozen tree is empty.

    Attributes:
        first_trained_repeat: maps the dotted name of each parameter to the first repeat of its stack that trains;
            None: all of it is frozen.
    """

    first_trained_repeat: Mapping[str, int | None]

    @classmethod
    def of(cls, method: AdaptationMethod, model: ModelConfig, names: Sequence[str]) -> "TrainableSplit":
        """Return the split of an adaptation method."""
        first: dict[str, int | None] = {}
        for name in names:
            if name.startswith("head."):
                first[name] = 0
            else:
                first[name] = method.first_trained_repeat(name, model)
        return cls(first)

    @property
    def trains_everything(self) -> bool:
        """Nothing is frozen."""
        return all(first == 0 for first in self.first_trained_repeat.values())

    def trained(self, tree: NestedDict) -> NestedDict:
        """Return the arrays of a tree that train, or of an array the repeats that do."""

        def select(value: Array, first: int | None) -> Array | None:
            if first is None:
                return None
            return value[first:] if first else value

        return self._select(tree, select)

    def frozen(self, tree: NestedDict) -> NestedDict:
        """Return the arrays of a tree that are frozen, or of an array the repeats that are."""

        def select(value: Array, first: int | None) -> Array | None:
            if first is None:
                return value
            return value[:first] if first else None

        return self._select(tree, select)

    def trained_leaves(self, tree: NestedDict) -> NestedDict:
        """Return the leaves that belong to trained parameters, of a tree whose leaves are not arrays, such as axes."""

        def select(value: object, first: int | None) -> object:
            if first is None:
                return None
            return value

        return self._select(tree, select)

    def join(self, trained: NestedDict, frozen: NestedDict) -> NestedDict:
        """Return the whole tree. An array of which only the last repeats train is joined from both trees."""
        import jax.numpy as jnp

        if self.trains_everything:
            return trained
        frozen_leaves = flatten_names(frozen)
        trained_leaves = flatten_names(trained)
        leaves = {}
        for name in self.first_trained_repeat:
            pieces = [side[name] for side in (frozen_leaves, trained_leaves) if name in side]
            leaves[name] = pieces[0] if len(pieces) == 1 else jnp.concatenate(pieces)
        return unflatten_names(leaves)

    def _select(self, tree: NestedDict, select: Callable[[Any, int | None], Any]) -> NestedDict:
        leaves = flatten_names(tree)
        selected = {}
        for name, first in self.first_trained_repeat.items():
            value = select(leaves[name], first)
            if value is not None:
                selected[name] = value
        return unflatten_names(selected)
