"""Exact search: the passages with the highest inner products, over an index that is sharded over the mesh."""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Float, Int

from t5x_lite.integers import ceil_div
from t5x_lite.models.sharding import MESH_AXES

QUERIES_AT_ONCE = 64
"""Queries whose scores of all rows of a device are in memory at the same time."""
ROWS = PartitionSpec(MESH_AXES)
"""Rows are split over all axes of the mesh."""


class Hits(NamedTuple):
    """The nearest passages of each query, best first: their scores and their numbers."""

    scores: Float[np.ndarray, "queries k"]
    numbers: Int[np.ndarray, "queries k"]


class Search(Protocol):
    """A search over the vectors of an index."""

    def __call__(self, queries: Float[np.ndarray, "queries d"], k: int) -> Hits:
        """Return the `k` passages with the highest inner products for each query."""


class ExactSearch:
    """Compares each query with every vector. Of equal scores the passage of the lower number is first.

    Args:
        read_vectors: returns the vectors of rows `[start, stop)`, float32.
        shape: number of vectors, and their width.
        mesh: the devices, each of which holds an equal part of the rows.
    """

    def __init__(
        self, read_vectors: Callable[[int, int], Float[np.ndarray, "rows d"]], shape: tuple[int, int], mesh: Mesh
    ) -> None:
        self.rows, width = shape
        self.mesh = mesh
        padded_rows = mesh.size * ceil_div(self.rows, mesh.size)

        def read_part(parts: tuple[slice, ...] | None) -> Float[np.ndarray, "part d"]:
            assert parts is not None  # it is for arrays of unknown shape
            start, stop, _ = parts[0].indices(padded_rows)
            vectors = read_vectors(min(start, self.rows), min(stop, self.rows))
            return np.pad(vectors, ((0, stop - start - len(vectors)), (0, 0)))

        self.vectors = jax.make_array_from_callback((padded_rows, width), NamedSharding(mesh, ROWS), read_part)
        self._search = jax.jit(self._search_batch, static_argnames="k")

    def __call__(self, queries: Float[np.ndarray, "queries d"], k: int) -> Hits:
        """Return the `k` passages with the highest inner products for each query."""
        if not 1 <= k <= self.rows:
            raise ValueError(f"k is {k}; expected a number from 1 to the {self.rows} vectors of the index")
        scores = [np.zeros((0, k), np.float32)]
        numbers = [np.zeros((0, k), np.int32)]
        for start in range(0, len(queries), QUERIES_AT_ONCE):
            batch = queries[start : start + QUERIES_AT_ONCE]
            padded = np.pad(batch, ((0, QUERIES_AT_ONCE - len(batch)), (0, 0)))
            batch_scores, batch_numbers = jax.device_get(self._search(self.vectors, padded, k=k))
            scores.append(batch_scores[: len(batch)])
            numbers.append(batch_numbers[: len(batch)])
        return Hits(np.concatenate(scores), np.concatenate(numbers))

    def _search_batch(self, vectors: Float[Array, "n d"], queries: Float[Array, "q d"], k: int) -> tuple[Array, Array]:
        everywhere = PartitionSpec()
        search = jax.shard_map(
            partial(_search_shards, count=self.rows, k=k),
            mesh=self.mesh,
            in_specs=(ROWS, everywhere),
            out_specs=(everywhere, everywhere),
            check_vma=False,
        )
        return search(vectors, queries)


def _search_shards(
    vectors: Float[Array, "rows d"], queries: Float[Array, "q d"], count: int, k: int
) -> tuple[Float[Array, "q k"], Int[Array, "q k"]]:
    """Return the `k` best of this device's rows, merged with those of all others.

    `top_k` puts the lower index first among equal values. The candidates of the devices follow each other in the order
    of their rows, so the merge keeps that order.
    """
    rows = vectors.shape[0]
    numbers = jax.lax.axis_index(MESH_AXES) * rows + jnp.arange(rows)
    scores = jnp.matmul(queries, vectors.T, precision=jax.lax.Precision.HIGHEST)
    scores = jnp.where(numbers < count, scores, -jnp.inf)
    best, places = jax.lax.top_k(scores, min(k, rows))
    candidates = jax.lax.all_gather(best, MESH_AXES, axis=1, tiled=True)
    candidate_numbers = jax.lax.all_gather(numbers[places], MESH_AXES, axis=1, tiled=True)
    merged, merged_places = jax.lax.top_k(candidates, k)
    return merged, jnp.take_along_axis(candidate_numbers, merged_places, axis=1)
