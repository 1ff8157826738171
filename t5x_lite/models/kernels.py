"""Dot-product attention: which keys a query may see, and the forms in which it is computed under that mask.

A *shape* says which pairs are computed at all (the parts of `patterns.py`); a *kernel* computes them: XLA, cuDNN, or,
for a whole call, the Pallas splash kernel.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from t5x_lite.models.config import ALiBi, ModelConfig, Relative
from t5x_lite.models.layers import dropout
from t5x_lite.models.patterns import (
    ATTENTION,
    Allowed,
    AttentionKind,
    Blocks,
    Chosen,
    Columns,
    Dense,
    First,
    Local,
    Part,
)
from t5x_lite.models.sharding import constrain, platform, shards, spec


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Places:
    """Where the tokens of one side of attention stand: `index` in the row (`[l]`), and the segment of each (`[b, l]`).

    Causality goes by `index`; a token sees its own segment alone; segment 0 is padding and is seen by none. Keys in
    `prefix` are seen by earlier queries of their segment too. `at` is the place that an attention kind goes by, where
    rows of unequal length begin at different indices.
    """

    index: Any  # Int[Array, "l"], known while tracing (np.ndarray) where a row looks at itself
    segment_ids: Int[Array, "b l"]
    prefix: Bool[Array, "b l"] | None = None
    at: Int[Array, "b l"] | None = None

    def __getitem__(self, places: Any) -> "Places":
        """Those at some places of the row."""
        take = lambda x: None if x is None else x[:, places]  # noqa: E731
        return Places(self.index[places], self.segment_ids[:, places], take(self.prefix), take(self.at))


@dataclass(frozen=True)
class View:
    """What the layers of one call share: where queries and keys stand, and what their places do to them.

    `rotate` turns queries and new keys by their positions `at`; `bias`, of the `index` of queries and of keys, is added
    to the scores; with `causal` a query sees no later key.
    """

    queries: Places
    keys: Places
    causal: bool
    at: Int[Array, "b l"] | None = None
    rotate: Callable[[Float[Array, "b l h k"], Any], Float[Array, "b l h k"]] = lambda x, at: x
    bias: Callable[[Int[Array, "l"], Int[Array, "m"]], Float[Array, "h l m"]] | None = None

    @property
    def backward(self) -> bool:
        """Whether no query sees a later key."""
        return self.causal and self.keys.prefix is None


Kernel = Literal["auto", "xla", "cudnn", "splash"]


@dataclass(frozen=True)
class Settings:
    """What does not change from call to call: `scale` None is 1/sqrt(head_dim); `kernel` see `choose`."""

    scale: float | None = None
    dropout: float = 0.0
    kernel: Kernel = "auto"


@dataclass(frozen=True)
class Call:
    """One attention: h query heads share n key heads in order."""

    query: Float[Array, "b l h k"]
    key: Float[Array, "b m n k"]
    value: Float[Array, "b m n k"]
    view: View
    settings: Settings
    dropout_key: PRNGKeyArray | None = None

    @property
    def scaled(self) -> Float[Array, "b l h k"]:
        """The query times `scale`."""
        scale = self.settings.scale
        return self.query * (self.query.shape[-1] ** -0.5 if scale is None else scale)

    def of_heads(self, start: int, count: int) -> "Call":
        """The same for some of the heads."""
        h, n = self.query.shape[2], self.key.shape[2]
        shared = slice(start * n // h, max((start + count) * n // h, start * n // h + 1))
        bias, key = self.view.bias, self.dropout_key
        some = None if bias is None else lambda q, k: bias(q, k)[start : start + count]
        return replace(
            self,
            query=self.query[:, :, start : start + count],
            key=self.key[:, :, shared],
            value=self.value[:, :, shared],
            view=replace(self.view, bias=some),
            dropout_key=None if key is None else jax.random.fold_in(key, start),
        )


Result = tuple[Float[Array, "b l h k"], Float[Array, "b l h"]]
"""What a query takes from its keys, and the logarithm of the sum of its exponentiated scores."""

WHOLE_SQUARE = 2**22
"""Scores of one head above this number (2048 · 2048) are made for some queries at a time."""
CHUNK_BYTES = 64 * 2**20
"""What the scores of those queries may take, over the batch and all heads."""
CACHED_BYTES = 16 * 2**20
"""What the scores of blocks may take that are made together."""
SMALLEST_BLOCK = 64
"""Narrower blocks are computed several at a time: smaller products are slower than the work they save."""
NOTHING = float(jnp.finfo(jnp.float32).min)
"""The score of a key that is not seen."""


def attend(
    query: Float[Array, "b l h k"],
    key: Float[Array, "b m n k"],
    value: Float[Array, "b m n k"],
    pattern: AttentionKind,
    view: View,
    settings: Settings,
    dropout_key: PRNGKeyArray | None = None,
) -> Float[Array, "b l h k"]:
    """softmax(scale · q·kᵀ + bias) · v over the keys that may be seen, by the form that does the least work.

    A row that looks at itself is computed in the parts that its pattern names; a square that is large, for some queries
    at a time; what is left, as one square. All give the same values. A query that sees no key is padding, and gets
    something finite; under a pattern that is `blind` it gets 0.

    Raises:
        ValueError: `settings.kernel` cannot compute this; the message says why.
    """
    call = Call(query, key, value, view, settings, dropout_key)
    made, start = [], 0
    for kind, heads in pattern.of_heads(query.shape[2]):
        own = call if heads == query.shape[2] else call.of_heads(start, heads)
        made.append(_attend(own, kind))
        start += heads
    return made[0] if len(made) == 1 else jnp.concatenate(made, axis=2)


def _attend(call: Call, pattern: AttentionKind) -> Float[Array, "b l h k"]:
    kernel, _ = choose(pattern, facts_of(call), call.settings.kernel, platform())
    if kernel == "splash":
        return splash(call, pattern)
    call = replace(call, settings=replace(call.settings, kernel=kernel))
    parts = worthwhile(pattern, call.query.shape[1], call.view)
    if not parts and call.query.shape[1] > 1:  # each part of a row in parts sees the keys of the whole row
        whole = ("batch", None, "kv_heads", None)
        call = replace(call, key=constrain(call.key, *whole), value=constrain(call.value, *whole))
    made = [SHAPES[type(part.shape)](call, part) for part in parts] or [square(call, pattern.allowed)]
    out, log_sum = made[0] if len(made) == 1 else joined(made)
    return jnp.where(log_sum[..., None] > NOTHING / 2, out, 0).astype(out.dtype) if pattern.blind else out


def worthwhile(pattern: AttentionKind, length: int, view: View) -> tuple[Part, ...]:
    """The pattern's parts, where a row looks at itself and they are less than the square."""
    if view.queries is not view.keys:
        return ()
    parts = [
        replace(part, shape=_widened(part.shape)) if isinstance(part.shape, Blocks) else part
        for part in pattern.parts(causal=view.backward)
    ]
    return tuple(parts) if sum(part.shape.pairs(length) for part in parts) < length * length else ()


