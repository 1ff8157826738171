"""A compiled function over any number of rows of unequal length, in padded batches of few shapes."""

from collections.abc import Callable, Hashable, Mapping, Sequence
from functools import cache, partial
from typing import TypeAlias

import jax
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Int, PyTree

from t5x_lite.integers import ceil_div, next_power_of_two
from t5x_lite.parallel import mesh as meshes
from t5x_lite.progress import track_progress

Features: TypeAlias = Mapping[str, Int[np.ndarray, "_"]]
"""One row: arrays of one axis, by name."""

SHORTEST = 16
"""Length that shorter features are padded to."""


class BatchedFunction:
    """Applies `function(params, batch)` to rows, the longest first, and returns the results in the order of the rows.

    Features are padded with 0, to a power of two or to three quarters of one, so that few programs are compiled. The
    rows of a batch are sharded over the mesh.

    Args:
        function: from weights and features `[batch, length]` to arrays whose first axis is the batch.
        mesh: the mesh of the weights.
        batch_size: rows of a batch; rounded up to a power of two and to a multiple of the shards of the mesh. Fewer
            examples take a smaller batch.
    """

    def __init__(
        self,
        function: Callable[[PyTree[Array], dict[str, Array]], PyTree[Array]],
        mesh: Mesh,
        batch_size: int,
    ) -> None:
        self.mesh = mesh
        self.batch_size = batch_size
        self._compiled = jax.jit(function, out_shardings=meshes.replicated(mesh))

    def __call__(self, params: PyTree[Array], examples: Sequence[Features], verb: str) -> list[PyTree[np.ndarray]]:
        """Return the function's result for each example. `verb` labels the progress bar."""

        def longest_first(index: int) -> list[int]:
            return [-_padded_length(len(feature)) for feature in examples[index].values()]

        order = sorted(range(len(examples)), key=longest_first)
        size = self._size_of_batches(len(examples))
        results: list[PyTree[np.ndarray]] = [None] * len(examples)
        with jax.set_mesh(self.mesh), track_progress(verb) as advance:
            for start in range(0, len(order), size):
                indices = order[start : start + size]
                local_batch = self._pad([examples[index] for index in indices], size)
                batch = meshes.to_global(self.mesh, local_batch, size)
                outputs = jax.device_get(self._compiled(params, batch))
                for row, index in enumerate(indices):
                    results[index] = jax.tree.map(lambda array, row=row: array[row], outputs)
                advance("", start + len(indices), len(order))
        return results

    def _size_of_batches(self, examples: int) -> int:
        rows = next_power_of_two(min(self.batch_size, max(examples, 1)))
        shards = meshes.batch_shards(self.mesh)
        return shards * ceil_div(rows, shards)

    def _pad(self, examples: Sequence[Features], size: int) -> dict[str, Int[np.ndarray, "local_rows _"]]:
        """Return those rows of the padded batch that this process supplies."""
        local_rows = meshes.local_rows(self.mesh, size)
        batch = {}
        for name, first in examples[0].items():
            longest = max(len(example[name]) for example in examples)
            padded = np.zeros((size, _padded_length(longest)), first.dtype)
            for row, example in enumerate(examples):
                feature = example[name]
                padded[row, : len(feature)] = feature
            batch[name] = padded[local_rows]
        return batch


def compile_once(mesh: Mesh, batch_size: int, *first: Hashable) -> Callable[..., BatchedFunction]:
    """Return a function that batches others and keeps what is compiled.

    It maps `function` and `settings` to the `BatchedFunction` of `function(*first, *settings, params, batch)`.
    """

    @cache
    def batch_function(function: Callable[..., PyTree[Array]], *settings: Hashable) -> BatchedFunction:
        return BatchedFunction(partial(function, *first, *settings), mesh, batch_size)

    return batch_function


def _padded_length(length: int) -> int:
    """Round up to a power of two or to three quarters of one, from `SHORTEST` on."""
    power = max(next_power_of_two(max(length, 1)), SHORTEST)
    three_quarters = power * 3 // 4
    if power > SHORTEST and length <= three_quarters:
        return three_quarters
    return power
