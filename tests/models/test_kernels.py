"""Every form of attention against attention written out in NumPy from the definition of its mask."""

from dataclasses import replace
from itertools import product
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from t5x_lite.models.attention.blocked import dense_attention, select_parts
from t5x_lite.models.attention.context import (
    AttentionContext,
    AttentionInputs,
    AttentionSettings,
    BlockLimits,
    KernelRequirements,
    TokenPositions,
)
from t5x_lite.models.attention.kernels import attend, choose_kernel
from t5x_lite.models.attention.kinds import AttentionKind, BlockGlobal, Dense, Fixed, Local, Strided
from t5x_lite.models.sharding import target_platform

BATCH, HEADS, WIDTH = 2, 4, 8
SMALL_BLOCKS = BlockLimits(min_block=8, min_causal_step=8)


def is_allowed(kind: Any, query: int, key: int, head: int) -> bool:
    """Brute force, from the papers: a window of w counts the query itself; Child et al. 2019, §4.2, for two sets."""
    match kind:
        case Dense():
            return True
        case Local(window=window):
            return abs(query - key) <= window - 1
        case Strided(stride=stride):
            near = abs(query - key) <= stride
            far = abs(query - key) in range(0, 10**6, stride)
        case Fixed(stride=stride, summary=summary):
            near = query // stride == key // stride
            far = key % stride in range(stride - summary, stride)
        case BlockGlobal(block=block, neighbours=n, globals=count):
            in_band = query // block - n <= key // block <= query // block + n
            return key < count or query < count or in_band
    of_head = near if head < HEADS // 2 else far
    return {"near": near, "far": far, "both": near or far, "heads": of_head}[kind.share]


