"""Attention kinds: which keys a query may attend to. One file a kind, one entry here."""

from collections.abc import Mapping

from t5x_lite.models.attention.kinds.block_global import BlockGlobal
from t5x_lite.models.attention.kinds.dense import Dense
from t5x_lite.models.attention.kinds.fixed import Fixed
from t5x_lite.models.attention.kinds.kind import AttentionKind
from t5x_lite.models.attention.kinds.local import Local
from t5x_lite.models.attention.kinds.strided import Strided
from t5x_lite.models.attention.kinds.transient_global import TransientGlobal

ATTENTION: dict[str, type[AttentionKind]] = {
    "dense": Dense,
    "local": Local,
    "strided": Strided,
    "fixed": Fixed,
    "block_global": BlockGlobal,
    "transient_global": TransientGlobal,
}


def kinds_of_layers(value: object) -> object:
    """Return the kinds of layers as a list; runs of earlier versions have null, or one kind without a list."""
    if value is None:
        return ()
    if isinstance(value, str | Mapping | AttentionKind):
        return (value,)
    return value


__all__ = [
    "ATTENTION",
    "AttentionKind",
    "BlockGlobal",
    "Dense",
    "Fixed",
    "Local",
    "Strided",
    "TransientGlobal",
    "kinds_of_layers",
]
