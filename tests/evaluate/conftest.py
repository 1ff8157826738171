"""The labelled sentences of the tests of adaptation."""

from tests.adapt.conftest import labelled

__all__ = ["labelled"]
