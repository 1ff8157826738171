"""Tables between foreign weights and ours: which of their tensors holds which of our arrays, and in what layout.

A table is written in modules: `{"attn.q_proj": "attention.query"}` stands for the weight and, where we have one, the
bias. Ours stack layers and experts along leading axes and keep heads as axes of their own; theirs are flat, one tensor
a layer and expert.
"""

import math
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np

from t5x_lite.errors import UserError
from t5x_lite.models.layers import Axes
from t5x_lite.models.transformer import ModelSpec
from t5x_lite.trees import flatten_names

Modules: TypeAlias = Mapping[str, str | tuple[str, ...]]
"""Their module to ours; to several of ours where theirs is them side by side."""


TORCH = {"weight": "weight", "scale": "weight", "table": "weight", "bias": "bias"}
"""Our leaf names to PyTorch's."""


@dataclass(frozen=True)
class Dialect:
    """How a code base names and lays out a module's arrays.

    `transposed` matrices are [out, in]. `leaves` maps our leaf names to theirs, of which those in `flipped` are
    transposed too. `separator` stands between the parts of a name.
    """

    transposed: bool
    leaves: Mapping[str, str]
    flipped: tuple[str, ...] = ()
    separator: str = "."


@dataclass(frozen=True)
class Layers:
    """The layers of one of our stacks: `{}` in `theirs` is the layer's number, in a module's name the expert's."""

    theirs: str
    ours: str
    modules: Modules


@dataclass(frozen=True)
class Entry:
    """One of their tensors: what stands at `index` of our arrays `names`, side by side along the last axis.

    `matrices` are the shapes of these parts, each a matrix [in, out], a table or a vector; they hold the whole
    transposed where `flipped`.
    """

    theirs: str
    names: tuple[str, ...]
    index: tuple[int, ...]
    matrices: tuple[tuple[int, ...], ...]
    flipped: bool

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the tensor."""
        whole = (*self.matrices[0][:-1], sum(matrix[-1] for matrix in self.matrices))
        return whole[::-1] if self.flipped else whole

    def tensor(self, array_of: Callable[[str], np.ndarray]) -> np.ndarray:
        """The tensor, from our arrays."""
        arrays = (array_of(name)[self.index] for name in self.names)
        whole = np.concatenate([x.reshape(m) for x, m in zip(arrays, self.matrices, strict=True)], axis=-1)
        return whole.T if self.flipped else whole

    def part(self, name: str, tensor: np.ndarray) -> np.ndarray:
        """What the tensor holds of one of our arrays."""
        borders = np.cumsum([matrix[-1] for matrix in self.matrices])[:-1]
        return np.split(tensor.T if self.flipped else tensor, borders, axis=-1)[self.names.index(name)]


class Table:
    """Every tensor of a model in a foreign format.

    Args:
        blueprint: the model.
        dialect: the foreign layout.
        modules: outside the layers.
        layers: of each stack.
    """

    def __init__(self, blueprint: ModelSpec, dialect: Dialect, modules: Modules, layers: Sequence[Layers]) -> None:
        self.blueprint, self.dialect = blueprint, dialect
        self.axes: dict[str, Axes] = flatten_names(blueprint.axes)
        self.shapes = {name: tuple(leaf.shape) for name, leaf in flatten_names(blueprint.shapes).items()}
        self.entries = list(self._entries(modules, "", "", ()))
        for stack in layers:
            self.entries += self._layers(stack)
        held = {name for entry in self.entries for name in entry.names}
        left = sorted(self.shapes.keys() - held)
        if left:
            raise UserError(f"this format has no place for {', '.join(left[:6])}")

    def _layers(self, stack: Layers) -> Iterator[Entry]:
        # Every layer of the pattern has one.
        norms = [n for n in self.shapes if n.startswith(f"{stack.ours}.") and n.endswith(".attention_norm.scale")]
        for repeat, number in np.ndindex(self.shapes[norms[0]][0], len(norms)):
            theirs = stack.theirs.format(repeat * len(norms) + number) + self.dialect.separator
            yield from self._entries(stack.modules, theirs, f"{stack.ours}.{number}.", (repeat,))

    def _entries(self, modules: Modules, theirs: str, ours: str, index: tuple[int, ...]) -> Iterator[Entry]:
        for module, own in modules.items():
            names = [ours + name for name in ((own,) if isinstance(own, str) else own)]
            for leaf, foreign in self.dialect.leaves.items():
                held = f"{names[0]}.{leaf}"
                if held not in self.shapes:
                    continue
                axes, depth = self.axes[held], len(index) + self.axes[held].stacked
                flipped = (axes.inputs > 0 and self.dialect.transposed) or leaf in self.dialect.flipped
                arrays = tuple(f"{name}.{leaf}" for name in names)
                matrices = tuple(self._matrix(name, depth) for name in arrays)
                for expert in np.ndindex(self.shapes[held][len(index) : depth]):
                    tensor = f"{theirs}{module.format(*expert)}{self.dialect.separator}{foreign}"
                    yield Entry(tensor, arrays, index + expert, matrices, flipped)

    def _matrix(self, name: str, depth: int) -> tuple[int, ...]:
        """The shape of one of our arrays, without its first `depth` axes, as a matrix, a table or a vector."""
        axes, shape = self.axes[name], self.shapes[name][depth:]
        if axes.inputs:
            return math.prod(shape[: axes.inputs]), math.prod(shape[axes.inputs :])
        return shape if axes.table else (math.prod(shape),)

    def check(self, where: str, found: Mapping[str, Collection[int]], ignored: Collection[str] = ()) -> None:
        """Refuse shapes of their tensors: of such as are missing, unexpected and not `ignored`, or different.

        Raises:
            UserError: all of them, in one line.
        """
        expected = {entry.theirs: entry.shape for entry in self.entries}
        faults = [f"missing {name} {list(expected[name])}" for name in sorted(expected.keys() - found.keys())]
        unexpected = found.keys() - expected.keys() - set(ignored)
        faults += [f"unexpected {name} {list(found[name])}" for name in sorted(unexpected)]
        faults += [
            f"{name} is {list(found[name])}, expected {list(expected[name])}"
            for name in sorted(expected.keys() & found.keys())
            if tuple(found[name]) != expected[name]
        ]
        if faults:
            raise UserError(f"{where}: {len(faults)} tensors do not fit its config: {'; '.join(faults)}")

    def to_ours(self, name: str, tensor_of: Callable[[str], np.ndarray]) -> np.ndarray:
        """One of our arrays, float32, every layer of it, from their tensors, one in memory at a time."""
        array = np.empty(self.shapes[name], np.float32)
        for entry in self.entries:
            if name in entry.names:
                array[entry.index] = entry.part(name, tensor_of(entry.theirs)).reshape(array[entry.index].shape)
        return array