def _widened(shape: Blocks) -> Blocks:
    return replace(shape, size=shape.size * -(-SMALLEST_BLOCK // shape.size))


def mask(allowed: Allowed, view: View) -> Bool[Array, "b l m"]:
    """Which keys each query may see, of those that an attention kind allows."""
    queries, keys = view.queries, view.keys
    query, key = queries.index[:, None], keys.index[None, :]
    if queries.at is not None and keys.at is not None:
        seen = allowed(queries.at[:, :, None], keys.at[:, None, :])
    else:
        seen = allowed(query, key)[None]
    if view.causal:
        past = (query >= key)[None]
        seen = seen & (past if keys.prefix is None else past | keys.prefix[:, None, :])
    own, other = queries.segment_ids[:, :, None], keys.segment_ids[:, None, :]
    return seen & (own == other) & (other > 0)


def dense(call: Call, allowed: Allowed) -> Result:
    """All scores at once, the softmax in float32."""
    b, l, h, k = call.query.shape
    n = call.key.shape[2]
    grouped = call.scaled.reshape(b, l, n, h // n, k)
    scores = jnp.einsum("blngk,bmnk->bnglm", grouped, call.key, preferred_element_type=jnp.float32)
    if call.view.bias is not None:
        bias = call.view.bias(call.view.queries.index, call.view.keys.index)
        scores = scores + bias.reshape(n, h // n, *bias.shape[1:])
    scores = jnp.where(mask(allowed, call.view)[:, None, None], scores, NOTHING)
    shares = jax.nn.softmax(scores, axis=-1).astype(call.value.dtype)
    shares = dropout(shares, call.settings.dropout, call.dropout_key)
    out = jnp.einsum("bnglm,bmnk->blngk", shares, call.value).reshape(b, l, h, k)
    return out, jnp.moveaxis(jax.nn.logsumexp(scores, axis=-1), -1, 1).reshape(b, l, h)


def cudnn(call: Call, allowed: Allowed) -> Result:
    """`dense` by cuDNN's flash attention: scores stay on the chip, the mask (of all heads) does not."""
    view = call.view
    seen = mask(allowed, view)[:, None]
    causal = view.backward and view.queries is view.keys
    out = jax.nn.dot_product_attention(
        call.query,
        call.key,
        call.value,
        mask=seen,
        scale=call.settings.scale,
        is_causal=causal,
        implementation="cudnn",
    )
    return out, jnp.zeros(out.shape[:3], jnp.float32)  # unions of sets, which need it, are refused


def square(call: Call, allowed: Allowed) -> Result:
    """All pairs; for as many queries at a time as keep scores under `CHUNK_BYTES`, made again in the backward pass."""
    whole = cudnn if call.settings.kernel == "cudnn" else dense
    b, l, h, _ = call.query.shape
    if l * call.key.shape[1] <= WHOLE_SQUARE or l == 1:
        return whole(call, allowed)
    size = max(CHUNK_BYTES // (4 * b * h * call.key.shape[1]), 1)
    count = -(-l // size)

    def parts(x: Array | None, axis: int = 1) -> Array | None:
        if x is None:
            return None
        cut = jnp.pad(x, [(0, count * size - l if n == axis else 0) for n in range(x.ndim)])
        return jnp.moveaxis(cut.reshape(*x.shape[:axis], count, size, *x.shape[axis + 1 :]), axis, 0)

    @jax.checkpoint
    def one(part: tuple[Any, ...]) -> Result:
        query, index, segment_ids, at, key = part
        view = replace(call.view, queries=Places(index, segment_ids, at=at))
        return whole(replace(call, query=query, view=view, dropout_key=key), allowed)

    keys = None if call.dropout_key is None else jax.random.split(call.dropout_key, count)
    places = call.view.queries
    cut = (parts(call.query), parts(places.index, 0), parts(places.segment_ids), parts(places.at), keys)
    out, log_sum = (jnp.moveaxis(x, 0, 1) for x in jax.lax.map(one, cut))
    return out.reshape(b, count * size, h, -1)[:, :l], log_sum.reshape(b, count * size, h)[:, :l]


def blocks(call: Call, part: Part) -> Result:
    """Each block of queries looks at itself and at its neighbours alone; `index` counts from the first neighbour."""
    shape = part.shape
    assert isinstance(shape, Blocks)
    size, before, after = shape.size, shape.before, shape.after
    b, l = call.query.shape[:2]
    count = -(-l // size)

    def cut(x: Array) -> Array:
        """`[b, count, size, …]`, the length padded with zeros."""
        padded = jnp.pad(x, [(0, 0), (0, count * size - l), *[(0, 0)] * (x.ndim - 2)])
        return padded.reshape(b, count, size, *x.shape[2:])

    def merged(x: Array) -> Array:
        return x.reshape(b * count, -1, *x.shape[3:])

    def beside(x: Array) -> Array:
        """`[b·count, (before + 1 + after)·size, …]`: each block and its neighbours."""
        around = jnp.pad(cut(x), [(0, 0), (before, after), *[(0, 0)] * (x.ndim - 1)])
        return merged(jnp.concatenate([around[:, n : n + count] for n in range(before + 1 + after)], axis=2))

    keys, queries = call.view.keys, call.view.queries
    prefix = None if keys.prefix is None else beside(keys.prefix)
    near = Places(jnp.arange((before + 1 + after) * size), beside(keys.segment_ids), prefix)
    own = Places(before * size + jnp.arange(size), merged(cut(queries.segment_ids)))
    view = replace(call.view, queries=own, keys=near)
    own_call = replace(call, query=merged(cut(call.query)), key=beside(call.key), value=beside(call.value), view=view)
    made = by_rows(own_call, part.allowed)
    out, log_sum = (x.reshape(b, count * size, *x.shape[2:])[:, :l] for x in made)
    return out, log_sum


def by_rows(call: Call, allowed: Allowed) -> Result:
    """`square` of many short rows, as many at a time as fit into a cache, made again in the backward pass.

    Measured on two CPU cores at 32768 tokens, 1.6 times as fast as all at once; and the time per token stays the same.
    """
    b, l, h, _ = call.query.shape
    keys, queries = call.view.keys, call.view.queries
    size = max(CACHED_BYTES // (4 * h * l * call.key.shape[1]), 1)
    if b <= size:
        return square(call, allowed)
    count = -(-b // size)

    @jax.checkpoint
    def one(part: tuple[Any, ...]) -> Result:
        query, key, value, segments, of_keys, prefix, number = part
        own = replace(keys, segment_ids=of_keys, prefix=prefix)
        view = replace(call.view, queries=replace(queries, segment_ids=segments), keys=own)
        drawn = None if call.dropout_key is None else jax.random.fold_in(call.dropout_key, number)
        return square(replace(call, query=query, key=key, value=value, view=view, dropout_key=drawn), allowed)

    def parts(x: Array | None) -> Array | None:
        if x is None:
            return None
        return jnp.pad(x, [(0, count * size - b), *[(0, 0)] * (x.ndim - 1)]).reshape(count, size, *x.shape[1:])

    given = (call.query, call.key, call.value, queries.segment_ids, keys.segment_ids, keys.prefix)
    made = jax.lax.map(one, (*map(parts, given), jnp.arange(count)))
    out, log_sum = (x.reshape(count * size, *x.shape[2:])[:b] for x in made)
    return out, log_sum


def columns(call: Call, part: Part) -> Result:
    """Each set of places that are `stride` apart is a short row of its own."""
    assert isinstance(part.shape, Columns)
    stride = part.shape.stride
    b, l = call.query.shape[:2]
    count = -(-l // stride)

    def apart(x: Array) -> Array:
        padded = jnp.pad(x, [(0, 0), (0, count * stride - l), *[(0, 0)] * (x.ndim - 2)])
        return jnp.moveaxis(padded.reshape(b, count, stride, *x.shape[2:]), 2, 1).reshape(
            b * stride, count, *x.shape[2:]
        )

    def together(x: Array) -> Array:
        rows = jnp.moveaxis(x.reshape(b, stride, count, *x.shape[2:]), 1, 2)
        return rows.reshape(b, count * stride, *x.shape[2:])[:, :l]

    keys = call.view.keys
    prefix = None if keys.prefix is None else apart(keys.prefix)
    places = Places(stride * jnp.arange(count), apart(keys.segment_ids), prefix)
    view = replace(call.view, queries=places, keys=places)
    short = replace(call, query=apart(call.query), key=apart(call.key), value=apart(call.value), view=view)
    out, log_sum = square(short, part.allowed)
    return together(out), together(log_sum)


def chosen(call: Call, part: Part) -> Result:
    """All queries, a few keys."""
    assert isinstance(part.shape, Chosen)
    places = np.array(part.shape.places(call.key.shape[1]), np.int32)
    view = replace(call.view, keys=call.view.keys[places])
    return square(replace(call, key=call.key[:, places], value=call.value[:, places], view=view), part.allowed)


def first(call: Call, part: Part) -> Result:
    """A few queries, all keys; the others see nothing."""
    assert isinstance(part.shape, First)
    count, l = part.shape.count, call.query.shape[1]
    view = replace(call.view, queries=call.view.queries[:count])
    out, log_sum = square(replace(call, query=call.query[:, :count], view=view), part.allowed)
    rest = ((0, 0), (0, l - count), (0, 0))
    return jnp.pad(out, (*rest, (0, 0))), jnp.pad(log_sum, rest, constant_values=NOTHING)


SHAPES: dict[type, Callable[[Call, Part], Result]] = {Blocks: blocks, Columns: columns, Chosen: chosen, First: first}


def joined(results: Sequence[Result]) -> Result:
    """One softmax over several sets of keys, from the softmax over each."""
    log_sums = jnp.stack([log_sum for _, log_sum in results])
    log_sum = jax.nn.logsumexp(log_sums, axis=0)
    shares = jnp.exp(log_sums - log_sum)[..., None]
    outs = jnp.stack([out for out, _ in results])
    return jnp.sum(shares.astype(outs.dtype) * outs, axis=0), log_sum


LANES = 128
"""Splash attention works on blocks of a multiple of this many tokens (the kernel's source)."""
SPLASH_BLOCKS = (512, 256, 128)


def splash(call: Call, pattern: AttentionKind, *, interpret: bool = False) -> Float[Array, "b l h k"]:
    """The Pallas kernel for TPUs, forward and backward: blocks that the mask leaves empty are skipped.

    Each device computes its own rows, heads and part of the length, and gathers the keys and values of the whole row.
    """
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as kernel

    mesh, length, heads = jax.sharding.get_abstract_mesh(), call.query.shape[1], call.query.shape[2]
    alone = mesh.empty or mesh.size == 1
    # Query and key heads are sharded alike, or a shard would hold queries without their keys.
    by_heads = "heads" if not alone and call.key.shape[2] % mesh.shape["tensor"] == 0 else None
    size = next(block for block in SPLASH_BLOCKS if length // shards("length") % block == 0)
    sizes = kernel.BlockSizes(
        block_q=size,
        block_kv=size,
        block_kv_compute=size,
        block_q_dkv=size,
        block_kv_dkv=size,
        block_kv_dkv_compute=size,
        use_fused_bwd_kernel=True,
    )
    places = np.asarray(call.view.queries.index)
    run = kernel.make_splash_mha(
        _splash_mask(pattern, places, heads, causal=call.view.causal),
        block_sizes=sizes,
        head_shards=1 if by_heads is None else mesh.shape["tensor"],
        q_seq_shards=shards("length"),
        interpret=interpret,
    )
    in_order = None if np.array_equal(places, np.arange(length)) else np.argsort(places)

    def own(run: Any, query: Array, key: Array, value: Array, segments: Array, of_keys: Array) -> Array:
        if in_order is not None:
            key, value, of_keys = (x[:, in_order] for x in (key, value, of_keys))
        heads_first = (jnp.swapaxes(x, 1, 2) for x in (query, key, value))
        out = jax.vmap(run)(*heads_first, segment_ids=kernel.SegmentIds(segments, of_keys))
        return jnp.swapaxes(out, 1, 2)

    segments = call.view.queries.segment_ids
    sides = (call.scaled, call.key, call.value, segments, segments)
    if alone:
        return own(run, *sides)
    kv = ("batch", None, by_heads, None)
    axes = [("batch", "length", by_heads, None), kv, kv, ("batch", "length"), ("batch", None)]
    specs = tuple(spec(mesh.shape, names, x.shape) for names, x in zip(axes, sides, strict=True))
    of_run = run.manual_sharding_spec(NamedSharding(mesh, PartitionSpec(specs[0][2], specs[0][1])))
    local = jax.shard_map(own, in_specs=(of_run, *specs), out_specs=specs[0], check_vma=False)
    return local(run, *sides)


def _splash_mask(pattern: AttentionKind, places: np.ndarray, heads: int, *, causal: bool) -> Any:
    """The mask of queries at `places` and keys in order, as the kernel takes it."""
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask as masks

    length = len(places)
    shape, natural = (length, length), np.array_equal(places, np.arange(length))

    @dataclass(frozen=True)
    class Lazy(masks.Mask):
        """Made in blocks: a long row's square would not fit."""

        pattern: AttentionKind

        @property
        def shape(self) -> tuple[int, int]:
            return shape

        def __getitem__(self, index: tuple[slice, slice]) -> np.ndarray:
            query, key = places[index[0]][:, None], np.arange(length)[index[1]]
            seen = np.broadcast_to(pattern.allowed(query, key), np.broadcast_shapes(query.shape, key.shape))
            return seen & (query >= key) if causal else np.array(seen)

    one: masks.Mask = Lazy(pattern)
    if natural and isinstance(pattern, Dense):
        one = masks.CausalMask(shape) if causal else masks.FullMask(shape)
    elif natural and isinstance(pattern, Local):
        one = masks.LocalMask(shape, (pattern.window - 1, 0 if causal else pattern.window - 1), 0)
    return masks.MultiHeadMask([one] * heads)


@dataclass(frozen=True)
class Facts:
    """What a kernel may be refused for."""

    length: int
    head_dim: int
    dtype: str
    causal: bool
    itself: bool = True
    bias: bool = False
    dropout: bool = False
    prefix: bool = False


def facts_of(call: Call) -> Facts:
    """The facts of one call."""
    view = call.view
    return Facts(
        call.query.shape[1],
        call.query.shape[3],
        str(call.query.dtype),
        view.causal,
        view.queries is view.keys,
        view.bias is not None,
        call.dropout_key is not None and call.settings.dropout > 0,
        view.keys.prefix is not None,
    )


def refusal(kernel: Kernel, pattern: AttentionKind, facts: Facts, of: str) -> str | None:
    """Why a kernel cannot compute this on a platform; None if it can."""
    if kernel == "xla":
        return None
    shared = [
        (not facts.itself, "only a row that looks at itself is computed by it"),
        (facts.bias, "positions that add a bias to the scores are not known to it"),
        (facts.dropout, "dropout of attention is not known to it"),
        (facts.prefix, "a prefix that is seen both ways is not known to it"),
    ]
    own = {
        "splash": [
            (of != "tpu", f"it is for TPUs, not for {of}"),
            (
                facts.length % (LANES * shards("length")) > 0,
                f"length {facts.length} is not a multiple of {LANES}"
                + (f" for each of mesh.context {shards('length')}" if shards("length") > 1 else ""),
            ),
            (pattern.blind, "a query that sees no key is not known to it"),
        ],
        "cudnn": [
            (of not in {"gpu", "cuda"}, f"it is for NVIDIA GPUs, not for {of}"),
            (facts.dtype not in {"bfloat16", "float16"}, f"type {facts.dtype} is not known to it, bfloat16 is"),
            (facts.head_dim % 8 > 0 or facts.head_dim > 128, f"head_dim {facts.head_dim} is not a multiple of 8 ≤ 128"),
            (facts.length % 2 > 0, f"length {facts.length} is odd"),
            (len(pattern.parts(causal=facts.causal)) > 1 or pattern.blind, "a union of sets of keys is not its"),
        ],
    }[kernel]
    return next((why for wrong, why in own + shared if wrong), None)


def choose(pattern: AttentionKind, facts: Facts, wanted: Kernel, of: str) -> tuple[Kernel, str]:
    """The kernel for one layer on a platform, and why: what is wanted, or the platform's own, or XLA's.

    Raises:
        ValueError: what is wanted cannot compute it.
    """
    if not facts.itself:
        return "xla", "queries and keys are not one row"
    if wanted != "auto":
        why = next((no for kind, _ in pattern.of_heads(2) if (no := refusal(wanted, kind, facts, of))), None)
        if why:
            raise ValueError(f"model.kernel={wanted} cannot compute this attention: {why}; model.kernel=auto can")
        return wanted, "model.kernel"
    best: Kernel = {"tpu": "splash", "gpu": "cudnn", "cuda": "cudnn"}.get(of, "xla")  # type: ignore[assignment]
    why = refusal(best, pattern, facts, of)
    return ("xla", f"not {best}: {why}") if why else (best, f"the kernel for {of}")


def _choices(config: ModelConfig, length: int, of: str, *, causal: bool) -> dict[AttentionKind, tuple[Kernel, str]]:
    facts = Facts(
        length,
        config.width_of_head,
        config.compute,
        causal=causal,
        bias=isinstance(config.positions, Relative | ALiBi),
        dropout=config.dropout > 0,
        prefix=config.prefix_lm,
    )
    kinds = dict.fromkeys(layer.attention for layer in config.pattern)
    return {kind: choose(kind, facts, config.kernel, of) for kind in kinds}


def planned(config: ModelConfig, length: int, of: str) -> dict[str, str]:
    """The kernel of each attention kind of a model that is trained on rows of `length`, and why.

    Raises:
        ValueError: see `choose`.
    """
    found = {}
    for kind, (kernel, why) in _choices(config, length, of, causal=config.family == "decoder").items():
        name = next(name for name, one in ATTENTION.items() if type(kind) is one)
        settings = ", ".join(f"{key} {value}" for key, value in kind)
        found[f"{name} ({settings})" if settings else name] = f"{kernel} ({why})"
    return found


def row_order(config: ModelConfig, length: int, *, causal: bool) -> np.ndarray:
    """In which order the tokens of a row are computed, `[length]`: as they stand, or dealt out for equal work.

    Of a causal row that C devices share, the last part sees most. If the kernel skips what is not seen, the row is cut
    into 2·C parts, of which device i has the parts i and 2·C-1-i (Grattafiori et al. 2024, §3.3.2).
    """
    places, parts = np.arange(length), 2 * shards("length")
    if not causal or parts == 2 or length % parts:
        return places
    if any(kernel != "splash" for kernel, _ in _choices(config, length, platform(), causal=True).values()):
        return places
    return places.reshape(parts, -1)[dealt(parts)].reshape(-1)


def dealt(parts: int) -> np.ndarray:
    """Parts from both ends in turn: 0, n-1, 1, n-2 and so on."""
    return np.stack([np.arange(parts // 2), np.arange(parts - 1, parts // 2 - 1, -1)], axis=1).reshape(-1)
