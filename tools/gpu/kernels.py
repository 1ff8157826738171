"""Attention kernels on this GPU: the error of each against dense attention in float32, and its time.

    python tools/gpu/kernels.py [NAME …] [--interpret]

Prints a line of JSON for each case and kernel. An error is the norm of the difference over the norm of the reference,
of the output and of the gradients of query, key, value and bias. Times are medians of 10 calls, forward and backward.
"""

import argparse
import json
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, DTypeLike, Float, Int

from t5x_lite.models.attention.flash import FlashInputs, FlashSettings, flash_attention
from t5x_lite.models.attention.flash_tiles import keep_mask

REPETITIONS = 10
DROPOUT_SEED = 7
MASK_VALUE = -1e30
LONGEST_ERROR = 300


@dataclass(frozen=True)
class Case:
    """One shape of attention.

    Attributes:
        head_dim: channels of a head.
        has_bias: adds a bias by distance, as in T5.
        segments: documents in a row.
        window: a query sees keys less than this many positions away.
        kv_heads: heads of keys and values, if fewer than `heads`.
        key_length: length of keys and values, if another than `length`.
    """

    batch: int
    length: int
    heads: int
    head_dim: int
    is_causal: bool
    has_bias: bool = False
    segments: int = 1
    window: int | None = None
    kv_heads: int | None = None
    key_length: int | None = None
    dropout: float = 0.0


CASES = {
    "GPT-2 causal": Case(16, 1024, 12, 64, is_causal=True),
    "GPT-3 1.3B causal": Case(4, 2048, 16, 128, is_causal=True),
    "GPT-3 packed": Case(4, 2048, 16, 128, is_causal=True, segments=5),
    "GPT-3 band of 256": Case(4, 2048, 16, 128, is_causal=True, window=256),
    "BERT-large": Case(32, 512, 16, 64, is_causal=False),
    "BERT-large packed, dropout": Case(32, 512, 16, 64, is_causal=False, segments=3, dropout=0.1),
    "T5 encoder": Case(16, 512, 16, 64, is_causal=False, has_bias=True),
    "T5 decoder packed": Case(16, 512, 16, 64, is_causal=True, has_bias=True, segments=3),
    "T5 cross": Case(16, 128, 16, 64, is_causal=False, segments=3, key_length=512),
    "Llama grouped": Case(4, 2048, 16, 128, is_causal=True, kv_heads=4),
}


@dataclass(frozen=True)
class Tiling:
    """Queries and keys of a tile, warps, and stages of the software pipeline."""

    block_q: int
    block_k: int
    warps: int
    stages: int


TILINGS = (Tiling(64, 64, 4, 2), Tiling(64, 64, 4, 3), Tiling(128, 128, 8, 2), Tiling(128, 64, 8, 3))


@dataclass(frozen=True)
class Inputs:
    """Arrays of a case. `bias` of head h at the offset key - query = x - (l - 1) is `bias[h, x]`."""

    query: Float[Array, "b l h k"]
    key: Float[Array, "b m n k"]
    value: Float[Array, "b m n k"]
    query_segments: Int[Array, "b l"]
    key_segments: Int[Array, "b m"]
    bias: Float[Array, "h x"] | None


jax.tree_util.register_dataclass(Inputs)

Kernel: TypeAlias = Callable[[Inputs], Float[Array, "b l h k"]]


def shrink(case: Case) -> Case:
    """Return a case of the same kind that the interpreter computes in seconds."""
    kv_heads = None if case.kv_heads is None else 2
    key_length = None if case.key_length is None else 64
    return replace(case, batch=2, length=96, heads=4, head_dim=16, kv_heads=kv_heads, key_length=key_length)


def random_inputs(case: Case) -> Inputs:
    """Return random query, key, value and bias, and documents of equal length."""
    rng = np.random.default_rng(0)
    key_length = case.key_length or case.length
    kv_heads = case.kv_heads or case.heads
    query = rng.standard_normal((case.batch, case.length, case.heads, case.head_dim))
    key, value = rng.standard_normal((2, case.batch, key_length, kv_heads, case.head_dim))
    bias = None
    if case.has_bias:
        bias = jnp.asarray(rng.standard_normal((case.heads, case.length + key_length)), jnp.float32)
    return Inputs(
        query=jnp.asarray(query, jnp.bfloat16),
        key=jnp.asarray(key, jnp.bfloat16),
        value=jnp.asarray(value, jnp.bfloat16),
        query_segments=_equal_segments(case, case.length),
        key_segments=_equal_segments(case, key_length),
        bias=bias,
    )


