"""Attention kernels on this GPU: how far each is from the dense form in float32, and how long it takes.

    python tools/gpu/kernels.py [NAME …] [--interpret]

An error is the norm of the difference over the norm of the reference, of the output and of the gradients of query, key,
value and bias; seconds are the median of 10 calls, forward and backward together.
"""

import argparse
import json
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from t5x_lite.models.attention.flash import FlashInputs, FlashSettings, flash_attention


@dataclass(frozen=True)
class Case:
    """One shape of attention. `segments`: documents in a row; `bias`: by distance, as T5's."""

    batch: int
    length: int
    heads: int
    width: int
    causal: bool
    bias: bool = False
    segments: int = 1
    window: int | None = None
    kv_heads: int | None = None
    keys: int | None = None
    dropout: float = 0.0


CASES = {
    "GPT-2 causal": Case(16, 1024, 12, 64, causal=True),
    "GPT-3 1.3B causal": Case(4, 2048, 16, 128, causal=True),
    "GPT-3 packed": Case(4, 2048, 16, 128, causal=True, segments=5),
    "GPT-3 band of 256": Case(4, 2048, 16, 128, causal=True, window=256),
    "BERT-large": Case(32, 512, 16, 64, causal=False),
    "BERT-large packed, dropout": Case(32, 512, 16, 64, causal=False, segments=3, dropout=0.1),
    "T5 encoder": Case(16, 512, 16, 64, causal=False, bias=True),
    "T5 decoder packed": Case(16, 512, 16, 64, causal=True, bias=True, segments=3),
    "T5 cross": Case(16, 128, 16, 64, causal=False, segments=3, keys=512),
    "Llama grouped": Case(4, 2048, 16, 128, causal=True, kv_heads=4),
}
SMALL = {"batch": 2, "length": 96, "heads": 4, "width": 16}
BLOCKS = ((64, 64, 4, 2), (64, 64, 4, 3), (128, 128, 8, 2), (128, 64, 8, 3))
"""Queries and keys of a tile, warps, and stages of the software pipeline."""


def arrays(case: Case) -> tuple[Any, ...]:
    """Random query, key, value, segments of both sides, and bias."""
    rng = np.random.default_rng(0)
    keys = case.keys or case.length
    kv_heads = case.kv_heads or case.heads
    query = rng.standard_normal((case.batch, case.length, case.heads, case.width))
    key, value = rng.standard_normal((2, case.batch, keys, kv_heads, case.width))
    query_segments = 1 + np.arange(case.length) * case.segments // case.length
    key_segments = 1 + np.arange(keys) * case.segments // keys
    segments = [np.broadcast_to(s, (case.batch, len(s))).astype(np.int32) for s in (query_segments, key_segments)]
    bias = rng.standard_normal((case.heads, case.length + keys)) if case.bias else None
    return (*(jnp.asarray(x, jnp.bfloat16) for x in (query, key, value)), *map(jnp.asarray, segments), bias)


def dense(case: Case, query: Any, key: Any, value: Any, segments: Any, bias: Any, dtype: Any) -> Any:
    """The definition."""
    from t5x_lite.models.attention.flash import keep_mask, row_number

    query, key, value = (x.astype(dtype) for x in (query, key, value))
    groups = query.shape[2] // key.shape[2]
    key, value = jnp.repeat(key, groups, 2), jnp.repeat(value, groups, 2)
    scores = jnp.einsum("blhk,bmhk->bhlm", query, key, preferred_element_type=jnp.float32) * case.width**-0.5
    offset = jnp.arange(key.shape[1])[None] - jnp.arange(query.shape[1])[:, None]
    if bias is not None:
        scores = scores + bias[:, offset + query.shape[1] - 1]
    seen = segments[0][:, :, None] == segments[1][:, None]
    if case.causal:
        seen = seen & (offset <= 0)
    if case.window:
        seen = seen & (abs(offset) < case.window)
    weights = jax.nn.softmax(jnp.where(seen[:, None], scores, -1e30), axis=-1)
    if case.dropout:
        batch, head = jnp.arange(case.batch)[:, None, None, None], jnp.arange(case.heads)[:, None, None]
        rows = row_number(batch, head, case.heads, jnp.arange(query.shape[1])[:, None])
        keep = keep_mask(jnp.int32(7), rows, jnp.arange(key.shape[1])[None], case.dropout)
        weights = jnp.where(keep, weights / (1 - case.dropout), 0)
    return jnp.einsum("bhlm,bmhk->blhk", weights.astype(dtype), value)


