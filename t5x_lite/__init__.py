"""Pretrain, resume, adapt and evaluate Transformer language models in JAX, from a laptop to a pod."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from t5x_lite.api import load

__all__ = ["load"]
__version__ = "0.2.0"


def __getattr__(name: str) -> object:
    """Import `load` when it is first used: it needs JAX, and `t5x-lite --help` does not."""
    if name == "load":
        from t5x_lite.api import load

        return load
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
