"""Settings that hold for what is traced inside of a `with` block."""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TypeVar

T = TypeVar("T")


@contextmanager
def set_context_var(variable: ContextVar[T], value: T) -> Iterator[None]:
    """Give a variable a value for what is traced inside, and then the one that it had before."""
    token = variable.set(value)
    try:
        yield
    finally:
        variable.reset(token)