def attention_by_hand(q: Any, k: Any, v: Any, kind: Any, segments: Any, bias: Any, *, causal: bool) -> np.ndarray:
    out = np.zeros(q.shape)
    groups = q.shape[2] // k.shape[2]
    for b, i, h in product(range(q.shape[0]), range(q.shape[1]), range(q.shape[2])):
        keys = [
            m
            for m in range(k.shape[1])
            if is_allowed(kind, i, m, h)
            and (m <= i or not causal)
            and segments[b, m] == segments[b, i]
            and segments[b, m] > 0
        ]
        if not keys:
            continue
        scores = np.array([q[b, i, h] @ k[b, m, h // groups] / WIDTH**0.5 for m in keys])
        if bias is not None:
            scores = scores + bias[h, i, keys]
        weights = np.exp(scores - scores.max())
        out[b, i, h] = weights / weights.sum() @ v[b, keys, h // groups]
    return out


def random_arrays(length: int, kv_heads: int, packing: str) -> tuple[np.ndarray, ...]:
    """Queries, keys, values, and segments of rows that are whole, packed with documents, or padded."""
    rng = np.random.default_rng(0)
    segments = {
        "whole": np.ones((BATCH, length), int),
        "packed": np.sort(rng.integers(1, 4, (BATCH, length))),
        "padded": np.where(np.arange(length) < [[length - 5], [length // 2]], 1, 0),
    }[packing]
    q = rng.normal(size=(BATCH, length, HEADS, WIDTH)).astype(np.float32)
    k, v = rng.normal(size=(2, BATCH, length, kv_heads, WIDTH)).astype(np.float32)
    return q, k, v, segments


def self_context(segments: Any, *, causal: bool, prefix: Any = None, offset_bias: Any = None) -> AttentionContext:
    """The context of rows that attend to themselves."""
    positions = TokenPositions(np.arange(segments.shape[1]), jnp.asarray(segments), prefix)
    return AttentionContext(positions, positions, causal, self_attention=True, offset_bias=offset_bias)


def linear_bias(offset: jax.Array) -> jax.Array:
    slopes = jnp.arange(1, HEADS + 1).reshape(-1, *[1] * offset.ndim)
    return -slopes * jnp.abs(offset) / 10


KINDS = [
    Dense(),
    Local(window=7),
    *(Strided(stride=6, share=share) for share in ("near", "far", "both", "heads")),
    *(Fixed(stride=8, summary=2, share=share) for share in ("near", "far", "both", "heads")),
    BlockGlobal(block=4, neighbours=1, globals=3),
]
FAST = (0, 1, 4, 9, 10)
"""Of KINDS, those that differ in shape: a square, a band, a union, halves of the heads, global tokens."""


def mark_slow(cases: Any, kinds: Any, place: int) -> list[Any]:
    """All cases, those of the other kinds among the slow tests: each compiles for seconds."""
    fast = [kinds[n] for n in FAST]
    return [case if case[place] in fast else pytest.param(*case, marks=pytest.mark.slow) for case in cases]


CASES = [
    *product([48], KINDS, ["packed"], [True]),
    *(pytest.param(48, kind, "packed", False, marks=pytest.mark.slow) for kind in KINDS),
    *mark_slow(product([61], KINDS, ["padded"], [True]), KINDS, 1),
    *product([61], [Local(window=16), KINDS[-1]], ["whole"], [False]),
]


@pytest.mark.parametrize(("length", "kind", "packing", "causal"), CASES)
def test_every_form_equals_the_definition(length: int, kind: AttentionKind, packing: str, causal: bool) -> None:
    """Lengths that do and do not divide the block, grouped heads, a bias, packing and padding; values and gradients."""
    q, k, v, segments = random_arrays(length, 2, packing)
    bias = np.asarray(linear_bias(jnp.arange(length)[None] - jnp.arange(length)[:, None]))
    expected = attention_by_hand(q, k, v, kind, segments, bias, causal=causal)
    is_token = (segments > 0)[..., None, None]
    in_parts = self_context(segments, causal=causal, offset_bias=linear_bias)
    # Queries and keys that are not the same tokens are computed as a whole square.
    contexts = {"whole": replace(in_parts, self_attention=False), "parts": in_parts, "chunks": in_parts}
    limits = {
        "whole": SMALL_BLOCKS,
        "parts": SMALL_BLOCKS,
        "chunks": replace(SMALL_BLOCKS, max_scores=16, chunk_bytes=4 * BATCH * HEADS * length * 10),
    }
    first_group, _ = kind.head_groups(HEADS)[0]
    inputs = AttentionInputs(q, k, v, in_parts, AttentionSettings(limits=SMALL_BLOCKS))
    assert isinstance(kind, Dense) or select_parts(inputs, first_group)
    gradients = {}
    for form in ["whole", "parts"] + ["chunks"] * (length > 48):

        def total(q: jax.Array, k: jax.Array, v: jax.Array, form: str = form) -> tuple[jax.Array, jax.Array]:
            out = attend(q, k, v, kind, contexts[form], AttentionSettings(limits=limits[form])) * is_token
            return jnp.sum(jnp.sin(out)), out

        (_, out), gradients[form] = jax.jit(jax.value_and_grad(total, (0, 1, 2), has_aux=True))(q, k, v)
        np.testing.assert_allclose(out, expected * is_token, atol=1e-5, err_msg=form)
        for gradient, whole in zip(gradients[form], gradients["whole"], strict=True):
            np.testing.assert_allclose(gradient, whole, atol=1e-5, err_msg=form)


PAIR_COUNTS = [
    # Of a causal row of n: a band of w without its corner; columns of n/s, each a triangle; blocks of s, each a
    # triangle; c summaries of each earlier block, and those of the query's block up to the query.
    (Dense(), lambda n: n * n / 2),
    (Local(window=48), lambda n: 48 * n - 48 * 47 / 2),
    (Strided(stride=32, share="near"), lambda n: 33 * n - 33 * 32 / 2),
    (Strided(stride=32, share="far"), lambda n: 32 * (n / 32) * (n / 32 + 1) / 2),
    (Strided(stride=32, share="both"), lambda n: 33 * n - 33 * 16 + n * (n / 32 + 1) / 2 - n - (n - 32)),
    (Strided(stride=32), lambda n: (33 * n - 33 * 16 + n * (n / 32 + 1) / 2) / 2),
    (Fixed(stride=48, summary=4, share="near"), lambda n: n * 49 / 2),
    (Fixed(stride=48, summary=4, share="far"), lambda n: 4 * 48 * (n / 48) * (n / 48 - 1) / 2 + n / 48 * 10),
]


@pytest.mark.parametrize(("kind", "count"), PAIR_COUNTS, ids=[str(kind) for kind, _ in PAIR_COUNTS])
def test_pairs_are_counted_as_by_hand(kind: AttentionKind, count: Any) -> None:
    assert kind.pairs(1440, causal=True) == pytest.approx(count(1440), rel=1e-6)
    assert kind.pairs(11520, causal=True) == pytest.approx(count(11520), rel=0.02)  # a sample of the queries


def test_a_prefix_is_visible_both_ways_inside_a_band() -> None:
    q, k, v, segments = random_arrays(48, 4, "whole")
    prefix = jnp.asarray(np.arange(48) < [[20], [9]])
    context = self_context(segments, causal=True, prefix=prefix)
    kind = Local(window=7)
    out = attend(q, k, v, kind, context, AttentionSettings(limits=SMALL_BLOCKS))
    expected, _ = dense_attention(AttentionInputs(q, k, v, context, AttentionSettings()), kind.allowed)
    np.testing.assert_allclose(out, expected, atol=1e-5)


def count_flops(kind: AttentionKind, length: int, *, causal: bool = True) -> float:
    q, k, v, segments = random_arrays(length, 4, "whole")
    context = self_context(segments, causal=causal)
    run = jax.jit(lambda q, k, v: attend(q, k, v, kind, context, AttentionSettings()))
    return run.lower(q, k, v).compile().cost_analysis()["flops"]


def test_work_is_in_proportion_to_the_allowed_pairs() -> None:
    """Counted by XLA: a band of twice the length is twice the work; every sparse kind is far below the square.

    Of a causal square in 8 steps, (1 + 2 + … + 8) / 64 is computed.
    """
    short = count_flops(Local(window=64), 512)
    long = count_flops(Local(window=64), 1024)
    assert long / short == pytest.approx(2.0, rel=0.1)
    square = count_flops(Dense(), 1024, causal=False)
    assert count_flops(Dense(), 1024) / square == pytest.approx(36 / 64, rel=0.05)
    kinds = (Local(window=64), Strided(stride=32, share="far"), Fixed(stride=64, share="both"), BlockGlobal(block=64))
    for kind, bound in zip(kinds, (0.2, 0.1, 0.35, 0.3), strict=True):
        assert count_flops(kind, 1024) < bound * square, kind


def test_a_long_square_is_never_whole_in_memory() -> None:
    """32k tokens, forward and backward, one head: the square alone would be 4 GiB."""
    length = 32768
    context = self_context(np.ones((1, length), int), causal=True)
    shape = jax.ShapeDtypeStruct((1, length, 1, 64), jnp.float32)

    def total(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
        return attend(q, k, v, Dense(), context, AttentionSettings()).sum()

    memory = jax.jit(jax.grad(total, (0, 1, 2))).lower(shape, shape, shape).compile().memory_analysis()
    assert memory.temp_size_in_bytes + memory.output_size_in_bytes + memory.argument_size_in_bytes < 2 * 2**30


@pytest.mark.parametrize("kind", [Dense(), Local(window=64), Strided(stride=16, share="both")])
def test_dropout_keeps_its_share_and_its_mean(kind: AttentionKind) -> None:
    length = 400
    q, k, _, segments = random_arrays(length, 4, "whole")
    context = self_context(segments, causal=True)
    ones = jnp.ones((BATCH, length, 4, WIDTH))
    run = jax.jit(lambda key: attend(q, k, ones, kind, context, AttentionSettings(dropout=0.3), key))
    out = run(jax.random.key(0))
    assert float(out.mean()) == pytest.approx(1.0, abs=0.02)
    assert float(out.std()) > 0.05


PLATFORMS = {"xla": "cpu", "splash": "tpu", "cudnn": "gpu", "flash": "gpu"}
MATRIX = [
    # A bias under XLA is part of the test above.
    *mark_slow(product(("xla",), range(len(KINDS)), ("packed",), ("prefix",)), range(len(KINDS)), 1),
    *mark_slow(product(("splash",), range(len(KINDS)), ("packed",), ("none",)), range(len(KINDS)), 1),
    *product(("splash",), range(len(KINDS)), ("packed",), ("bias", "prefix")),
    *product(("cudnn",), range(len(KINDS)), ("packed",), ("none", "bias", "prefix")),
    *product(("flash",), range(len(KINDS)), ("packed",), ("none", "bias", "prefix")),
    ("splash", 1, "padded", "none"),
    ("flash", 1, "padded", "bias"),
]


def is_supported(kernel: str, kind: AttentionKind, extra: str) -> bool:
    """Which kernels compute what, as they document it."""
    groups = [group for group, _ in kind.head_groups(HEADS)]
    if kernel == "splash":
        return extra == "none" and not any(group.allows_empty_rows for group in groups)
    if kernel == "cudnn":
        return extra == "none" and isinstance(kind, Dense)
    if kernel == "flash":
        return isinstance(kind, Dense | Local)
    return True


@pytest.mark.parametrize(("kernel", "number", "packing", "extra"), MATRIX)
def test_every_kernel_equals_dense_or_is_refused_by_name(kernel: Any, number: int, packing: str, extra: str) -> None:
    """Kernel × mask × packing × positions, as if on the platform of the kernel; Pallas kernels run interpreted."""
    kind = KINDS[number]
    length = 128
    platform = PLATFORMS[kernel]
    dtype = "float32" if kernel in {"xla", "splash"} else "bfloat16"
    required = KernelRequirements(length, WIDTH, dtype, causal=True, bias=extra == "bias", prefix=extra == "prefix")
    if not is_supported(kernel, kind, extra):
        with pytest.raises(ValueError, match=f"model.kernel={kernel} cannot compute this attention: "):
            choose_kernel(kind, required, kernel, platform)
        return
    assert choose_kernel(kind, required, kernel, platform)[0] == kernel
    if kernel == "cudnn":
        return  # its values are compared where there is a GPU, below
    q, k, v, segments = random_arrays(length, 2, packing)
    prefix = jnp.asarray(np.arange(length) < [[20], [9]]) if extra == "prefix" else None
    context = self_context(segments, causal=True, prefix=prefix, offset_bias=linear_bias if extra == "bias" else None)
    settings = AttentionSettings(kernel=kernel, platform=platform, interpret=True)
    is_token = (segments > 0)[..., None, None]
    sides = tuple(jnp.asarray(x, dtype) for x in (q, k, v))

    def total(sides: Any, context: AttentionContext, settings: AttentionSettings) -> tuple[jax.Array, jax.Array]:
        out = attend(*sides, kind, context, settings).astype(jnp.float32) * is_token
        return jnp.sum(jnp.sin(out)), out

    run = jax.value_and_grad(total, has_aux=True)
    (_, out), gradients = jax.jit(lambda sides: run(sides, context, settings))(sides)
    # A whole square, which equals the definition in the test above.
    whole = replace(context, self_attention=False)
    exact = tuple(x.astype(jnp.float32) for x in sides)
    (_, expected), expected_gradients = jax.jit(lambda sides: run(sides, whole, AttentionSettings()))(exact)
    if dtype == "bfloat16":  # eight bits: 1/256 of values around one
        tolerance = {"atol": 3e-2, "rtol": 2e-2}
    else:
        tolerance = {"atol": 1e-5, "rtol": 1e-6}  # of gradients up to 50
    np.testing.assert_allclose(out, expected, **tolerance)
    for gradient, expected_gradient in zip(gradients, expected_gradients, strict=True):
        np.testing.assert_allclose(gradient.astype(jnp.float32), expected_gradient, **tolerance)


def test_the_platform_chooses_its_kernel_and_says_why() -> None:
    required = KernelRequirements(2048, 64, "bfloat16", causal=True)
    assert choose_kernel(Dense(), required, "auto", "tpu") == ("splash", "the kernel for tpu")
    assert choose_kernel(Dense(), required, "auto", "gpu") == ("cudnn", "the kernel for gpu")
    kernel, reason = choose_kernel(Local(window=256), required, "auto", "gpu")
    assert (kernel, reason) == ("flash", "not cudnn: it computes dense attention only")
    assert choose_kernel(Dense(), required, "auto", "cpu")[0] == "xla"
    odd = replace(required, length=2000)
    assert choose_kernel(Dense(), odd, "auto", "tpu") == ("xla", "not splash: length 2000 is not a multiple of 128")
    with pytest.raises(ValueError, match="it is for TPUs, not for cpu"):
        choose_kernel(Dense(), required, "splash", "cpu")


def test_cross_attention_takes_a_kernel_that_can_compute_it() -> None:
    cross = KernelRequirements(512, 64, "bfloat16", causal=False, self_attention=False)
    assert choose_kernel(Dense(), cross, "auto", "gpu")[0] == "flash"
    assert choose_kernel(Dense(), cross, "splash", "tpu")[0] == "xla"
    decoding = replace(cross, in_order=False)
    assert choose_kernel(Dense(), decoding, "auto", "gpu")[0] == "xla"


def test_a_program_lowered_for_a_tpu_on_this_machine_has_the_tpus_kernel() -> None:
    """The mesh says what is compiled for, not the process: here a mesh of abstract TPUs."""
    device = jax.sharding.AbstractDevice(device_kind="TPU v5", num_cores=1, platform="tpu")
    mesh = jax.sharding.AbstractMesh((2, 1, 1), ("data", "fsdp", "tensor"), abstract_device=device)
    with jax.sharding.use_abstract_mesh(mesh):
        assert target_platform() == "tpu"
    assert target_platform() == "cpu"
    q, k, v, segments = random_arrays(256, 2, "packed")
    context = self_context(segments, causal=True)
    run = jax.jit(lambda q, k, v: attend(q, k, v, Local(window=64), context, AttentionSettings(platform="tpu")))
    text = run.trace(q, k, v).lower(lowering_platforms=("tpu",)).as_text()
    assert "tpu_custom_call" in text


@pytest.mark.skipif(jax.default_backend() != "gpu", reason="cuDNN needs a GPU")
@pytest.mark.parametrize("kernel", ["cudnn", "flash"])
def test_fused_kernels_equal_dense_on_a_gpu(kernel: Any) -> None:
    rng = np.random.default_rng(0)
    sides = tuple(jnp.asarray(rng.normal(size=(2, 512, 4, 64)), jnp.bfloat16) for _ in range(3))
    context = self_context(np.sort(rng.integers(1, 4, (2, 512))), causal=True)

    def loss(sides: Any, kernel: Any) -> jax.Array:
        out = attend(*sides, Dense(), context, AttentionSettings(kernel=kernel))
        return jnp.sum(jnp.sin(out.astype(jnp.float32)))

    fused = jax.jit(jax.value_and_grad(lambda sides: loss(sides, kernel)))(sides)
    expected = jax.jit(jax.value_and_grad(lambda sides: loss(sides, "xla")))(sides)
    # bfloat16 has eight bits: 1/256 of values around one.
    for value, expected_value in zip(jax.tree.leaves(fused), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(value.astype(jnp.float32), expected_value, atol=3e-2, rtol=2e-2)