def _equal_segments(case: Case, length: int) -> Int[Array, "b l"]:
    segments = 1 + np.arange(length) * case.segments // length
    return jnp.asarray(np.broadcast_to(segments, (case.batch, length)).astype(np.int32))


def _offsets(inputs: Inputs) -> Int[Array, "l m"]:
    """Return the position of each key minus that of each query."""
    return jnp.arange(inputs.key.shape[1])[None] - jnp.arange(inputs.query.shape[1])[:, None]


def _bias_of_scores(inputs: Inputs) -> Float[Array, "h l m"] | None:
    if inputs.bias is None:
        return None
    return inputs.bias[:, _offsets(inputs) + inputs.query.shape[1] - 1]


def _same_segment(inputs: Inputs) -> Bool[Array, "b l m"]:
    return inputs.query_segments[:, :, None] == inputs.key_segments[:, None]


def dense_attention(case: Case, dtype: DTypeLike, inputs: Inputs) -> Float[Array, "b l h k"]:
    """Compute attention by its definition, with products in `dtype`."""
    query = inputs.query.astype(dtype)
    groups = query.shape[2] // inputs.key.shape[2]
    key = jnp.repeat(inputs.key.astype(dtype), groups, 2)
    value = jnp.repeat(inputs.value.astype(dtype), groups, 2)
    scores = jnp.einsum("blhk,bmhk->bhlm", query, key, preferred_element_type=jnp.float32) * case.head_dim**-0.5
    bias = _bias_of_scores(inputs)
    if bias is not None:
        scores = scores + bias
    offset = _offsets(inputs)
    is_visible = _same_segment(inputs)
    if case.is_causal:
        is_visible = is_visible & (offset <= 0)
    if case.window:
        is_visible = is_visible & (abs(offset) < case.window)
    weights = jax.nn.softmax(jnp.where(is_visible[:, None], scores, MASK_VALUE), axis=-1)
    if case.dropout:
        weights = _drop_weights(weights, case.dropout)
    return jnp.einsum("bhlm,bmhk->blhk", weights.astype(dtype), value)


def _drop_weights(weights: Float[Array, "b h l m"], rate: float) -> Float[Array, "b h l m"]:
    batch, heads, queries, keys = weights.shape
    head = jnp.arange(batch * heads).reshape(batch, heads, 1, 1)
    is_kept = keep_mask(DROPOUT_SEED, head, jnp.arange(queries)[:, None], jnp.arange(keys)[None], rate)
    return jnp.where(is_kept, weights / (1 - rate), 0)


def pallas_attention(case: Case, tiling: Tiling, interpret: bool, inputs: Inputs) -> Float[Array, "b l h k"]:
    """Compute attention by the project's Pallas kernels."""
    settings = FlashSettings(
        scale=case.head_dim**-0.5,
        causal=case.is_causal,
        window=case.window,
        dropout=case.dropout,
        block_q=tiling.block_q,
        block_k=tiling.block_k,
        warps=tiling.warps,
        stages=tiling.stages,
        interpret=interpret,
    )
    flash_inputs = FlashInputs(
        query=inputs.query,
        key=inputs.key,
        value=inputs.value,
        query_segments=inputs.query_segments,
        key_segments=inputs.key_segments,
        prefix=None,
        bias=inputs.bias,
        scalars=jnp.array([0, DROPOUT_SEED, 0, inputs.query.shape[2]], jnp.int32),
    )
    return flash_attention(flash_inputs, settings)


def cudnn_attention(case: Case, has_mask: bool, inputs: Inputs) -> Float[Array, "b l h k"]:
    """Compute attention by cuDNN, to which the bias and, with `has_mask`, the mask of segments are given as arrays."""
    mask = _same_segment(inputs)[:, None] if has_mask else None
    bias = _bias_of_scores(inputs)
    if bias is not None:
        bias = bias.astype(inputs.query.dtype)[None]
    return jax.nn.dot_product_attention(
        inputs.query,
        inputs.key,
        inputs.value,
        bias,
        mask,
        is_causal=case.is_causal,
        local_window_size=None if case.window is None else (case.window - 1, 0),
        implementation="cudnn",
    )


