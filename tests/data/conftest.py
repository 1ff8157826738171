"""Fixtures of the tests of data."""

import importlib
import sys
from collections.abc import Callable, Iterator
from types import ModuleType

import pytest

from tests.conftest import REPOSITORY


@pytest.fixture
def import_benchmark(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], ModuleType]]:
    """Imports a module of `tools/benchmarks` by its name."""
    monkeypatch.syspath_prepend(str(REPOSITORY / "tools"))
    names = []

    def import_module(name: str) -> ModuleType:
        names.append(f"benchmarks.{name}")
        return importlib.import_module(names[-1])

    yield import_module
    for name in names:
        sys.modules.pop(name, None)
