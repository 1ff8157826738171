"""Tables between foreign weights and ours, and the map of every tensor that follows from them.

A table names modules: `{"attn.q_proj": "attention.query"}` stands for the module's weight and, where we have one, its
bias. Our arrays stack layers and experts along leading axes and keep heads as axes of their own. Foreign tensors are
flat, one for each layer and expert.
"""

import math
from collections.abc import Callable, Collection, Generator, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import TypeAlias

import numpy as np
from jaxtyping import Float, Shaped

from t5x_lite.errors import UserError
from t5x_lite.models.layers import WeightAxes
from t5x_lite.models.spec import ModelSpec
from t5x_lite.trees import flatten_names


@dataclass(frozen=True)
class Fused:
    """Modules of ours whose weights one foreign module stores side by side along the output axis.

    Attributes:
        modules: our modules.
        by_axis: the parts of each index of this logical axis are stored together: of a key head (`kv_heads`) its
            queries, its key and its value.
        axis_module: the module whose weight tells the size of that axis; null for one of `modules`.
    """

    modules: tuple[str, ...]
    by_axis: str | None = None
    axis_module: str | None = None


@dataclass(frozen=True)
class Stored:
    """Arrays of ours, by name, that one foreign tensor stores side by side along the last axis, as they are.

    The tensor has all experts. Its name is the key of the table, with no part for the leaf.

    Attributes:
        arrays: our arrays.
        interleaved: the first elements of all arrays come first, then the second ones, and so on.
        is_vector: the tensor is a vector, however many axes the one array has.
        last_axis_first: the last axis of the one array comes before the others in the tensor.
        unit_axes: number of axes of size 1 before those of the one array.
    """

    arrays: tuple[str, ...]
    interleaved: bool = False
    is_vector: bool = False
    last_axis_first: bool = False
    unit_axes: int = 0


Modules: TypeAlias = Mapping[str, str | Fused | Stored]
"""Foreign module names and ours. `{expert}` in a foreign name is the number of an expert."""


@dataclass(frozen=True)
class StackModules:
    """The modules of each layer of one of our stacks.

    Attributes:
        foreign: the foreign name of a layer. `{layer}` in it is the number of the layer whose weights these are,
            `{repeat}` that of the repeat of our layer pattern, and `{place}` that of the layer in the pattern.
        ours: the name of our stack of layers.
        modules: the modules inside a layer. `{layer}` in a foreign name stands for the same number.
    """

    foreign: str
    ours: str
    modules: Modules


@dataclass(frozen=True)
class WeightFormat:
    """Names and storage of the arrays of a module in a code base.

    Attributes:
        leaf_names: our names of arrays (`weight`, `bias`, …), and theirs.
        matrices_are_transposed: matrices are stored as [out, in]; ours are [in, out].
        transposed_leaves: our names of further arrays that are stored transposed.
        transposed_modules: foreign names of further modules whose matrices are stored as [out, in].
        separator: the string between the parts of a name.
    """

    leaf_names: Mapping[str, str]
    matrices_are_transposed: bool
    transposed_leaves: tuple[str, ...] = ()
    transposed_modules: tuple[str, ...] = ()
    separator: str = "."


TORCH_LEAF_NAMES = {"weight": "weight", "scale": "weight", "table": "weight", "bias": "bias"}
TORCH_FORMAT = WeightFormat(TORCH_LEAF_NAMES, matrices_are_transposed=True)
"""Modules of PyTorch: `torch.nn.Linear` stores its matrix as [out, in]."""


@dataclass(frozen=True)
class WeightTable:
    """The weights of a model type: the modules outside the layers, and those of each stack of layers."""

    modules: Modules
    stacks: tuple[StackModules, ...]
    weight_format: WeightFormat = TORCH_FORMAT


