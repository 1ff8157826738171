"""Exact search on one and on eight devices against a sort in NumPy."""

from pathlib import Path

import jax
import numpy as np
import pytest

from t5x_lite.parallel.config import MeshConfig
from t5x_lite.parallel.mesh import make_mesh
from t5x_lite.retrieval.search import ExactSearch
from tests.retrieval.exact_on_meshes import brute_force
from tests.simulated_devices import run_on_eight_devices


def exact(vectors: np.ndarray) -> ExactSearch:
    mesh = make_mesh(MeshConfig(), jax.devices()[:1])
    return ExactSearch(lambda start, stop: vectors[start:stop], vectors.shape, mesh)


def test_exact_search_equals_a_sort_of_all_products() -> None:
    rng = np.random.default_rng(0)
    vectors = rng.normal(size=(200, 8)).astype(np.float32)
    queries = rng.normal(size=(65, 8)).astype(np.float32)
    hits = exact(vectors)(queries, 7)
    scores, numbers = brute_force(vectors, queries, 7)
    np.testing.assert_array_equal(hits.numbers, numbers)
    np.testing.assert_allclose(hits.scores, scores, rtol=1e-5, atol=1e-6)
    for k in (0, 201):
        with pytest.raises(ValueError, match="from 1 to the 200 vectors"):
            exact(vectors)(queries, k)


def test_exact_search_over_a_mesh_equals_a_sort_with_ties() -> None:
    done = run_on_eight_devices(Path(__file__).with_name("exact_on_meshes.py"))
    assert done.stdout == "equal\n", done.stderr
