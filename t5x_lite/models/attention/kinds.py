"""Attention kinds: which keys a query may look at. One class a kind, one entry in `ATTENTION`.

A kind is pure arithmetic on positions, so that one definition serves NumPy tests, the dense computation and every
kernel; it imports no JAX. `allowed` is the definition. `parts` says how little has to be computed for it: disjoint sets
of pairs, each in a shape that a kernel can compute alone.
"""

from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal

import numpy as np

from t5x_lite.schema import Config, Int, setting

Allowed = Callable[[Any, Any], Any]
SAMPLE = 2048
"""Queries whose keys are counted."""


@dataclass(frozen=True)
class Blocks:
    """Queries of each block of `size` look at keys of their own block, of `before` blocks before it and `after` after.

    A multiple of `size` serves as well.
    """

    size: int
    before: int
    after: int

    def pairs(self, length: int) -> int:
        """Pairs of query and key that are computed."""
        return length * min(self.size * (1 + self.before + self.after), length)


@dataclass(frozen=True)
class Columns:
    """Places that are a multiple of `stride` apart look at each other."""

    stride: int

    def pairs(self, length: int) -> int:
        """See `Blocks.pairs`."""
        return length * -(-length // self.stride)


@dataclass(frozen=True)
class Chosen:
    """All queries look at the same keys: those from place `first` to `stop` of every `period` (None: of the row)."""

    first: int
    stop: int
    period: int | None = None

    def places(self, length: int) -> list[int]:
        """Their indices."""
        return [n for n in range(length) if self.first <= (n % self.period if self.period else n) < self.stop]

    def pairs(self, length: int) -> int:
        """See `Blocks.pairs`."""
        return length * len(self.places(length))


@dataclass(frozen=True)
class First:
    """The first `count` queries look at all keys."""

    count: int

    def pairs(self, length: int) -> int:
        """See `Blocks.pairs`."""
        return self.count * length


@dataclass(frozen=True)
class Part:
    """Pairs that are computed in one shape: of those that the shape covers, the `allowed` ones."""

    shape: Blocks | Columns | Chosen | First
    allowed: Allowed


class AttentionKind(Config):
    """What all kinds have in common: the defaults are those of a kind that is only defined by its mask.

    `reach` is the number of newest keys that a causal query needs wherever it stands (None: all). With `blind` a query
    may see no key at all, and gets 0.
    """

    blind: ClassVar[bool] = False

    @property
    def reach(self) -> int | None:
        """See the class."""
        return None

    @abstractmethod
    def allowed(self, query: Any, key: Any) -> Any:
        """Boolean mask for broadcastable integer positions `query` and `key`; causality is not decided here."""

    def parts(self, *, causal: bool) -> tuple[Part, ...]:
        """Disjoint parts that together are `allowed`; none where the whole square is to be computed."""
        return ()

    def of_heads(self, heads: int) -> tuple[tuple["AttentionKind", int], ...]:
        """The kind of each group of heads, in order, and the number of heads in it."""
        return ((self, heads),)

    def pairs(self, length: int, *, causal: bool) -> float:
        """Pairs of query and key in a row of `length`, the mean over heads, for counting FLOPs.

        They are counted, of long rows for a sample of queries.
        """
        query = np.linspace(0, length - 1, min(length, SAMPLE)).round().astype(int)[:, None]
        key = np.arange(length)
        kinds = self.of_heads(2)
        seen = [kind.allowed(query, key) & ((query >= key) | (not causal)) for kind, _ in kinds]
        return float(np.mean(seen)) * length * length


class Dense(AttentionKind):
    """Every key of the segment (and, in a decoder, no later one)."""

    def allowed(self, query: Any, key: Any) -> Any:
        """All."""
        return abs(query - key) >= 0

    def pairs(self, length: int, *, causal: bool) -> float:
        """The square, or half of it, as MFU is counted (Chowdhery et al. 2022, appendix B)."""
        return length * length / (2 if causal else 1)


class Local(AttentionKind):
    """A band: keys less than `window` away, the query's own place counted (Child et al. 2019; GPT-Neo, Mistral)."""

    window: Int = setting(256, "keys that a causal query sees, itself included", unit="tokens", ge=1)

    @property
    def reach(self) -> int | None:
        """The window."""
        return self.window

    def allowed(self, query: Any, key: Any) -> Any:
        """In an encoder the band reaches as far to the right as to the left."""
        return abs(query - key) < self.window

    def parts(self, *, causal: bool) -> tuple[Part, ...]:
        """Blocks of a window's width and their neighbours."""
        return (Part(Blocks(self.window, 1, 0 if causal else 1), self.allowed),)


Share = Literal["heads", "near", "far", "both"]


class Factorised(AttentionKind):
    """Two sets of keys that reach every place in two steps (Child et al. 2019, §4.2): `near` and `far`.

    `share`: half of the heads takes each; or all heads of this layer take one, for interleaved layers; or both at once.
    """

    stride: Int = setting(128, "about the square root of the length", unit="tokens", ge=1)
    share: Share = setting(
        "heads", "half of the heads near, half far; all near; all far; or both at once", source="Child 2019, §4.2"
    )

    @abstractmethod
    def sets(self, *, causal: bool) -> tuple[Part, Part]:
        """The near set and the far set, each with a shape that covers it."""

    def allowed(self, query: Any, key: Any) -> Any:
        """One of the sets, or their union; with `heads`, what any head sees."""
        near, far = (part.allowed for part in self.sets(causal=True))
        if self.share in {"near", "far"}:
            return (near if self.share == "near" else far)(query, key)
        return near(query, key) | far(query, key)

    def parts(self, *, causal: bool) -> tuple[Part, ...]:
        """One or both; what is near is not far."""
        near, far = self.sets(causal=causal)
        beyond = replace(far, allowed=lambda q, k: far.allowed(q, k) & ~near.allowed(q, k))
        return {"near": (near,), "far": (far,)}.get(self.share, (near, beyond))

    def of_heads(self, heads: int) -> tuple[tuple[AttentionKind, int], ...]:
        """See the class."""
        if self.share != "heads":
            return ((self, heads),)
        near, far = (self.model_copy(update={"share": share}) for share in ("near", "far"))
        return ((near, heads // 2), (far, heads // 2))


class Strided(Factorised):
    """Near: the last `stride` keys and the query's own. Far: every `stride`-th key from the query's place."""

    @property
    def reach(self) -> int | None:
        """Of the near set alone."""
        return self.stride + 1 if self.share == "near" else None

    def sets(self, *, causal: bool) -> tuple[Part, Part]:
        """§4.2: A^(1), a band that reaches into one block of `stride` before; A^(2), combs, each by itself."""
        band = Part(Blocks(self.stride, 1, 0 if causal else 1), lambda q, k: abs(q - k) <= self.stride)
        return band, Part(Columns(self.stride), lambda q, k: (q - k) % self.stride == 0)


class Fixed(Factorised):
    """Near: the keys of the query's own block of `stride`. Far: the last `summary` places of every block."""

    summary: Int = setting(8, "places of a block that all later queries see", unit="tokens", ge=1, source="Child, §4.2")

    @property
    def blind(self) -> bool:  # type: ignore[override]
        """Before the first summary there is nothing far to see."""
        return self.share in {"far", "heads"}

    def sets(self, *, causal: bool) -> tuple[Part, Part]:
        """§4.2: A^(1), blocks that see themselves; A^(2), the summaries of all blocks."""
        first = self.stride - self.summary
        own = Part(Blocks(self.stride, 0, 0), lambda q, k: q // self.stride == k // self.stride)
        summaries = Chosen(first, self.stride, self.stride)
        return own, Part(summaries, lambda q, k: (k % self.stride >= first) & (abs(q - k) >= 0))


class BlockGlobal(AttentionKind):
    """Blocks that see their neighbours, and `globals` first tokens of the row that see all and are seen by all.

    For encoders (Beltagy et al. 2020, §3.1; Zaheer et al. 2020, §2, without its random blocks).
    """

    block: Int = setting(64, "tokens of a block", unit="tokens", ge=1)
    neighbours: Int = setting(1, "blocks on each side that a block sees", unit="blocks", ge=0)
    globals: Int = setting(1, "first tokens of a row that see all and are seen by all", unit="tokens", ge=1)

    def allowed(self, query: Any, key: Any) -> Any:
        """Near in blocks, or one of the two is global."""
        return self._near(query, key) | (key < self.globals) | (query < self.globals)

    def _near(self, query: Any, key: Any) -> Any:
        return abs(query // self.block - key // self.block) <= self.neighbours

    def parts(self, *, causal: bool) -> tuple[Part, ...]:
        """Blocks, global keys beyond them, and what global queries see beyond both."""
        near = Blocks(self.block, self.neighbours, 0 if causal else self.neighbours)
        return (
            Part(near, self._near),
            Part(Chosen(0, self.globals), lambda q, k: (k < self.globals) & ~self._near(q, k)),
            Part(First(self.globals), lambda q, k: (q < self.globals) & (k >= self.globals) & ~self._near(q, k)),
        )


ATTENTION: dict[str, type[AttentionKind]] = {
    "dense": Dense,
    "local": Local,
    "strided": Strided,
    "fixed": Fixed,
    "block_global": BlockGlobal,
}