@dataclass(frozen=True)
class TensorMapping:
    """One foreign tensor, and the parts of our arrays that it stores side by side along the last axis.

    Attributes:
        tensor: the name of the foreign tensor.
        arrays: the names of our arrays.
        index: the leading indices of the part in each array: the repeat of the layer pattern, then the expert.
        part_shapes: the shape of each part as a matrix [in, out], a table [rows, width] or a vector [size].
        is_transposed: the foreign tensor is the transpose of the joined parts.
        groups: equal sections of the last axis, each of which has a section of every part.
        is_convolution: the foreign tensor has an axis of one input channel between the channels and the taps.
        axes: the shape of the foreign tensor, where it has other axes than the joined parts; None: it has not.
    """

    tensor: str
    arrays: tuple[str, ...]
    index: tuple[int, ...]
    part_shapes: tuple[tuple[int, ...], ...]
    is_transposed: bool
    groups: int = 1
    is_convolution: bool = False
    axes: tuple[int, ...] | None = None

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the foreign tensor."""
        if self.axes is not None:
            return self.axes
        return self._joined_shape()

    def _joined_shape(self) -> tuple[int, ...]:
        width = sum(shape[-1] for shape in self.part_shapes)
        joined_shape = (*self.part_shapes[0][:-1], width)
        if self.is_convolution:
            return width, 1, *joined_shape[:-1]
        return joined_shape[::-1] if self.is_transposed else joined_shape

    def to_foreign(self, read_array: Callable[[str], np.ndarray]) -> Shaped[np.ndarray, "..."]:
        """Return the foreign tensor. `read_array` returns one of our arrays by name."""
        parts = []
        for name, shape in zip(self.arrays, self.part_shapes, strict=True):
            part = read_array(name)[self.index]
            parts.append(part.reshape(*shape[:-1], self.groups, -1))
        joined = np.concatenate(parts, axis=-1)
        joined = joined.reshape(*joined.shape[:-2], -1)
        if self.is_convolution:
            return joined.T[:, None]
        return (joined.T if self.is_transposed else joined).reshape(self.shape)

    def select_part(self, array: str, tensor: Shaped[np.ndarray, "..."]) -> Shaped[np.ndarray, "..."]:
        """Return the part of the foreign tensor that belongs to one of our arrays."""
        if self.is_convolution:
            tensor = tensor[:, 0]
        else:
            tensor = tensor.reshape(self._joined_shape())
        joined = tensor.T if self.is_transposed else tensor
        sections = joined.reshape(*joined.shape[:-1], self.groups, -1)
        widths = [shape[-1] // self.groups for shape in self.part_shapes]
        parts = np.split(sections, np.cumsum(widths)[:-1], axis=-1)
        number = self.arrays.index(array)
        return parts[number].reshape(self.part_shapes[number])


def _number_layer(modules: Modules, layer: int) -> Modules:
    """Return the modules of a layer, with its number in their foreign names."""
    return {foreign.replace("{layer}", str(layer)): ours for foreign, ours in modules.items()}


TAPS = "taps"
"""The axis over the tokens that a convolution reads, the first of its filters' axes."""

MOST_TENSORS = 200_000
"""Tensors of the largest model. DeepSeek-V3 has a quarter of it: 58 layers with 257 experts of three matrices."""


