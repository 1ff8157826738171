"""Rows of unequal length through a compiled function on the mesh: the longest first, in few shapes."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from t5x_lite.parallel import mesh as meshes
from t5x_lite.progress import track_progress

Features = Mapping[str, np.ndarray]
"""Of one row: arrays of one axis, by name."""


class BatchedFunction:
    """`function(params, batch)` over any number of rows.

    A batch holds `rows` of them, or fewer where there are not so many, always a power of two that divides over the
    mesh. Features are padded with zeros, to lengths of which there are two in an octave, so that few programs are
    compiled; every device computes its rows of the batch.
    """

    def __init__(self, function: Callable[[Any, Any], Any], params: Any, mesh: Mesh, rows: int) -> None:
        self.params, self.mesh, self.rows = params, mesh, rows
        self._compiled = jax.jit(function, out_shardings=meshes.replicated(mesh))

    def __call__(self, examples: Sequence[Features], verb: str) -> list[Any]:
        """Of each example, its row of what the function gives; a bar says `verb`."""
        order = sorted(range(len(examples)), key=lambda n: [-_rounded(len(x)) for x in examples[n].values()])
        shards = meshes.batch_shards(self.mesh)
        size = shards * -(-next_power_of_two(min(self.rows, max(len(examples), 1))) // shards)
        found: list[Any] = [None] * len(examples)
        with jax.set_mesh(self.mesh), track_progress(verb) as advance:
            for start in range(0, len(order), size):
                chosen = order[start : start + size]
                batch = meshes.to_global(self.mesh, self._stacked([examples[n] for n in chosen], size), size)
                rows = jax.device_get(self._compiled(self.params, batch))
                for place, n in enumerate(chosen):
                    found[n] = jax.tree.map(lambda x, place=place: x[place], rows)
                advance("", min(start + size, len(order)), len(order))
        return found

    def _stacked(self, examples: Sequence[Features], size: int) -> dict[str, np.ndarray]:
        """The rows that this process holds of the padded batch."""
        own = meshes.local_rows(self.mesh, size)
        batch = {}
        for name, first in examples[0].items():
            longest = max(len(example[name]) for example in examples)
            whole = np.zeros((size, _rounded(longest)), first.dtype)
            for row, example in zip(whole, examples, strict=False):
                row[: len(example[name])] = example[name]
            batch[name] = whole[own]
        return batch


def next_power_of_two(number: int) -> int:
    """The next one."""
    return 1 << (number - 1).bit_length()


def _rounded(length: int) -> int:
    """The next power of two, or three quarters of it, from 16 on."""
    above = max(next_power_of_two(max(length, 1)), 16)
    return above * 3 // 4 if above > 16 and length <= above * 3 // 4 else above
