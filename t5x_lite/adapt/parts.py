"""Which parameters train, and which stay as they were: one model's weights as two trees, and together again."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from t5x_lite.adapt.method import Method
from t5x_lite.models.config import ModelConfig
from t5x_lite.trees import flatten_names, unflatten_names


@dataclass(frozen=True)
class TrainableSplit:
    """`first` says of each parameter, by its dotted name, from which repeat of a stack on it trains; None: not at all.

    Trees are nested dicts. Where everything trains, the frozen tree is empty.
    """

    first: Mapping[str, int | None]

    @classmethod
    def of(cls, method: Method, model: ModelConfig, names: list[str]) -> "TrainableSplit":
        """What a method trains."""

        def begin(name: str) -> int | None:
            trains = True if name.startswith("head.") else method.trains(name, model)
            return 0 if trains is True else None if trains is False else trains

        return cls({name: begin(name) for name in names})

    @property
    def everything(self) -> bool:
        """Whether nothing is frozen."""
        return all(first == 0 for first in self.first.values())

    def trained(self, tree: Any) -> Any:
        """What trains of a tree of arrays (or, whole, of whatever else has their names)."""
        return self._picked(tree, lambda value, first: None if first is None else value if not first else value[first:])

    def frozen(self, tree: Any) -> Any:
        """What does not."""
        return self._picked(tree, lambda value, first: value if first is None else value[:first] if first else None)

    def names_trained(self, tree: Any) -> Any:
        """As `trained`, of a tree whose leaves have no repeats, such as axes."""
        return self._picked(tree, lambda value, first: None if first is None else value)

    def together(self, trained: Any, frozen: Any, concatenate: Callable[[list[Any]], Any]) -> Any:
        """The whole tree; `concatenate` joins the two ends of an array of which only the last repeats train."""
        if self.everything:
            return trained
        sides = flatten_names(frozen), flatten_names(trained)

        def value(name: str) -> Any:
            held = [side[name] for side in sides if name in side]
            return concatenate(held) if len(held) > 1 else held[0]

        return unflatten_names({name: value(name) for name in self.first})

    def _picked(self, tree: Any, pick: Callable[[Any, int | None], Any]) -> Any:
        values = flatten_names(tree)
        found = {name: pick(values[name], first) for name, first in self.first.items()}
        return unflatten_names({name: value for name, value in found.items() if value is not None})
