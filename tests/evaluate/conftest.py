"""The labelled sentences that the tests of adaptation use."""

from tests.adapt.conftest import labelled

__all__ = ["labelled"]
