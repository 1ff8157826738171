"""Every form of attention against one written out in NumPy from the definition of its mask."""

from functools import partial
from itertools import product
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from t5x_lite.models.attention import blocked as shapes
from t5x_lite.models.attention import kernels
from t5x_lite.models.attention.context import AttentionContext, AttentionInputs, AttentionSettings, TokenPositions
from t5x_lite.models.attention.kernels import KernelRequirements, attend, choose_kernel
from t5x_lite.models.attention.kinds import BlockGlobal, Dense, Fixed, Local, Strided
from t5x_lite.models.attention.splash import splash
from t5x_lite.models.sharding import platform

BATCH, HEADS, WIDTH = 2, 4, 8


def sees(pattern: Any, q: int, m: int, head: int) -> bool:
    """Brute force, from the papers: a window of w counts the query itself; Child et al. 2019, §4.2, for two sets."""
    match pattern:
        case Dense():
            return True
        case Local(window=window):
            return abs(q - m) <= window - 1
        case Strided(stride=stride):
            near, far = abs(q - m) <= stride, abs(q - m) in range(0, 10**6, stride)
        case Fixed(stride=stride, summary=summary):
            near, far = q // stride == m // stride, m % stride in range(stride - summary, stride)
        case BlockGlobal(block=block, neighbours=n, globals=count):
            return m < count or q < count or q // block - n <= m // block <= q // block + n
    return {"near": near, "far": far, "both": near or far, "heads": near if head < HEADS // 2 else far}[pattern.share]


def by_hand(q: Any, k: Any, v: Any, pattern: Any, segments: Any, bias: Any, *, causal: bool) -> np.ndarray:
    out = np.zeros(q.shape)
    groups = q.shape[2] // k.shape[2]
    for b, i, h in product(range(q.shape[0]), range(q.shape[1]), range(q.shape[2])):
        keys = [
            m
            for m in range(k.shape[1])
            if sees(pattern, i, m, h)
            and (m <= i or not causal)
            and segments[b, m] == segments[b, i]
            and segments[b, m] > 0
        ]
        if not keys:
            continue
        scores = np.array([q[b, i, h] @ k[b, m, h // groups] / WIDTH**0.5 for m in keys])
        scores = scores + (0 if bias is None else bias[h, i, keys])
        shares = np.exp(scores - scores.max())
        out[b, i, h] = shares / shares.sum() @ v[b, keys, h // groups]
    return out


def case(length: int, kv_heads: int, packing: str) -> tuple[np.ndarray, ...]:
    rng = np.random.default_rng(0)
    segments = {
        "whole": np.ones((BATCH, length), int),
        "packed": np.sort(rng.integers(1, 4, (BATCH, length))),
        "padded": np.where(np.arange(length) < [[length - 5], [length // 2]], 1, 0),
    }[packing]
    q = rng.normal(size=(BATCH, length, HEADS, WIDTH)).astype(np.float32)
    k, v = rng.normal(size=(2, BATCH, length, kv_heads, WIDTH)).astype(np.float32)
    return q, k, v, segments


def alibi(query: jax.Array, key: jax.Array) -> jax.Array:
    return -jnp.arange(1, HEADS + 1)[:, None, None] * jnp.abs(query[:, None] - key[None]) / 10


KINDS = [
    Dense(),
    Local(window=7),
    *(Strided(stride=6, share=share) for share in ("near", "far", "both", "heads")),
    *(Fixed(stride=8, summary=2, share=share) for share in ("near", "far", "both", "heads")),
    BlockGlobal(block=4, neighbours=1, globals=3),
]
SOME = (0, 1, 4, 9, 10)
"""Of KINDS, those that differ in shape: a square, a band, a union, halves of the heads, global tokens."""


def slow_but(cases: Any, kinds: Any, place: int) -> list[Any]:
    """All cases, those of the other kinds among the slow tests: each compiles for seconds."""
    chosen = [kinds[n] for n in SOME]
    return [case if case[place] in chosen else pytest.param(*case, marks=pytest.mark.slow) for case in cases]


CASES = [
    *product([48], KINDS, ["packed"], [True]),
    *(pytest.param(48, kind, "packed", False, marks=pytest.mark.slow) for kind in KINDS),
    *slow_but(product([61], KINDS, ["padded"], [True]), KINDS, 1),
    *product([61], [Local(window=16), KINDS[-1]], ["whole"], [False]),
]


@pytest.mark.parametrize(("length", "pattern", "packing", "causal"), CASES)
def test_every_form_equals_the_definition(
    length: int, pattern: Any, packing: str, causal: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Lengths that do and do not divide the block, grouped heads, a bias, packing and padding; values and gradients."""
    monkeypatch.setattr(kernels, "SMALLEST_BLOCK", 8)
    monkeypatch.setattr(shapes, "SMALLEST_STEP", 8)
    q, k, v, segments = case(length, 2, packing)
    places = TokenPositions(jnp.arange(length), jnp.asarray(segments))
    other = TokenPositions(jnp.arange(length), jnp.asarray(segments))
    bias = np.asarray(alibi(np.arange(length), np.arange(length)))
    expected = by_hand(q, k, v, pattern, segments, bias, causal=causal)
    real = (segments > 0)[..., None, None]
    # Queries and keys that are not one row are computed as a square, whole or in chunks.
    views = {
        name: AttentionContext(places, keys, causal, bias=alibi) for name, keys in (("whole", other), ("parts", places))
    }
    assert isinstance(pattern, Dense) or kernels.select_shapes(pattern.of_heads(HEADS)[0][0], length, views["parts"])
    gradients = {}
    names = ["whole", "parts"] + ["chunks"] * (length > 48)
    for name in names:
        if name == "chunks":
            monkeypatch.setattr(shapes, "WHOLE_SQUARE", 16)
            monkeypatch.setattr(shapes, "CHUNK_BYTES", 4 * BATCH * HEADS * length * 10)

        def total(q: jax.Array, k: jax.Array, v: jax.Array, name: str = name) -> tuple[jax.Array, jax.Array]:
            view = views["parts" if name == "chunks" else name]
            out = attend(q, k, v, pattern, view, AttentionSettings()) * real
            return jnp.sum(jnp.sin(out)), out

        (_, found), gradients[name] = jax.jit(jax.value_and_grad(total, (0, 1, 2), has_aux=True))(q, k, v)
        np.testing.assert_allclose(found, expected * real, atol=1e-5, err_msg=name)
        for one, whole in zip(gradients[name], gradients["whole"], strict=True):
            np.testing.assert_allclose(one, whole, atol=1e-5, err_msg=name)


COUNTED = [
    # Of a causal row of n: a band of w without its corner; columns of n/s, each a triangle; blocks of s, each a
    # triangle; c summaries of each earlier block, and those of the own block up to the query.
    (Dense(), lambda n: n * n / 2),
    (Local(window=48), lambda n: 48 * n - 48 * 47 / 2),
    (Strided(stride=32, share="near"), lambda n: 33 * n - 33 * 32 / 2),
    (Strided(stride=32, share="far"), lambda n: 32 * (n / 32) * (n / 32 + 1) / 2),
    (Strided(stride=32, share="both"), lambda n: 33 * n - 33 * 16 + n * (n / 32 + 1) / 2 - n - (n - 32)),
    (Strided(stride=32), lambda n: (33 * n - 33 * 16 + n * (n / 32 + 1) / 2) / 2),
    (Fixed(stride=48, summary=4, share="near"), lambda n: n * 49 / 2),
    (Fixed(stride=48, summary=4, share="far"), lambda n: 4 * 48 * (n / 48) * (n / 48 - 1) / 2 + n / 48 * 10),
]


@pytest.mark.parametrize(("pattern", "by_hand"), COUNTED, ids=[str(pattern) for pattern, _ in COUNTED])
def test_pairs_are_counted_as_by_hand(pattern: Any, by_hand: Any) -> None:
    assert pattern.pairs(1440, causal=True) == pytest.approx(by_hand(1440), rel=1e-6)
    assert pattern.pairs(11520, causal=True) == pytest.approx(by_hand(11520), rel=0.02)  # a sample of the queries


def test_a_prefix_is_seen_both_ways_inside_a_band(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels, "SMALLEST_BLOCK", 8)
    q, k, v, segments = case(48, 4, "whole")
    prefix = jnp.asarray(np.arange(48) < [[20], [9]])
    places = TokenPositions(jnp.arange(48), jnp.asarray(segments), prefix)
    view, pattern = AttentionContext(places, places, causal=True), Local(window=7)
    found = attend(q, k, v, pattern, view, AttentionSettings())
    expected, _ = shapes.dense(AttentionInputs(q, k, v, view, AttentionSettings()), pattern.allowed)
    np.testing.assert_allclose(found, expected, atol=1e-5)


def flops(pattern: Any, length: int, *, causal: bool = True) -> float:
    q, k, v, segments = case(length, 4, "whole")
    places = TokenPositions(jnp.arange(length), jnp.asarray(segments))
    run = jax.jit(
        lambda q, k, v: attend(q, k, v, pattern, AttentionContext(places, places, causal), AttentionSettings())
    )
    return run.lower(q, k, v).compile().cost_analysis()["flops"]


def test_work_is_in_proportion_to_the_pairs_that_are_seen() -> None:
    """Counted by XLA: a band of twice the length is twice the work; every sparse kind is far below the square.

    Of a causal square in 8 steps, (1 + 2 + … + 8) / 64 is computed.
    """
    short, long = (flops(Local(window=64), length) for length in (512, 1024))
    assert long / short == pytest.approx(2.0, rel=0.1)
    whole = flops(Dense(), 1024, causal=False)
    assert flops(Dense(), 1024) / whole == pytest.approx(36 / 64, rel=0.05)
    kinds = (Local(window=64), Strided(stride=32, share="far"), Fixed(stride=64, share="both"), BlockGlobal(block=64))
    for kind, bound in zip(kinds, (0.2, 0.1, 0.35, 0.3), strict=True):
        assert flops(kind, 1024) < bound * whole, kind


def test_a_long_square_is_never_whole_in_memory() -> None:
    """32k tokens, forward and backward, one head: the square alone would be 4 GiB."""
    length = 32768
    places = TokenPositions(jnp.arange(length), jnp.ones((1, length), jnp.int32))
    view = AttentionContext(places, places, causal=True)
    shape = jax.ShapeDtypeStruct((1, length, 1, 64), jnp.float32)
    loss = lambda q, k, v: attend(q, k, v, Dense(), view, AttentionSettings()).sum()  # noqa: E731
    compiled = jax.jit(jax.grad(loss, (0, 1, 2))).lower(shape, shape, shape).compile()
    memory = compiled.memory_analysis()
    assert memory.temp_size_in_bytes + memory.output_size_in_bytes + memory.argument_size_in_bytes < 2 * 2**30


@pytest.mark.parametrize("pattern", [Dense(), Local(window=64), Strided(stride=16, share="both")])
def test_dropout_keeps_its_share_and_its_mean(pattern: Any) -> None:
    length = 400
    q, k, _, segments = case(length, 4, "whole")
    places = TokenPositions(jnp.arange(length), jnp.asarray(segments))
    view, ones = AttentionContext(places, places, causal=True), jnp.ones((BATCH, length, 4, WIDTH))
    run = jax.jit(lambda key: attend(q, k, ones, pattern, view, AttentionSettings(dropout=0.3), key))
    out = run(jax.random.key(0))
    assert float(out.mean()) == pytest.approx(1.0, abs=0.02)
    assert float(out.std()) > 0.05


MATRIX = [
    # A bias under XLA is part of the test above.
    *slow_but(product(("xla",), range(len(KINDS)), ("packed",), ("prefix",)), range(len(KINDS)), 1),
    *slow_but(product(("splash",), range(len(KINDS)), ("packed",), ("none",)), range(len(KINDS)), 1),
    *product(("splash",), range(len(KINDS)), ("packed",), ("bias", "prefix")),
    *product(("cudnn",), range(len(KINDS)), ("packed",), ("none", "bias", "prefix")),
    ("splash", 1, "padded", "none"),
]


@pytest.mark.parametrize(("kernel", "kind", "packing", "extra"), MATRIX)
def test_every_kernel_equals_dense_or_is_refused_by_name(
    kernel: Any, kind: int, packing: str, extra: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Kernel × mask × packing × positions, as if on the platform of the kernel; splash runs in Pallas's interpreter."""
    pattern, length, of = KINDS[kind], 128, {"xla": "cpu", "splash": "tpu", "cudnn": "gpu"}[kernel]
    dtype = "bfloat16" if kernel == "cudnn" else "float32"
    facts = KernelRequirements(length, WIDTH, dtype, causal=True, bias=extra == "bias", prefix=extra == "prefix")
    blind = any(kind.blind for kind, _ in pattern.of_heads(HEADS))
    union = any(len(kind.parts(causal=True)) > 1 for kind, _ in pattern.of_heads(HEADS))
    if kernel != "xla" and (extra != "none" or blind or (kernel == "cudnn" and union)):
        with pytest.raises(ValueError, match=f"model.kernel={kernel} cannot compute this attention: "):
            choose_kernel(pattern, facts, kernel, of)
        return
    assert choose_kernel(pattern, facts, kernel, of)[0] == kernel
    if kernel == "cudnn":
        return  # its values are compared where there is a GPU, below
    q, k, v, segments = case(length, 2, packing)
    prefix = jnp.asarray(np.arange(length) < [[20], [9]]) if extra == "prefix" else None
    places = TokenPositions(jnp.arange(length), jnp.asarray(segments), prefix)
    view = AttentionContext(places, places, causal=True, bias=alibi if extra == "bias" else None)
    real = (segments > 0)[..., None, None]

    def total(sides: Any, form: Any) -> tuple[jax.Array, jax.Array]:
        out = form(*sides) * real
        return jnp.sum(jnp.sin(out)), out

    def dense(q: Any, k: Any, v: Any) -> jax.Array:
        apart = AttentionContext(
            TokenPositions(jnp.arange(length), jnp.asarray(segments), prefix), places, causal=True, bias=view.bias
        )
        return attend(
            q, k, v, pattern, apart, AttentionSettings()
        )  # a square, equal to the definition in the test above

    run = jax.value_and_grad(total, has_aux=True)
    with monkeypatch.context() as patch:
        patch.setattr(kernels, "platform", lambda: of)
        patch.setattr(kernels, "splash", partial(splash, interpret=True))
        form = lambda q, k, v: attend(q, k, v, pattern, view, AttentionSettings(kernel=kernel))  # noqa: E731
        (_, found), grads = jax.jit(lambda sides: run(sides, form))((q, k, v))
    (_, expected), wanted = jax.jit(lambda sides: run(sides, dense))((q, k, v))
    np.testing.assert_allclose(found, expected, atol=1e-5)
    for one, whole in zip(grads, wanted, strict=True):
        np.testing.assert_allclose(one, whole, atol=1e-5, rtol=1e-6)  # of gradients up to 50


def test_the_platform_chooses_its_kernel_and_says_why() -> None:
    facts = KernelRequirements(2048, 64, "bfloat16", causal=True)
    assert choose_kernel(Dense(), facts, "auto", "tpu") == ("splash", "the kernel for tpu")
    assert choose_kernel(Local(window=256), facts, "auto", "gpu") == ("cudnn", "the kernel for gpu")
    assert choose_kernel(Dense(), facts, "auto", "cpu")[0] == "xla"
    odd = KernelRequirements(2000, 64, "bfloat16", causal=True)
    assert choose_kernel(Dense(), odd, "auto", "tpu") == ("xla", "not splash: length 2000 is not a multiple of 128")
    with pytest.raises(ValueError, match="it is for TPUs, not for cpu"):
        choose_kernel(Dense(), facts, "splash", "cpu")


def test_a_program_lowered_for_a_tpu_on_this_machine_has_the_tpus_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    """The mesh says what is compiled for, not the process: here one of abstract TPUs."""
    device = jax.sharding.AbstractDevice(device_kind="TPU v5", num_cores=1, platform="tpu")
    mesh = jax.sharding.AbstractMesh((2, 1, 1), ("data", "fsdp", "tensor"), abstract_device=device)
    with jax.sharding.use_abstract_mesh(mesh):
        assert platform() == "tpu"
    assert platform() == "cpu"
    monkeypatch.setattr(kernels, "platform", lambda: "tpu")
    q, k, v, segments = case(256, 2, "packed")
    places = TokenPositions(jnp.arange(256), jnp.asarray(segments))
    run = jax.jit(
        lambda q, k, v: attend(
            q, k, v, Local(window=64), AttentionContext(places, places, causal=True), AttentionSettings()
        )
    )
    text = run.trace(q, k, v).lower(lowering_platforms=("tpu",)).as_text()
    assert "tpu_custom_call" in text


@pytest.mark.skipif(jax.default_backend() != "gpu", reason="cuDNN needs a GPU")
@pytest.mark.parametrize("pattern", [Dense(), Local(window=64)])
def test_cudnn_equals_dense_on_a_gpu(pattern: Any) -> None:
    rng = np.random.default_rng(0)
    q, k, v = (jnp.asarray(rng.normal(size=(2, 512, 4, 64)), jnp.bfloat16) for _ in range(3))
    places = TokenPositions(jnp.arange(512), jnp.asarray(np.sort(rng.integers(1, 4, (2, 512)))))
    view = AttentionContext(places, places, causal=True)

    def loss(sides: Any, kernel: Any) -> jax.Array:
        return jnp.sum(jnp.sin(attend(*sides, pattern, view, AttentionSettings(kernel=kernel)).astype(jnp.float32)))

    found, wanted = (jax.jit(jax.value_and_grad(lambda s, n=name: loss(s, n)))((q, k, v)) for name in ("cudnn", "xla"))
    # bfloat16 has eight bits: 1/256 of values around one.
    for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True):
        np.testing.assert_allclose(one.astype(jnp.float32), other.astype(jnp.float32), atol=3e-2, rtol=2e-2)