@dataclass(frozen=True)
class Measurement:
    """Output and gradients of a kernel, and the seconds of both passes."""

    output: Float[Array, "b l h k"]
    gradients: dict[str, Array]
    seconds: float


def measure(kernel: Kernel, inputs: Inputs) -> Measurement:
    """Run forward and backward: the gradients of a weighted sum of the output."""
    rng = np.random.default_rng(1)
    output_weights = jnp.asarray(rng.standard_normal(inputs.query.shape), jnp.float32)
    differentiated = {"query": inputs.query, "key": inputs.key, "value": inputs.value}
    if inputs.bias is not None:
        differentiated["bias"] = inputs.bias

    def loss(arrays: dict[str, Array]) -> tuple[Float[Array, ""], Float[Array, "b l h k"]]:
        output = kernel(replace(inputs, **arrays))
        return jnp.sum(output.astype(jnp.float32) * output_weights), output

    step = jax.jit(jax.grad(loss, has_aux=True))
    gradients, output = jax.block_until_ready(step(differentiated))
    times = []
    for _ in range(REPETITIONS):
        start = time.perf_counter()
        jax.block_until_ready(step(differentiated))
        times.append(time.perf_counter() - start)
    return Measurement(output, gradients, float(np.median(times)))


def relative_error(array: Float[Array, "..."], reference: Float[Array, "..."]) -> float:
    """Return the relative error in the Frobenius norm."""
    values = np.asarray(array, np.float64)
    expected = np.asarray(reference, np.float64)
    return float(np.linalg.norm(values - expected) / np.linalg.norm(expected))


def select_kernels(case: Case, *, interpret: bool, all_tilings: bool) -> dict[str, Kernel]:
    """Return the kernels to measure; with `all_tilings` only Pallas and cuDNN."""
    kernels: dict[str, Kernel] = {}
    if not all_tilings:
        kernels["xla"] = partial(dense_attention, case, jnp.bfloat16)
    for tiling in TILINGS if all_tilings else TILINGS[:1]:
        # A bias needs square tiles.
        if not case.has_bias or tiling.block_q == tiling.block_k:
            name = f"flash ({tiling.block_q}, {tiling.block_k}, {tiling.warps}, {tiling.stages})"
            kernels[name] = partial(pallas_attention, case, tiling, interpret)
    if not interpret and not case.dropout:
        if case.segments == 1 and not case.key_length:
            kernels["cudnn"] = partial(cudnn_attention, case, False)
        kernels["cudnn masked"] = partial(cudnn_attention, case, True)
    return kernels


def report(kernel: Kernel, inputs: Inputs, reference: Measurement | None) -> dict[str, Any]:
    """Return the time of a kernel and its errors, or the error that it raises."""
    try:
        measurement = measure(kernel, inputs)
        figures: dict[str, Any] = {"ms": round(1000 * measurement.seconds, 3)}
        if reference is not None:
            figures["out"] = round(relative_error(measurement.output, reference.output), 5)
            for name, gradient in reference.gradients.items():
                figures[name] = round(relative_error(measurement.gradients[name], gradient), 5)
    except Exception as error:  # the report goes on with the next kernel
        return {"failed": str(error)[:LONGEST_ERROR]}
    return figures


def main() -> None:
    """Print a line for every case and kernel."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*")
    parser.add_argument("--interpret", action="store_true", help="small shapes, without a GPU")
    parser.add_argument("--blocks", action="store_true", help="all sizes of tiles, only times")
    options = parser.parse_args()
    for name in options.names or CASES:
        case = shrink(CASES[name]) if options.interpret else CASES[name]
        inputs = random_inputs(case)
        reference = None
        if not options.blocks:
            with jax.default_matmul_precision("highest"):
                reference = measure(partial(dense_attention, case, jnp.float32), inputs)
        kernels = select_kernels(case, interpret=options.interpret, all_tilings=options.blocks)
        for kernel_name, kernel in kernels.items():
            line = {"case": name, "kernel": kernel_name} | report(kernel, inputs, reference)
            print(json.dumps(line), flush=True)


if __name__ == "__main__":
    main()
