"""Pretrain, resume, adapt and evaluate Transformer language models in JAX, from a laptop to a pod."""

from typing import Any

__all__ = ["load"]


def __getattr__(name: str) -> Any:
    """`load` brings JAX with it, which `t5x-lite --help` can do without."""
    if name == "load":
        from t5x_lite.api import load

        return load
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
