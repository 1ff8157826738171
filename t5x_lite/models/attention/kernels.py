"""Dot-product attention in the form that does the least work, and the kernel that computes it.

A *shape* says which pairs are computed at all (the parts of `patterns.py`, in the forms of `shapes.py`); a *kernel*
computes them: XLA, cuDNN, or, for a whole call, the Pallas splash kernel (`splash.py`).
"""

from dataclasses import dataclass, replace

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray

from t5x_lite.models.attention.blocked import SHAPES, full_attention, merge_partial_softmax
from t5x_lite.models.attention.context import MASK_VALUE, AttentionContext, AttentionInputs, AttentionSettings, Kernel
from t5x_lite.models.attention.flash_sharded import flash
from t5x_lite.models.attention.kinds import ATTENTION, AttentionKind, Blocks, Dense, Local, Part
from t5x_lite.models.attention.splash import LANES, splash
from t5x_lite.models.config import ALiBi, ModelConfig, Relative
from t5x_lite.models.sharding import constrain, platform, shards

SMALLEST_BLOCK = 64
"""Narrower blocks are computed several at a time: smaller products are slower than the work they save."""


def attend(
    query: Float[Array, "b l h k"],
    key: Float[Array, "b m n k"],
    value: Float[Array, "b m n k"],
    pattern: AttentionKind,
    view: AttentionContext,
    settings: AttentionSettings,
    dropout_key: PRNGKeyArray | None = None,
) -> Float[Array, "b l h k"]:
    """softmax(scale · q·kᵀ + bias) · v over the keys that may be seen, by the form that does the least work.

    A row that looks at itself is computed in the parts that its pattern names; a square that is large, for some queries
    at a time; what is left, as one square. All give the same values. A query that sees no key is padding, and gets
    something finite; under a pattern that is `blind` it gets 0.

    Raises:
        ValueError: `settings.kernel` cannot compute this; the message says why.
    """
    call = AttentionInputs(query, key, value, view, settings, dropout_key)
    made, start = [], 0
    for kind, heads in pattern.of_heads(query.shape[2]):
        own = call if heads == query.shape[2] else call.of_heads(start, heads)
        made.append(_attend(own, kind))
        start += heads
    return made[0] if len(made) == 1 else jnp.concatenate(made, axis=2)


def _attend(call: AttentionInputs, pattern: AttentionKind) -> Float[Array, "b l h k"]:
    kernel, _ = choose_kernel(pattern, kernel_requirements(call), call.settings.kernel, platform())
    if kernel == "splash":
        return splash(call, pattern)
    if kernel == "flash":
        return flash(call, pattern)
    call = replace(call, settings=replace(call.settings, kernel=kernel))
    parts = select_shapes(pattern, call.query.shape[1], call.view)
    if not parts and call.query.shape[1] > 1:  # each part of a row in parts sees the keys of the whole row
        whole = ("batch", None, "kv_heads", None)
        call = replace(call, key=constrain(call.key, *whole), value=constrain(call.value, *whole))
    made = [SHAPES[type(part.shape)](call, part.shape, part.allowed) for part in parts] or [
        full_attention(call, pattern.allowed)
    ]
    out, log_sum = made[0] if len(made) == 1 else merge_partial_softmax(made)
    return jnp.where(log_sum[..., None] > MASK_VALUE / 2, out, 0).astype(out.dtype) if pattern.blind else out


def select_shapes(pattern: AttentionKind, length: int, view: AttentionContext) -> tuple[Part, ...]:
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


@dataclass(frozen=True)
class KernelRequirements:
    """What a kernel may be refused for. `in_order`: queries and keys stand at 0, 1, 2, … of their rows."""

    length: int
    head_dim: int
    dtype: str
    causal: bool
    itself: bool = True
    in_order: bool = True
    bias: bool = False
    dropout: bool = False
    prefix: bool = False


