"""The task that the tests of adaptation use too."""

from tests.adapt.conftest import fox_task

__all__ = ["fox_task"]
