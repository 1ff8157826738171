"""Compare exact search, and the loss of retrieval, on meshes of 8 simulated devices with NumPy.

Run by test_search.py in a process of its own, because the number of devices is fixed when JAX starts. Prints `equal`.
"""

import jax
import numpy as np

from t5x_lite.models.losses import passage_cross_entropy
from t5x_lite.parallel.config import MeshConfig
from t5x_lite.parallel.mesh import batch_sharding, make_mesh
from t5x_lite.retrieval.search import ExactSearch


def brute_force(vectors: np.ndarray, queries: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """The definition: highest inner product first, and of equal ones the lower number."""
    products = queries.astype(np.float64) @ vectors.T.astype(np.float64)
    order = np.stack([sorted(range(len(vectors)), key=lambda n, row=row: (-row[n], n)) for row in products])[:, :k]
    return np.take_along_axis(products, order, 1), order


def check(mesh_sizes: dict[str, int], rows: int, k: int) -> None:
    rng = np.random.default_rng(rows)
    # Small integers: products are exact in float32, and many are equal.
    vectors = rng.integers(-2, 3, (rows, 4)).astype(np.float32)
    queries = rng.integers(-2, 3, (70, 4)).astype(np.float32)
    search = ExactSearch(lambda start, stop: vectors[start:stop], vectors.shape, make_mesh(MeshConfig(**mesh_sizes)))
    hits = search(queries, k)
    scores, numbers = brute_force(vectors, queries, k)
    np.testing.assert_array_equal(hits.numbers, numbers)
    np.testing.assert_array_equal(hits.scores, scores)


def check_loss() -> None:
    """The passages of all devices are the negatives of a query (Karpukhin et al. 2020, eq. 2)."""
    rng = np.random.default_rng(0)
    queries = rng.normal(size=(16, 6)).astype(np.float32)
    passages = rng.normal(size=(16, 2, 6)).astype(np.float32)
    batch = {"queries": queries, "passages": passages, "is_passage": np.ones((16, 2), bool), "weights": np.ones(16)}
    mesh = make_mesh(MeshConfig(data=4, fsdp=2))
    with jax.set_mesh(mesh):
        sharded = {name: jax.device_put(value, batch_sharding(mesh)) for name, value in batch.items()}
        loss = jax.jit(passage_cross_entropy)(**sharded)
    scores = np.einsum("qd,pcd->qpc", queries.astype(np.float64), passages.astype(np.float64))
    positives = np.exp(scores[np.arange(16), np.arange(16), 0])
    np.testing.assert_allclose(loss.loss, -np.log(positives / np.exp(scores).sum((1, 2))).sum(), rtol=1e-5)


if __name__ == "__main__":
    check_loss()
    for sizes in ({"data": 8}, {"data": 2, "fsdp": 2, "tensor": 2}, {"data": 1, "context": 4, "pipeline": 2}):
        check(sizes, rows=101, k=20)
    check({"data": 8}, rows=3, k=3)  # most devices hold padding alone
    check({"data": 4, "expert": 2}, rows=64, k=64)
    print("equal")