def flash(
    case: Case, query: Any, key: Any, value: Any, segments: Any, bias: Any, blocks: tuple[int, ...], interpret: bool
) -> Any:
    """The Pallas kernels."""
    settings = FlashSettings(case.width**-0.5, case.causal, case.window, dropout=case.dropout, interpret=interpret)
    settings = replace(settings, **dict(zip(("block_q", "block_k", "warps", "stages"), blocks, strict=True)))
    inputs = FlashInputs(query, key, value, *segments, None, bias, jnp.array([0, 7], jnp.int32))
    return flash_attention(inputs, settings)


def cudnn(case: Case, query: Any, key: Any, value: Any, segments: Any, bias: Any, masked: bool) -> Any:
    """cuDNN's; the mask of segments and the bias are arrays."""
    offset = jnp.arange(key.shape[1])[None] - jnp.arange(query.shape[1])[:, None]
    mask = (segments[0][:, :, None] == segments[1][:, None])[:, None] if masked else None
    array = None if bias is None else bias[:, offset + query.shape[1] - 1].astype(query.dtype)[None]
    window = None if case.window is None else (case.window - 1, 0)
    return jax.nn.dot_product_attention(
        query, key, value, array, mask, is_causal=case.causal, local_window_size=window, implementation="cudnn"
    )


def both_passes(run: Callable[..., Any], given: tuple[Any, ...]) -> tuple[Any, Any, float]:
    """Output, gradients, and seconds of both together."""
    query, key, value, *segments, bias = given
    rng = np.random.default_rng(1)
    weights = jnp.asarray(rng.standard_normal(query.shape), jnp.float32)

    def loss(sides: Any) -> Any:
        out = run(sides["query"], sides["key"], sides["value"], segments, sides.get("bias"))
        return jnp.sum(out.astype(jnp.float32) * weights), out

    sides = {"query": query, "key": key, "value": value}
    if bias is not None:
        sides["bias"] = jnp.asarray(bias, jnp.float32)
    step = jax.jit(jax.grad(loss, has_aux=True))
    gradients, out = jax.block_until_ready(step(sides))
    times = []
    for _ in range(10):
        start = time.perf_counter()
        jax.block_until_ready(step(sides))
        times.append(time.perf_counter() - start)
    return out, gradients, float(np.median(times))


def error(found: Any, expected: Any) -> float:
    """Relative error in the Frobenius norm."""
    found, expected = (np.asarray(x, np.float64) for x in (found, expected))
    return float(np.linalg.norm(found - expected) / np.linalg.norm(expected))


def main() -> None:
    """A line for every case and kernel."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*")
    parser.add_argument("--interpret", action="store_true", help="small shapes, without a GPU")
    parser.add_argument("--blocks", action="store_true", help="all sizes of tiles, times alone")
    given = parser.parse_args()
    for name in given.names or CASES:
        case = CASES[name]
        if given.interpret:
            case = replace(case, **SMALL, kv_heads=case.kv_heads and 2, keys=case.keys and 64)
        made = arrays(case)
        out, gradients, runs = None, {}, dict[str, Any]()
        if not given.blocks:
            with jax.default_matmul_precision("highest"):
                out, gradients, _ = both_passes(partial(dense, case, dtype=jnp.float32), made)
            runs["xla"] = partial(dense, case, dtype=jnp.bfloat16)
        for blocks in BLOCKS if given.blocks else BLOCKS[:1]:
            if case.bias and blocks[0] != blocks[1]:
                continue
            runs[f"flash {blocks}"] = partial(flash, case, blocks=blocks, interpret=given.interpret)
        if not given.interpret and not case.dropout:
            runs["cudnn"] = partial(cudnn, case, masked=False)
            if case.segments > 1 or case.keys:
                runs = {k: v for k, v in runs.items() if k != "cudnn"}
            runs["cudnn masked"] = partial(cudnn, case, masked=True)
        for kernel, run in runs.items():
            line: dict[str, Any] = {"case": name, "kernel": kernel}
            try:
                own_out, own, seconds = both_passes(run, made)
                line["ms"] = round(1000 * seconds, 3)
                if out is not None:
                    line["out"] = round(error(own_out, out), 5)
                line |= {side: round(error(own[side], gradients[side]), 5) for side in gradients}
            except Exception as failure:  # a kernel that fails is a line of the report
                line["failed"] = str(failure)[:300]
            print(json.dumps(line), flush=True)


if __name__ == "__main__":
    main()
