"""Tables between foreign weights and ours: which of their tensors holds which of our arrays, and in what layout.

A table is written in modules: `{"attn.q_proj": "attention.query"}` stands for the weight and, where we have one, the
bias. Ours stack layers and experts along leading axes and keep heads as axes of their own; theirs are flat, one tensor
a layer and expert.
"""

import math
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import numpy as np

from t5x_lite.errors import UserError
from t5x_lite.models.layers import Axes

Modules: TypeAlias = Mapping[str, str | tuple[str, ...]]
"""Their module to ours; to several of ours where theirs is them side by side."""


@dataclass(frozen=True)
class Dialect:
    """How a code base names and lays out a module's arrays.

    `transposed` matrices are [out, in]. `leaves` maps our leaf names to theirs.
    """

    transposed: bool
    leaves: Mapping[str, str] = field(
        default_factory=lambda: {"weight": "weight", "scale": "weight", "table": "weight", "bias": "bias"}
    )
    flipped: tuple[str, ...] = ()


@dataclass(frozen=True)
class Layers:
    """The layers of one of our stacks: `{}` in `theirs` is the layer's number, in a module's name the expert's."""

    theirs: str
    ours: str
    modules: Modules


@dataclass(frozen=True)
class Place:
    """One of our arrays, or of a stacked one the part of a layer, of an expert."""

    name: str
    index: tuple[int, ...]


@dataclass(frozen=True)
class Entry:
    """One of their tensors and what of ours it holds."""

    theirs: str
    places: tuple[Place, ...]


class Table:
    """Every tensor of a model in a foreign format.

    Args:
        axes: our arrays' `Axes` by dotted name.
        shapes: their shapes, likewise.
        dialect: the foreign layout.
        modules: outside the layers.
        layers: of each stack.
        separator: between the parts of their names.
    """

    def __init__(
        self,
        axes: Mapping[str, Axes],
        shapes: Mapping[str, Any],
        dialect: Dialect,
        modules: Modules,
        layers: Sequence[Layers],
        separator: str = ".",
    ) -> None:
        self.axes, self.dialect, self.separator = axes, dialect, separator
        self.shapes = {name: tuple(leaf.shape) for name, leaf in shapes.items()}
        self.entries = list(self._entries(modules, "", "", ()))
        for stack in layers:
            self.entries += self._layers(stack)
        held = {place.name for entry in self.entries for place in entry.places}
        left = sorted(self.shapes.keys() - held)
        if left:
            raise UserError(f"this format has no place for {', '.join(left[:6])}")

    def _layers(self, stack: Layers) -> Iterator[Entry]:
        own = [name for name in self.shapes if name.startswith(stack.ours + ".")]
        period = len({name[len(stack.ours) + 1 :].split(".")[0] for name in own})
        first = next(name for name in own if name.endswith("attention_norm.scale"))
        for repeat in range(self.shapes[first][0]):
            for number in range(period):
                theirs, ours = stack.theirs.format(repeat * period + number), f"{stack.ours}.{number}"
                yield from self._entries(stack.modules, theirs + self.separator, ours + ".", (repeat,))

    def _entries(self, modules: Modules, theirs: str, ours: str, index: tuple[int, ...]) -> Iterator[Entry]:
        for module, own in modules.items():
            names = [ours + name for name in ((own,) if isinstance(own, str) else own)]
            for leaf, foreign in self.dialect.leaves.items():
                held = f"{names[0]}.{leaf}"
                if held not in self.shapes:
                    continue
                stacked = self.shapes[held][len(index) :][: self.axes[held].stacked]
                for expert in np.ndindex(stacked):
                    places = tuple(Place(f"{name}.{leaf}", index + expert) for name in names)
                    yield Entry(f"{theirs}{module.format(*expert)}{self.separator}{foreign}", places)

    def expected(self) -> dict[str, tuple[int, ...]]:
        """The shape of each of their tensors."""
        return {entry.theirs: self._joined_shape(entry) for entry in self.entries}

    def _joined_shape(self, entry: Entry) -> tuple[int, ...]:
        shapes = [self._matrix_shape(place) for place in entry.places]
        axis = self._joined_axis(entry)
        return tuple(sum(s[n] for s in shapes) if n == axis else size for n, size in enumerate(shapes[0]))

    def _joined_axis(self, entry: Entry) -> int:
        """Parts lie side by side along what they make."""
        inputs = self.axes[entry.places[0].name].inputs
        return 1 if inputs and not self.dialect.transposed else 0

    def _own_shape(self, place: Place) -> tuple[int, ...]:
        return self.shapes[place.name][len(place.index) :]

    def _is_flipped(self, place: Place) -> bool:
        inputs = self.axes[place.name].inputs
        return (inputs > 0 and self.dialect.transposed) or place.name.rpartition(".")[2] in self.dialect.flipped

    def _matrix_shape(self, place: Place) -> tuple[int, ...]:
        """Shape in their layout: a matrix, a table, or a vector."""
        axes, shape = self.axes[place.name], self._own_shape(place)
        if axes.inputs:
            shape = (math.prod(shape[: axes.inputs]), math.prod(shape[axes.inputs :]))
        elif not axes.table:
            shape = (math.prod(shape),)
        return shape[::-1] if self._is_flipped(place) else shape

    def to_theirs(self, entry: Entry, array_of: Callable[[str], np.ndarray]) -> np.ndarray:
        """One of their tensors from our arrays."""
        parts = []
        for place in entry.places:
            own = array_of(place.name)[place.index]
            shape = self._matrix_shape(place)
            parts.append(own.reshape(shape[::-1]).T if self._is_flipped(place) else own.reshape(shape))
        return np.ascontiguousarray(np.concatenate(parts, self._joined_axis(entry)) if len(parts) > 1 else parts[0])

    def to_ours(self, name: str, tensor_of: Callable[[str], np.ndarray]) -> np.ndarray:
        """One of our arrays, float32, every layer of it, from their tensors, one in memory at a time."""
        array = np.empty(self.shapes[name], np.float32)
        for entry in self.entries:
            for number, place in enumerate(entry.places):
                if place.name == name:
                    part = self._part(entry, number, tensor_of(entry.theirs))
                    part = part.T if self._is_flipped(place) else part
                    array[place.index] = part.reshape(self._own_shape(place))
        return array

    def _part(self, entry: Entry, number: int, tensor: np.ndarray) -> np.ndarray:
        axis = self._joined_axis(entry)
        sizes = [self._matrix_shape(place)[axis] for place in entry.places]
        start = sum(sizes[:number])
        return np.take(tensor, range(start, start + sizes[number]), axis) if len(sizes) > 1 else tensor


def compare(where: str, expected: Mapping[str, tuple[int, ...]], found: Mapping[str, Collection[int]]) -> None:
    """Refuse tensors that are missing, unexpected or of another shape.

    Raises:
        UserError: all of them, in one line.
    """
    faults = [f"missing {name} {list(expected[name])}" for name in sorted(expected.keys() - found.keys())]
    faults += [f"unexpected {name} {list(found[name])}" for name in sorted(found.keys() - expected.keys())]
    faults += [
        f"{name} is {list(found[name])}, expected {list(expected[name])}"
        for name in sorted(expected.keys() & found.keys())
        if tuple(found[name]) != expected[name]
    ]
    if faults:
        raise UserError(f"{where}: {len(faults)} tensors do not fit its config: {'; '.join(faults)}")