class WeightMap:
    """Every tensor of one model in a foreign format.

    Args:
        spec: the model.
        table: the weights of its model type. Modules that the model lacks are left out.

    Raises:
        UserError: the table has no place for some of the model's arrays, the model lacks a stack of the table, or has
            more than `MOST_TENSORS` tensors.
    """

    def __init__(self, spec: ModelSpec, table: WeightTable) -> None:
        self.spec = spec
        self.weight_format = table.weight_format
        self.axes: dict[str, WeightAxes] = flatten_names(spec.axes)
        self.shapes: dict[str, tuple[int, ...]] = {}
        for name, array in flatten_names(spec.shapes).items():
            self.shapes[name] = tuple(array.shape)
        self.mappings: list[TensorMapping] = []
        for mapping in self._map_table(table):
            self.mappings.append(mapping)
            if len(self.mappings) > MOST_TENSORS:
                raise UserError(f"more than {MOST_TENSORS:,} tensors: no model has so many layers and experts")
        self._check_complete()

    def _map_table(self, table: WeightTable) -> Iterator[TensorMapping]:
        yield from self._map_modules(table.modules, "", "", ())
        for stack in table.stacks:
            yield from self._map_stack(stack)

    def _check_complete(self) -> None:
        mapped_arrays: set[str] = set()
        for mapping in self.mappings:
            mapped_arrays.update(mapping.arrays)
        unmapped_arrays = sorted(self.shapes.keys() - mapped_arrays)
        if unmapped_arrays:
            raise UserError(f"this format has no place for {', '.join(unmapped_arrays[:6])}")

    def _map_stack(self, stack: StackModules) -> Iterator[TensorMapping]:
        """Map the layers of a stack, whose arrays are stacked over the repeats of the layer pattern.

        The layers of `model.first` are a stack of their own before them.
        """
        first = stack.ours.replace(".layers", ".first.layers")
        first_layers = 0
        if any(name.startswith(f"{first}.") for name in self.shapes):
            first_layers = yield from self._map_repeats(replace(stack, ours=first), 0)
        yield from self._map_repeats(stack, first_layers)

    def _map_repeats(self, stack: StackModules, first_layer: int) -> Generator[TensorMapping, None, int]:
        """Map layers from the number `first_layer` on, and return how many there are."""
        places = set()
        repeats = 0
        for name, shape in self.shapes.items():
            if name.startswith(f"{stack.ours}."):
                places.add(name.removeprefix(f"{stack.ours}.").partition(".")[0])
                repeats = shape[0]
        if not places:
            raise UserError(f"the model has no {stack.ours}, which this format stores")
        period = len(places)
        for repeat in range(repeats):
            for place in range(period):
                layer = first_layer + repeat * period + place
                foreign_layer = stack.foreign.format(layer=layer, repeat=repeat, place=place)
                foreign_prefix = foreign_layer + self.weight_format.separator
                modules = _number_layer(stack.modules, layer)
                yield from self._map_modules(modules, foreign_prefix, f"{stack.ours}.{place}.", (repeat,))
        return repeats * period

    def _map_modules(
        self, modules: Modules, foreign_prefix: str, our_prefix: str, index: tuple[int, ...]
    ) -> Iterator[TensorMapping]:
        for foreign_module, our_module in modules.items():
            if isinstance(our_module, Stored):
                yield from self._map_stored(f"{foreign_prefix}{foreign_module}", our_module, our_prefix, index)
                continue
            parts = our_module.modules if isinstance(our_module, Fused) else (our_module,)
            for leaf, foreign_leaf in self.weight_format.leaf_names.items():
                arrays = tuple(f"{our_prefix}{part}.{leaf}" for part in parts)
                if not all(array in self.shapes for array in arrays):
                    continue
                for mapping in self._map_array(f"{foreign_prefix}{foreign_module}", leaf, foreign_leaf, arrays, index):
                    if isinstance(our_module, Fused) and our_module.by_axis is not None:
                        yield replace(mapping, groups=self._count_sections(our_module, our_prefix))
                    else:
                        yield mapping

    def _map_stored(
        self, tensor: str, stored: Stored, our_prefix: str, index: tuple[int, ...]
    ) -> Iterator[TensorMapping]:
        """Map arrays, if the model has them, to a tensor of the same axes."""
        arrays = tuple(f"{our_prefix}{name}" for name in stored.arrays)
        if arrays[0] in self.shapes:
            shapes = tuple(self.shapes[array][len(index) :] for array in arrays)
            if stored.is_vector:
                shapes = tuple((math.prod(shape),) for shape in shapes)
            axes = None
            if stored.last_axis_first:
                (shape,) = shapes
                axes = (shape[-1], *shape[:-1])
                shapes = ((math.prod(shape[:-1]), shape[-1]),)
            elif stored.unit_axes:
                axes = (*[1] * stored.unit_axes, *shapes[0])
            groups = shapes[0][-1] if stored.interleaved else 1
            is_transposed = stored.last_axis_first
            yield TensorMapping(tensor, arrays, index, shapes, is_transposed, groups=groups, axes=axes)

    def _map_array(
        self, foreign_module: str, leaf: str, foreign_leaf: str, arrays: tuple[str, ...], index: tuple[int, ...]
    ) -> Iterator[TensorMapping]:
        """Map fused arrays to one foreign tensor for each expert, or to a single one."""
        axes = self.axes[arrays[0]]
        is_matrix = axes.inputs > 0
        is_stored_transposed = (
            self.weight_format.matrices_are_transposed or foreign_module in self.weight_format.transposed_modules
        )
        is_transposed = is_matrix and is_stored_transposed
        is_convolution = axes.names[0] == TAPS
        is_transposed = is_transposed or is_convolution or leaf in self.weight_format.transposed_leaves
        depth = len(index) + axes.stacked
        part_shapes = tuple(self._part_shape(array, depth) for array in arrays)
        experts = self.shapes[arrays[0]][len(index) : depth]
        for expert in np.ndindex(experts):
            module = foreign_module
            if expert:
                module = module.format(expert=expert[0])
            tensor = f"{module}{self.weight_format.separator}{foreign_leaf}"
            yield TensorMapping(
                tensor, arrays, index + expert, part_shapes, is_transposed, is_convolution=is_convolution
            )

    def _count_sections(self, fused: Fused, our_prefix: str) -> int:
        """Return the size of the axis by which parts are stored together, from the first weight that has it."""
        modules = fused.modules
        if fused.axis_module is not None:
            modules = (fused.axis_module,)
        for module in modules:
            array = f"{our_prefix}{module}.weight"
            names = self.axes[array].names
            if fused.by_axis in names:
                return self.shapes[array][names.index(fused.by_axis) - len(names)]
        raise ValueError(f"no axis {fused.by_axis} in {', '.join(modules)}")

    def _part_shape(self, array: str, depth: int) -> tuple[int, ...]:
        """Return the shape of an array without its first `depth` axes, as a matrix, a table or a vector."""
        axes = self.axes[array]
        shape = self.shapes[array][depth:]
        if axes.inputs:
            return math.prod(shape[: axes.inputs]), math.prod(shape[axes.inputs :])
        if axes.is_table:
            return shape
        if axes.names[0] == TAPS:
            return shape[0], math.prod(shape[1:])
        return (math.prod(shape),)

    def check_tensors(self, place: str, shapes: Mapping[str, tuple[int, ...]], ignored: Collection[str] = ()) -> None:
        """Refuse stored tensors that do not fit the model.

        Args:
            place: where the tensors come from; the error begins with it.
            shapes: the shapes of the stored tensors by name.
            ignored: names of tensors that may be stored although the model has no use for them.

        Raises:
            UserError: all tensors that are missing, unexpected or of another shape, in one line.
        """
        expected = {mapping.tensor: mapping.shape for mapping in self.mappings}
        problems = []
        for name in sorted(expected.keys() - shapes.keys()):
            problems.append(f"missing {name} {list(expected[name])}")
        for name in sorted(shapes.keys() - expected.keys() - set(ignored)):
            problems.append(f"unexpected {name} {list(shapes[name])}")
        for name in sorted(expected.keys() & shapes.keys()):
            if shapes[name] != expected[name]:
                problems.append(f"{name} is {list(shapes[name])}, expected {list(expected[name])}")
        if problems:
            raise UserError(f"{place}: {len(problems)} tensors do not fit its config: {'; '.join(problems)}")

    def to_ours(self, array: str, read_tensor: Callable[[str], np.ndarray]) -> Float[np.ndarray, "..."]:
        """Return one of our arrays as float32, with all of its layers and experts.

        `read_tensor` returns a foreign tensor by name. It is called for one tensor at a time, so that no more than one
        is in memory beside the result.
        """
        values = np.empty(self.shapes[array], np.float32)
        for mapping in self.mappings:
            if array not in mapping.arrays:
                continue
            part = mapping.select_part(array, read_tensor(mapping.tensor))
            values[mapping.index] = part.reshape(values[mapping.index].shape)
        return values
