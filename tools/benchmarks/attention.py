"""A band against the whole square, by length."""

from typing import Any

import jax.numpy as jnp
import numpy as np

from benchmarks.timing import Case, both_passes, dtype_here, medians, on_cpu
from t5x_lite.models.attention.context import AttentionContext, AttentionSettings, TokenPositions
from t5x_lite.models.attention.kernels import attend
from t5x_lite.models.attention.kinds import AttentionKind, Dense, Local


def table(rounds: int, quick: bool) -> list[dict[str, Any]]:
    """A band of 256 and the whole square, causal, by length; 4 heads of 64."""
    dtype, scale = dtype_here(), 1 if on_cpu() else 8
    window, rng = 256, np.random.default_rng(0)

    def case(pattern: AttentionKind, length: int) -> Case:
        q, k, v = (jnp.asarray(rng.normal(size=(scale, length, 4, 64)), dtype) for _ in range(3))
        places = TokenPositions(jnp.arange(length), jnp.ones((scale, length), jnp.int32))
        view = AttentionContext(places, places, causal=True)
        return both_passes(lambda q, k, v: attend(q, k, v, pattern, view, AttentionSettings()), q, k, v)

    lengths = (2048, 4096, 8192) if quick else (2048, 4096, 8192, 16384, 32768)
    bands = medians({str(length): case(Local(window=window), length) for length in lengths}, rounds)
    squares = medians({str(length): case(Dense(), length) for length in lengths[:3]}, max(rounds // 2, 3))
    lines, before = [], None
    for length, seconds in bands.items():
        square = squares.get(length)
        lines.append(
            {
                "length": int(length),
                f"band of {window}, ms": 1e3 * seconds,
                "of half the length": None if before is None else seconds / before,
                "square, ms": None if square is None else 1e3 * square,
                "square / band": None if square is None else square / seconds,
            }
        )
        before = seconds
    return lines
