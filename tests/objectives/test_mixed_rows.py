"""The sizes of rows of several objectives in one batch."""

from t5x_lite.objectives.mixed_rows import largest_lengths
from t5x_lite.objectives.objective import ExampleLengths
from t5x_lite.objectives.permutation import Permutation
from tests.objectives.vocabulary import context


def test_the_lengths_of_several_objectives_are_the_largest_of_each_kind() -> None:
    """Of 96 tokens every fourth or every eighth is predicted, each by a state of the query stream."""
    lengths = largest_lengths([Permutation(k=8), Permutation(k=4)], context(96, "encoder"))
    assert lengths == ExampleLengths(tokens=96, predicted=24, query_stream=24)
