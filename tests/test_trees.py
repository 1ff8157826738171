"""Names of the leaves of nested trees."""

from typing import NamedTuple

from t5x_lite.trees import flatten_names, unflatten_names


class Moments(NamedTuple):
    mu: dict[str, int]
    count: int


def test_names_are_paths_in_the_order_of_jax() -> None:
    """JAX sorts the keys of a dict, keeps the order of a tuple, and has no leaf for None."""
    tree = {"b": [Moments({"w": 1}, 2), None], "a": {"10": 3, "2": 4}}
    names = flatten_names(tree)
    assert list(names.items()) == [("a.10", 3), ("a.2", 4), ("b.0.mu.w", 1), ("b.0.count", 2)]


def test_a_tree_of_dicts_is_rebuilt_from_its_names() -> None:
    tree = {"decoder": {"layers": {"0": {"weight": 1, "bias": 2}}, "norm": 3}, "head": 4}
    assert unflatten_names(flatten_names(tree)) == tree
