"""Every form of attention against attention written out in NumPy from the definition of its mask."""

from collections.abc import Callable, Iterable
from dataclasses import replace
from itertools import product
from typing import TypeAlias, cast

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from _pytest.mark import ParameterSet
from jaxtyping import Array, Bool, Float, Int

from t5x_lite.models.attention.blocked import dense_attention, select_parts
from t5x_lite.models.attention.context import (
    AttentionContext,
    AttentionInputs,
    AttentionSettings,
    BlockLimits,
    KernelName,
    TokenPositions,
)
from t5x_lite.models.attention.kernels import attend, choose_kernel, planned_kernels
from t5x_lite.models.attention.kinds import AttentionKind, BlockGlobal, Dense, Fixed, Local, Strided
from t5x_lite.models.attention.requirements import KernelRequirements
from t5x_lite.models.config import ModelConfig
from t5x_lite.models.sharding import target_platform

Sides: TypeAlias = tuple[Float[Array, "b l h k"], Float[Array, "b m n k"], Float[Array, "b m n k"]]
"""Queries, keys and values."""

BATCH = 2
HEADS = 4
WIDTH = 8
SMALL_BLOCKS = BlockLimits(min_block=8, min_causal_step=8)


def is_allowed(kind: AttentionKind, query: int, key: int, head: int) -> bool:
    """Return whether a query attends to a key, from the papers.

    A window of w counts the query itself; Child et al. 2019, §4.2, for two sets.
    """
    match kind:
        case Dense():
            return True
        case Local(window=window):
            return abs(query - key) <= window - 1
        case Strided(stride=stride, share=share):
            near = abs(query - key) <= stride
            far = abs(query - key) % stride == 0
        case Fixed(stride=stride, summary=summary, share=share):
            near = query // stride == key // stride
            far = key % stride >= stride - summary
        case BlockGlobal(block=block, neighbours=neighbours, globals=count):
            in_band = abs(query // block - key // block) <= neighbours
            return key < count or query < count or in_band
    of_head = near if head < HEADS // 2 else far
    return {"near": near, "far": far, "both": near or far, "heads": of_head}[share]


def allowed_keys(
    kind: AttentionKind, segments: Int[np.ndarray, "b l"], row: int, query: int, head: int, *, causal: bool
) -> list[int]:
    """Return the keys that a query attends to."""
    visible_keys = segments.shape[1]
    if causal:
        visible_keys = query + 1
    keys = []
    for key in range(visible_keys):
        in_document = segments[row, key] == segments[row, query] and segments[row, key] > 0
        if in_document and is_allowed(kind, query, key, head):
            keys.append(key)
    return keys


def attention_by_hand(
    q: Float[np.ndarray, "b l h k"],
    k: Float[np.ndarray, "b l n k"],
    v: Float[np.ndarray, "b l n k"],
    kind: AttentionKind,
    segments: Int[np.ndarray, "b l"],
    bias: Float[np.ndarray, "h l l"],
    *,
    causal: bool,
) -> Float[np.ndarray, "b l h k"]:
    """Compute attention query by query; one without any key is 0."""
    out = np.zeros(q.shape)
    heads_per_kv_head = q.shape[2] // k.shape[2]
    for row, query, head in np.ndindex(q.shape[:3]):
        keys = allowed_keys(kind, segments, row, query, head, causal=causal)
        if not keys:
            continue
        kv_head = head // heads_per_kv_head
        scores = k[row, keys, kv_head] @ q[row, query, head] / WIDTH**0.5 + bias[head, query, keys]
        weights = np.exp(scores - scores.max())
        out[row, query, head] = weights / weights.sum() @ v[row, keys, kv_head]
    return out


def random_arrays(length: int, kv_heads: int, packing: str) -> tuple[np.ndarray, ...]:
    """Return queries, keys, values, and the segments of rows.

    A row is one document (`whole`), packed with several, or padded.
    """
    rng = np.random.default_rng(0)
    segments = {
        "whole": np.ones((BATCH, length), int),
        "packed": np.sort(rng.integers(1, 4, (BATCH, length))),
        "padded": (np.arange(length) < np.array([[length - 5], [length // 2]])).astype(int),
    }[packing]
    q = rng.normal(size=(BATCH, length, HEADS, WIDTH)).astype(np.float32)
    k, v = rng.normal(size=(2, BATCH, length, kv_heads, WIDTH)).astype(np.float32)
    return q, k, v, segments


def self_context(
    segments: Int[np.ndarray, "b l"],
    *,
    causal: bool,
    prefix: Bool[Array, "b l"] | None = None,
    offset_bias: Callable[[Array], Array] | None = None,
) -> AttentionContext:
    """Return the context of self-attention."""
    positions = TokenPositions(np.arange(segments.shape[1]), jnp.asarray(segments), prefix)
    return AttentionContext(positions, positions, causal, self_attention=True, offset_bias=offset_bias)


def linear_bias(offset: Int[Array, "..."]) -> Float[Array, "h ..."]:
    """Return a bias that falls with the distance, with another slope for each head."""
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
"""Positions in KINDS of those that differ in shape: a square, a band, a union, halves of the heads, global tokens."""


def mark_slow(cases: Iterable[tuple[object, ...]], fast: Iterable[object], place: int) -> list[ParameterSet]:
    """Mark the cases as slow whose item at a place is none of the fast ones: each case compiles for seconds."""
    fast_items = list(fast)
    marked = []
    for case in cases:
        marks = () if case[place] in fast_items else pytest.mark.slow
        marked.append(pytest.param(*case, marks=marks))
    return marked


FAST_KINDS = [KINDS[number] for number in FAST]
CASES = [
    *product([48], KINDS, ["packed"], [True]),
    *(pytest.param(48, kind, "packed", False, marks=pytest.mark.slow) for kind in KINDS),
    *mark_slow(product([61], KINDS, ["padded"], [True]), FAST_KINDS, 1),
    *product([61], [Local(window=16), KINDS[-1]], ["whole"], [False]),
]


@pytest.mark.parametrize(("length", "kind", "packing", "causal"), CASES)
def test_every_form_of_the_computation_equals_the_definition(
    length: int, kind: AttentionKind, packing: str, causal: bool
) -> None:
    """Lengths that do and do not divide the block, grouped heads, a bias, packing and padding; values and gradients."""
    q, k, v, segments = random_arrays(length, 2, packing)
    bias = np.asarray(linear_bias(jnp.arange(length)[None] - jnp.arange(length)[:, None]))
    expected = attention_by_hand(q, k, v, kind, segments, bias, causal=causal)
    is_token = (segments > 0)[..., None, None]
    context = self_context(segments, causal=causal, offset_bias=linear_bias)
    first_group, _ = kind.head_groups(HEADS)[0]
    inputs = AttentionInputs(q, k, v, context, AttentionSettings(limits=SMALL_BLOCKS))
    assert isinstance(kind, Dense) or select_parts(inputs, first_group)

    chunk_limits = replace(SMALL_BLOCKS, max_scores=16, chunk_bytes=4 * BATCH * HEADS * length * 10)
    forms = {
        # Attention between other tokens than those of one row is computed in one piece.
        "one piece": (replace(context, self_attention=False), SMALL_BLOCKS),
        "parts": (context, SMALL_BLOCKS),
        "chunks": (context, chunk_limits),
    }
    if length <= 48:
        del forms["chunks"]
    gradients = {}
    for form, (form_context, limits) in forms.items():
        compute = gradient_function(kind, form_context, AttentionSettings(limits=limits), is_token)
        (_, out), gradients[form] = compute((q, k, v))
        np.testing.assert_allclose(out, expected * is_token, atol=1e-5, err_msg=form)
        for gradient, expected_gradient in zip(gradients[form], gradients["one piece"], strict=True):
            np.testing.assert_allclose(gradient, expected_gradient, atol=1e-5, err_msg=form)


def gradient_function(
    kind: AttentionKind, context: AttentionContext, settings: AttentionSettings, is_token: Bool[np.ndarray, "b l 1 1"]
) -> Callable[[Sides], tuple[tuple[Array, Array], Sides]]:
    """Return a compiled function from queries, keys and values to the outputs of tokens, and to gradients.

    Its result is `((total, outputs), gradients)`, where the total is the sum of the sines of the outputs.
    """

    def total(sides: Sides) -> tuple[Float[Array, ""], Float[Array, "b l h k"]]:
        out = attend(*sides, kind, context, settings).astype(jnp.float32) * is_token
        return jnp.sum(jnp.sin(out)), out

    return jax.jit(jax.value_and_grad(total, has_aux=True))


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
def test_pairs_are_counted_as_by_hand(kind: AttentionKind, count: Callable[[int], float]) -> None:
    assert kind.pairs(1440, causal=True) == pytest.approx(count(1440), rel=1e-6)
    # Of a long row a sample of the queries is counted.
    assert kind.pairs(11520, causal=True) == pytest.approx(count(11520), rel=0.02)


def test_a_prefix_is_visible_in_both_directions_inside_a_band() -> None:
    q, k, v, segments = random_arrays(48, 4, "whole")
    prefix = jnp.asarray(np.arange(48) < [[20], [9]])
    context = self_context(segments, causal=True, prefix=prefix)
    kind = Local(window=7)
    out = attend(q, k, v, kind, context, AttentionSettings(limits=SMALL_BLOCKS))
    expected, _ = dense_attention(AttentionInputs(q, k, v, context, AttentionSettings()), kind.allowed)
    np.testing.assert_allclose(out, expected, atol=1e-5)


def count_flops(kind: AttentionKind, length: int, *, causal: bool = True) -> float:
    """Return the FLOPs of attention as XLA counts them."""
    q, k, v, segments = random_arrays(length, 4, "whole")
    context = self_context(segments, causal=causal)
    run = jax.jit(lambda q, k, v: attend(q, k, v, kind, context, AttentionSettings()))
    return run.lower(q, k, v).compile().cost_analysis()["flops"]


def test_work_is_proportional_to_the_allowed_pairs() -> None:
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


def test_the_scores_of_a_long_row_are_never_in_memory_at_once() -> None:
    """32k tokens, forward and backward, one head: the square alone would be 4 GiB."""
    length = 32768
    context = self_context(np.ones((1, length), int), causal=True)
    shape = jax.ShapeDtypeStruct((1, length, 1, 64), jnp.float32)

    def total(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
        return attend(q, k, v, Dense(), context, AttentionSettings()).sum()

    memory = jax.jit(jax.grad(total, (0, 1, 2))).lower(shape, shape, shape).compile().memory_analysis()
    assert memory.temp_size_in_bytes + memory.output_size_in_bytes + memory.argument_size_in_bytes < 2 * 2**30


@pytest.mark.parametrize("kind", [Dense(), Local(window=64), Strided(stride=16, share="both")])
def test_dropout_preserves_the_mean(kind: AttentionKind) -> None:
    length = 400
    q, k, _, segments = random_arrays(length, 4, "whole")
    context = self_context(segments, causal=True)
    ones = jnp.ones((BATCH, length, 4, WIDTH))
    run = jax.jit(lambda key: attend(q, k, ones, kind, context, AttentionSettings(dropout=0.3), key))
    out = run(jax.random.key(0))
    assert float(out.mean()) == pytest.approx(1.0, abs=0.02)
    assert float(out.std()) > 0.05


PLATFORMS = {"xla": "cpu", "splash": "tpu", "cudnn": "gpu", "flash": "gpu", "flash on tpu": "tpu"}
MATRIX = [
    # A bias under XLA is part of the test above.
    *mark_slow(product(("xla",), range(len(KINDS)), ("packed",), ("prefix",)), FAST, 1),
    *mark_slow(product(("splash",), range(len(KINDS)), ("packed",), ("none",)), FAST, 1),
    *product(("splash",), range(len(KINDS)), ("packed",), ("bias", "prefix")),
    *product(("cudnn",), range(len(KINDS)), ("packed",), ("none", "bias", "prefix")),
    *product(("flash",), range(len(KINDS)), ("packed",), ("none", "bias", "prefix")),
    *product(("xla", "splash"), (1,), ("packed",), ("softcap",)),
    *product(("cudnn", "flash"), range(len(KINDS)), ("packed",), ("softcap",)),
    *product(("cudnn", "flash"), (0, 1), ("packed",), ("sinks",)),
    ("splash", 1, "padded", "none"),
    ("flash", 1, "padded", "bias"),
    ("flash on tpu", 0, "packed", "bias"),
    ("flash on tpu", 1, "padded", "prefix"),
]


def is_supported(kernel: str, kind: AttentionKind, extra: str) -> bool:
    """Return whether a kernel computes a kind of attention with a bias, a prefix, a softcap or sinks."""
    groups = [group for group, _ in kind.head_groups(HEADS)]
    if kernel == "splash":
        return extra in {"none", "softcap"} and not any(group.allows_empty_rows for group in groups)
    if kernel == "cudnn":
        return extra == "none" and isinstance(kind, Dense)
    if kernel == "flash":
        return extra not in {"softcap", "sinks"} and isinstance(kind, Dense | Local)
    return True


@pytest.mark.parametrize(("name", "number", "packing", "extra"), MATRIX)
def test_every_kernel_equals_dense_attention_or_is_refused_by_name(
    name: str, number: int, packing: str, extra: str
) -> None:
    """Kernel × mask × packing × positions, as if on the platform of the kernel; Pallas kernels run interpreted."""
    kind = KINDS[number]
    length = 128
    platform = PLATFORMS[name]
    kernel = cast(KernelName, name.partition(" ")[0])
    dtype = "float32" if kernel in {"xla", "splash"} else "bfloat16"
    required = KernelRequirements(length, WIDTH, dtype, causal=True, bias=extra == "bias", prefix=extra == "prefix")
    required = replace(required, softcap=extra == "softcap", sinks=extra == "sinks")
    if not is_supported(kernel, kind, extra):
        with pytest.raises(ValueError, match=f"model.kernel={kernel} cannot compute this attention: "):
            choose_kernel(kind, required, kernel, platform)
        return
    assert choose_kernel(kind, required, kernel, platform)[0] == kernel
    if kernel == "cudnn":
        return  # its values are compared where there is a GPU, below

    q, k, v, segments = random_arrays(length, 2, packing)
    context = self_context(segments, causal=True)
    if extra == "prefix":
        context = self_context(segments, causal=True, prefix=jnp.asarray(np.arange(length) < [[20], [9]]))
    elif extra == "bias":
        context = self_context(segments, causal=True, offset_bias=linear_bias)
    is_token = (segments > 0)[..., None, None]
    softcap = 1.5 if extra == "softcap" else None
    settings = AttentionSettings(kernel=kernel, platform=platform, interpret=True, softcap=softcap)
    sides = tuple(jnp.asarray(x, dtype) for x in (q, k, v))
    (_, out), gradients = gradient_function(kind, context, settings, is_token)(sides)
    # Computed in one piece by XLA, which equals the definition in the test above.
    one_piece = replace(context, self_attention=False)
    float32_sides = tuple(x.astype(jnp.float32) for x in sides)
    compute_expected = gradient_function(kind, one_piece, AttentionSettings(softcap=softcap), is_token)
    (_, expected), expected_gradients = compute_expected(float32_sides)
    if dtype == "bfloat16":
        tolerance = {"atol": 3e-2, "rtol": 2e-2}  # eight bits: 1/256 of values around one
    else:
        tolerance = {"atol": 1e-5, "rtol": 1e-6}  # of gradients up to 50
    np.testing.assert_allclose(out, expected, **tolerance)
    for gradient, expected_gradient in zip(gradients, expected_gradients, strict=True):
        np.testing.assert_allclose(gradient.astype(jnp.float32), expected_gradient, **tolerance)


def test_each_platform_has_its_kernel_and_the_reason_is_given() -> None:
    required = KernelRequirements(2048, 64, "bfloat16", causal=True)
    assert choose_kernel(Dense(), required, "auto", "tpu") == ("splash", "the kernel for tpu")
    assert choose_kernel(Dense(), required, "auto", "gpu") == ("cudnn", "the kernel for gpu")
    kernel, reason = choose_kernel(Local(window=256), required, "auto", "gpu")
    assert (kernel, reason) == ("flash", "not cudnn: it computes dense attention only")
    assert choose_kernel(Dense(), required, "auto", "cpu")[0] == "xla"
    odd = replace(required, length=2000)
    assert choose_kernel(Dense(), odd, "auto", "tpu") == ("flash", "not splash: length 2000 is not a multiple of 128")
    with pytest.raises(ValueError, match="it is for TPUs, not for cpu"):
        choose_kernel(Dense(), required, "splash", "cpu")


def test_splash_is_not_chosen_where_positions_are_known_at_run_time() -> None:
    """As in a ring of the cache, whose keys are in order and begin at any position."""
    required = KernelRequirements(256, 64, "bfloat16", causal=True, in_order=False, traced_positions=True)
    kernel, reason = choose_kernel(Local(window=128), required, "auto", "tpu")
    assert kernel == "xla"
    assert "not splash: it needs positions that are known when the program is compiled" in reason


@pytest.mark.parametrize(
    ("kernel", "platform", "length"), [("splash", "tpu", 96), ("cudnn", "gpu", 1), ("flash", "cpu", 128)]
)
def test_rows_that_training_has_not_are_computed_as_under_auto(kernel: KernelName, platform: str, length: int) -> None:
    """As those of evaluation and prompts, which are shorter than those that the kernel was checked for."""
    required = KernelRequirements(length, 64, "bfloat16", causal=True)
    with pytest.raises(ValueError, match=f"model.kernel={kernel} cannot compute this attention"):
        choose_kernel(Dense(), required, kernel, platform)
    by_default = choose_kernel(Dense(), required, "auto", platform)
    assert choose_kernel(Dense(), required, kernel, platform, is_binding=False) == by_default
    if platform == "cpu":
        q, k, v, segments = random_arrays(23, 2, "packed")
        context = self_context(segments, causal=True)
        outs = [attend(q, k, v, Dense(), context, AttentionSettings(kernel=name)) for name in (kernel, "xla")]
        np.testing.assert_array_equal(*outs)


def test_cudnn_is_not_chosen_for_rows_that_devices_share() -> None:
    device = jax.sharding.AbstractDevice(device_kind="NVIDIA H200", num_cores=1, platform="gpu")
    mesh = jax.sharding.AbstractMesh((1, 2), ("data", "context"), abstract_device=device)
    required = KernelRequirements(2048, 64, "bfloat16", causal=True)
    with jax.sharding.use_abstract_mesh(mesh):
        kernel, reason = choose_kernel(Dense(), required, "auto", "gpu")
    assert (kernel, reason) == ("flash", "not cudnn: it does not support rows that devices share (mesh.context)")


def test_cudnn_is_refused_for_documents_in_pipelines() -> None:
    device = jax.sharding.AbstractDevice(device_kind="NVIDIA H200", num_cores=1, platform="gpu")
    mesh = jax.sharding.AbstractMesh((1, 2), ("data", "pipeline"), abstract_device=device)
    required = KernelRequirements(2048, 64, "bfloat16", causal=True)
    with jax.sharding.use_abstract_mesh(mesh):
        assert choose_kernel(Dense(), required, "auto", "gpu")[0] == "cudnn"
        with_documents = replace(required, documents=True)
        assert choose_kernel(Dense(), with_documents, "auto", "gpu")[0] == "flash"
        with pytest.raises(ValueError, match="several documents in stages"):
            choose_kernel(Dense(), with_documents, "cudnn", "gpu")


def test_layers_of_one_kind_with_other_mixers_have_kernels_of_their_own() -> None:
    """Latent attention has wider keys than flash attention supports."""
    layers = [{}, {"mixer": {"latent_attention": {"rank": 16, "query_rank": None}}}]
    config = ModelConfig(layers=2, embed=128, heads=1, positions="rotary", pattern=layers, compute="bfloat16")
    planned = planned_kernels(config, 2048, "gpu")["dense"]
    assert planned.startswith("cudnn (the kernel for gpu); ")
    assert "head_dim 192 is over 128" in planned


def test_each_stack_and_cross_attention_have_the_kernel_of_their_lengths() -> None:
    """Of splash an encoder of 512 tokens is; 114 targets are no multiple of 128, and cross-attention is never."""
    sizes = {"layers": 2, "embed": 128, "heads": 2, "positions": "rotary", "compute": "bfloat16"}
    config = ModelConfig(family="encoder_decoder", **sizes)
    planned = planned_kernels(config, 512, "tpu", targets=114)
    assert planned["dense"].startswith("splash (the kernel for tpu); flash (not splash: length 114 is not a multiple")
    assert planned["cross-attention"].startswith("flash (not splash: ")
    with pytest.raises(ValueError, match="length 114 is not a multiple of 128"):
        planned_kernels(config.model_copy(update={"kernel": "splash"}), 512, "tpu", targets=114)
    unfused = planned_kernels(config.model_copy(update={"kernel": "xla"}), 512, "tpu", targets=114)
    assert unfused == {"dense": "xla (model.kernel)", "cross-attention": "xla (model.kernel)"}


def test_a_kernel_is_refused_for_attention_dropout_with_the_setting_that_avoids_it() -> None:
    config = ModelConfig(layers=2, embed=512, heads=2, positions="rotary", compute="bfloat16", dropout=0.1)
    assert planned_kernels(config, 512, "tpu")["dense"] == (
        "xla (not splash: it does not support attention dropout (model.attention_dropout=0 is without); not flash: "
        "head_dim 256 is over 128)"
    )
    without = config.model_copy(update={"attention_dropout": 0.0})
    assert planned_kernels(without, 512, "tpu")["dense"] == "splash (the kernel for tpu)"


def test_a_kernel_that_can_compute_cross_attention_is_chosen() -> None:
    cross = KernelRequirements(512, 64, "bfloat16", causal=False, self_attention=False)
    assert choose_kernel(Dense(), cross, "xla", "gpu")[0] == "xla"
    assert choose_kernel(Dense(), cross, "auto", "gpu")[0] == "flash"
    assert choose_kernel(Dense(), cross, "splash", "tpu")[0] == "flash"
    decoding = replace(cross, in_order=False)
    assert choose_kernel(Dense(), decoding, "auto", "gpu")[0] == "xla"


def test_a_program_that_is_compiled_for_a_tpu_on_another_machine_has_the_kernel_of_the_tpu() -> None:
    """The platform is that of the mesh, here of abstract TPUs, and not that of the process."""
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
def test_fused_kernels_equal_dense_attention_on_a_gpu(kernel: KernelName) -> None:
    rng = np.random.default_rng(0)
    sides = tuple(jnp.asarray(rng.normal(size=(2, 512, 4, 64)), jnp.bfloat16) for _ in range(3))
    segments = np.sort(rng.integers(1, 4, (2, 512)))
    context = self_context(segments, causal=True)
    is_token = (segments > 0)[..., None, None]
    results = []
    for chosen_kernel in (kernel, "xla"):
        settings = AttentionSettings(kernel=chosen_kernel)
        (total, _), gradients = gradient_function(Dense(), context, settings, is_token)(sides)
        results.append([total, *gradients])
    for value, expected_value in zip(*results, strict=True):
        # bfloat16 has eight bits: 1/256 of values around one.
        np.testing.assert_allclose(value.astype(jnp.float32), expected_value, atol=3e-2, rtol=2e-2)
