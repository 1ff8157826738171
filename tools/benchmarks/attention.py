"""Local attention compared with dense attention, by length."""

from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from benchmarks.timing import Case, compute_dtype, forward_and_backward, is_on_cpu, median_seconds
from t5x_lite.models.attention.context import AttentionContext, AttentionSettings, TokenPositions
from t5x_lite.models.attention.kernels import attend
from t5x_lite.models.attention.kinds import AttentionKind, Dense, Local

WINDOW = 256
HEADS = 4
HEAD_DIM = 64
LENGTHS = (2048, 4096, 8192, 16384, 32768)
LENGTHS_IF_QUICK = 3
DENSE_LENGTHS = 3


def measure(rounds: int, quick: bool) -> list[dict[str, Any]]:
    """Measure causal attention over a window of 256 and over the whole row; 4 heads of 64."""
    lengths = LENGTHS[:LENGTHS_IF_QUICK] if quick else LENGTHS
    local_cases = {str(length): _attention_case(Local(window=WINDOW), length) for length in lengths}
    dense_cases = {str(length): _attention_case(Dense(), length) for length in lengths[:DENSE_LENGTHS]}
    local_seconds = median_seconds(local_cases, rounds)
    dense_seconds = median_seconds(dense_cases, max(rounds // 2, 3))
    rows: list[dict[str, Any]] = []
    seconds_of_half_length = None
    for length, seconds in local_seconds.items():
        row = {
            "length": int(length),
            f"band of {WINDOW}, ms": 1e3 * seconds,
            "of half the length": None,
            "square, ms": None,
            "square / band": None,
        }
        if seconds_of_half_length is not None:
            row["of half the length"] = seconds / seconds_of_half_length
        if length in dense_seconds:
            row["square, ms"] = 1e3 * dense_seconds[length]
            row["square / band"] = dense_seconds[length] / seconds
        rows.append(row)
        seconds_of_half_length = seconds
    return rows


def _attention_case(kind: AttentionKind, length: int) -> Case:
    """Return forward and backward of one row on a CPU, of eight rows elsewhere."""
    rows = 1 if is_on_cpu() else 8
    rng = np.random.default_rng(0)
    shape = (rows, length, HEADS, HEAD_DIM)
    query, key, value = (jnp.asarray(rng.normal(size=shape), compute_dtype()) for _ in range(3))
    positions = TokenPositions(jnp.arange(length), jnp.ones((rows, length), jnp.int32))
    context = AttentionContext(positions, positions, causal=True)

    def attention(
        query: Float[Array, "b l h k"], key: Float[Array, "b l h k"], value: Float[Array, "b l h k"]
    ) -> Float[Array, "b l h k"]:
        return attend(query, key, value, kind, context, AttentionSettings())

    return forward_and_backward(attention, query, key, value)
