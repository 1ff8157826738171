"""Tables between foreign weights and ours: which of their tensors holds which of our arrays, and in what layout.

A table is written in modules: `{"attn.q_proj": "attention.query"}` stands for the weight and, where we have one, the
bias. Ours stack layers and experts along leading axes and keep heads as axes of their own; theirs are flat, one tensor
a layer and expert.
"""

import math
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

import numpy as np

from t5x_lite.checkpoint import flat
from t5x_lite.errors import UserError
from t5x_lite.models.layers import Axes
from t5x_lite.models.transformer import Blueprint

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
    """One of our arrays, or of a stacked one the part of a layer, of an expert.

    `matrix` is its shape as a matrix, a table or a vector, which they hold transposed where `flipped`.
    """

    name: str
    index: tuple[int, ...]
    matrix: tuple[int, ...]
    flipped: bool

    @property
    def shape(self) -> tuple[int, ...]:
        """In their layout."""
        return self.matrix[::-1] if self.flipped else self.matrix

    def theirs(self, array: np.ndarray) -> np.ndarray:
        """What stands here of our array, in their layout."""
        part = array[self.index].reshape(self.matrix)
        return part.T if self.flipped else part


@dataclass(frozen=True)
class Entry:
    """One of their tensors and what of ours it holds, side by side along `axis`."""

    theirs: str
    places: tuple[Place, ...]
    axis: int

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the tensor."""
        shapes = [place.shape for place in self.places]
        return tuple(sum(s[n] for s in shapes) if n == self.axis else size for n, size in enumerate(shapes[0]))


class Table:
    """Every tensor of a model in a foreign format.

    Args:
        blueprint: the model.
        dialect: the foreign layout.
        modules: outside the layers.
        layers: of each stack.
        separator: between the parts of their names.
    """

    def __init__(
        self, blueprint: Blueprint, dialect: Dialect, modules: Modules, layers: Sequence[Layers], separator: str = "."
    ) -> None:
        self.axes: dict[str, Axes] = flat(blueprint.axes)
        self.dialect, self.separator = dialect, separator
        self.shapes = {name: tuple(leaf.shape) for name, leaf in flat(blueprint.shapes).items()}
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
                    places = tuple(self._place(f"{name}.{leaf}", index + expert) for name in names)
                    # Parts lie side by side along what they make.
                    axis = 1 if self.axes[held].inputs and not self.dialect.transposed else 0
                    yield Entry(f"{theirs}{module.format(*expert)}{self.separator}{foreign}", places, axis)

    def _place(self, name: str, index: tuple[int, ...]) -> Place:
        axes, shape = self.axes[name], self.shapes[name][len(index) :]
        if axes.inputs:
            shape = (math.prod(shape[: axes.inputs]), math.prod(shape[axes.inputs :]))
        elif not axes.table:
            shape = (math.prod(shape),)
        flipped = axes.inputs > 0 and self.dialect.transposed
        return Place(name, index, shape, flipped or name.rpartition(".")[2] in self.dialect.flipped)

    def expected(self) -> dict[str, tuple[int, ...]]:
        """The shape of each of their tensors."""
        return {entry.theirs: entry.shape for entry in self.entries}

    def to_theirs(self, entry: Entry, array_of: Callable[[str], np.ndarray]) -> np.ndarray:
        """One of their tensors from our arrays."""
        parts = [place.theirs(array_of(place.name)) for place in entry.places]
        return np.ascontiguousarray(np.concatenate(parts, entry.axis) if len(parts) > 1 else parts[0])

    def to_ours(self, name: str, tensor_of: Callable[[str], np.ndarray]) -> np.ndarray:
        """One of our arrays, float32, every layer of it, from their tensors, one in memory at a time."""
        array = np.empty(self.shapes[name], np.float32)
        for entry in self.entries:
            for number, place in enumerate(entry.places):
                if place.name == name:
                    borders = np.cumsum([beside.shape[entry.axis] for beside in entry.places])[:-1]
                    part = np.split(tensor_of(entry.theirs), borders, entry.axis)[number]
                    array[place.index] = (part.T if place.flipped else part).reshape(array[place.index].shape)
        return array


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