def kernel_requirements(call: AttentionInputs) -> KernelRequirements:
    """The facts of one call."""
    view = call.view
    return KernelRequirements(
        call.query.shape[1],
        call.query.shape[3],
        str(call.query.dtype),
        view.causal,
        view.queries is view.keys,
        view.queries.in_order and view.keys.in_order,
        view.bias is not None,
        call.dropout_key is not None and call.settings.dropout > 0,
        view.keys.prefix is not None,
    )


def unsupported_reason(kernel: Kernel, pattern: AttentionKind, facts: KernelRequirements, of: str) -> str | None:
    """Why a kernel cannot compute this on a platform; None if it can."""
    if kernel == "xla":
        return None
    shared = (
        []
        if kernel == "flash"
        else [
            (not facts.itself, "only a row that looks at itself is computed by it"),
            (facts.bias, "positions that add a bias to the scores are not known to it"),
            (facts.dropout, "dropout of attention is not known to it"),
            (facts.prefix, "a prefix that is seen both ways is not known to it"),
        ]
    )
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
        "flash": [
            (of not in {"gpu", "cuda"}, f"it is for NVIDIA GPUs, not for {of}"),
            (facts.dtype not in {"bfloat16", "float16"}, f"type {facts.dtype} is not known to it, bfloat16 is"),
            (facts.head_dim > 128, f"head_dim {facts.head_dim} is over 128"),
            (not facts.in_order, "queries and keys do not stand in order"),
            (not isinstance(pattern, Dense | Local), "it computes dense and local attention"),
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


FASTEST: dict[str, tuple[Kernel, ...]] = {"tpu": ("splash",), "gpu": ("cudnn", "flash"), "cuda": ("cudnn", "flash")}
"""The fused kernels of a platform, the fastest first."""


def choose_kernel(pattern: AttentionKind, facts: KernelRequirements, wanted: Kernel, of: str) -> tuple[Kernel, str]:
    """The kernel for one layer on a platform, and why: what is wanted, or the platform's own, or XLA's.

    Raises:
        ValueError: what is wanted cannot compute it.
    """
    if not facts.itself and not facts.in_order:
        return "xla", "queries and keys do not stand in order, as in decoding"
    if wanted != "auto":
        why = next((no for kind, _ in pattern.of_heads(2) if (no := unsupported_reason(wanted, kind, facts, of))), None)
        if why:
            raise ValueError(f"model.kernel={wanted} cannot compute this attention: {why}; model.kernel=auto can")
        return wanted, "model.kernel"
    best: tuple[Kernel, ...] = FASTEST.get(of, ())
    refused: list[str] = []
    for kernel in best:
        why = unsupported_reason(kernel, pattern, facts, of)
        if why is None:
            return kernel, f"not {'; not '.join(refused)}" if refused else f"the kernel for {of}"
        refused.append(f"{kernel}: {why}")
    return "xla", f"not {'; not '.join(refused)}" if refused else f"the kernel for {of}"


def _choices(config: ModelConfig, length: int, of: str, *, causal: bool) -> dict[AttentionKind, tuple[Kernel, str]]:
    facts = KernelRequirements(
        length,
        config.width_of_head,
        config.compute,
        causal=causal,
        bias=isinstance(config.positions, Relative | ALiBi),
        dropout=config.dropout > 0,
        prefix=config.prefix_lm,
    )
    kinds = dict.fromkeys(layer.attention for layer in config.pattern)
    return {kind: choose_kernel(kind, facts, config.kernel, of) for kind in kinds}


def planned_kernels(config: ModelConfig, length: int, of: str) -> dict[str, str]:
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
    return places.reshape(parts, -1)[balanced_order(parts)].reshape(-1)


def balanced_order(parts: int) -> np.ndarray:
    """Parts from both ends in turn: 0, n-1, 1, n-2 and so on."""
    return np.stack([np.arange(parts // 2), np.arange(parts - 1, parts // 2 - 1, -1)], axis=1).reshape(-1)
