"""The kernels that compute attention, and the choice between them."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, PRNGKeyArray

from t5x_lite.models.attention import blocked, cudnn, flash, splash
from t5x_lite.models.attention.context import (
    AttentionContext,
    AttentionInputs,
    AttentionSettings,
    KernelName,
)
from t5x_lite.models.attention.kinds import ATTENTION, AttentionKind, Dense, TransientGlobal
from t5x_lite.models.attention.requirements import KernelRequirements
from t5x_lite.models.config import ModelConfig
from t5x_lite.models.mixers import SelfAttention
from t5x_lite.models.sharding import num_shards, target_platform


@dataclass(frozen=True)
class AttentionKernel:
    """A way to compute attention.

    Attributes:
        attention: computes it.
        unsupported_reason: says why the kernel cannot compute an attention kind under some requirements on a platform;
            None if it can.
    """

    attention: Callable[[AttentionInputs, AttentionKind], Float[Array, "b l h k"]]
    unsupported_reason: Callable[[AttentionKind, KernelRequirements, str], str | None]


KERNELS: dict[KernelName, AttentionKernel] = {
    "xla": AttentionKernel(blocked.attention, blocked.unsupported_reason),
    "cudnn": AttentionKernel(cudnn.attention, cudnn.unsupported_reason),
    "splash": AttentionKernel(splash.attention, splash.unsupported_reason),
    "flash": AttentionKernel(flash.attention, flash.unsupported_reason),
}
FUSED_KERNELS: dict[str, tuple[KernelName, ...]] = {
    "tpu": ("splash", "flash"),
    "gpu": ("cudnn", "flash"),
    "cuda": ("cudnn", "flash"),
}
"""The fused kernels of a platform, the fastest first."""
CROSS_ATTENTION = "cross-attention"
"""Name of the attention to an encoder's output, beside those of attention kinds."""


def attend(
    query: Float[Array, "b l h k"],
    key: Float[Array, "b m n k"],
    value: Float[Array, "b m n j"],
    kind: AttentionKind,
    context: AttentionContext,
    settings: AttentionSettings,
    dropout_key: PRNGKeyArray | None = None,
) -> Float[Array, "b l h j"]:
    """Compute softmax(scale * (q k^T + content bias) + bias) v over the keys that each query attends to.

    A query without any key is padding and gets something finite; under a kind that allows empty rows it gets 0.

    The kernel is `settings.kernel` if that can compute it. Rows of evaluation and of decoding may have lengths and
    positions that those of training, which `planned_kernels` checks, have not.
    """
    inputs = AttentionInputs(query, key, value, context, settings, dropout_key)
    heads = query.shape[2]
    groups = kind.head_groups(heads)
    if len(groups) == 1:
        return _attend(inputs, kind)
    outs = []
    start = 0
    for group_kind, count in groups:
        outs.append(_attend(inputs.select_heads(start, count), group_kind))
        start += count
    return jnp.concatenate(outs, axis=2)


def _attend(inputs: AttentionInputs, kind: AttentionKind) -> Float[Array, "b l h j"]:
    settings = inputs.settings
    platform = settings.platform or target_platform()
    kernel, _ = choose_kernel(kind, kernel_requirements(inputs), settings.kernel, platform, is_binding=False)
    value_dim = inputs.value.shape[-1]
    if kernel != "xla" and value_dim < inputs.key.shape[-1]:
        # Fused kernels take keys and values of one width.
        padding = [(0, 0), (0, 0), (0, 0), (0, inputs.key.shape[-1] - value_dim)]
        inputs = replace(inputs, value=jnp.pad(inputs.value, padding))
    return KERNELS[kernel].attention(inputs, kind)[..., :value_dim]


def kernel_requirements(inputs: AttentionInputs) -> KernelRequirements:
    """Return what a kernel must support to compute a call."""
    context = inputs.context
    return KernelRequirements(
        length=inputs.query.shape[1],
        head_dim=inputs.query.shape[3],
        dtype=str(inputs.query.dtype),
        causal=context.causal,
        self_attention=context.self_attention,
        in_order=context.queries.in_order and context.keys.in_order,
        bias=context.offset_bias is not None,
        dropout=inputs.has_dropout,
        prefix=context.keys.prefix is not None,
        softcap=inputs.settings.softcap is not None,
        value_dim=inputs.value.shape[3],
        sinks=context.sinks is not None,
        content_bias=context.content_bias is not None,
        rank=context.queries.rank is not None,
        traced_positions=isinstance(context.queries.index, jax.Array),
        documents=not (context.queries.single_segment and context.keys.single_segment),
    )


def choose_kernel(
    kind: AttentionKind, required: KernelRequirements, requested: KernelName, platform: str, *, is_binding: bool = True
) -> tuple[KernelName, str]:
    """Return the kernel for one layer on a platform, and the reason for it.

    It is the requested one; or under `auto`, and for cross-attention under any but `xla`, the fastest of the platform
    that can compute it, else XLA.

    Args:
        kind: the kind of attention.
        required: what the kernel must support.
        requested: `model.kernel`.
        platform: of the devices.
        is_binding: another kernel than the requested one must not be chosen.

    Raises:
        ValueError: the requested kernel cannot compute it, and is binding.
    """
    if requested == "xla":
        return "xla", "model.kernel"
    if not required.self_attention and not required.in_order:
        return "xla", "queries and keys are not in order, as in decoding"
    if requested != "auto" and required.self_attention:
        kinds = [group_kind for group_kind, _ in kind.head_groups(2)]
        reasons = [_unsupported_reason(requested, group_kind, required, platform) for group_kind in kinds]
        reason = next((reason for reason in reasons if reason is not None), None)
        if reason is None:
            return requested, "model.kernel"
        if is_binding:
            raise ValueError(f"model.kernel={requested} cannot compute this attention: {reason}; model.kernel=auto can")
    refusals: dict[str, list[str]] = {}
    for kernel in FUSED_KERNELS.get(platform, ()):
        reason = _unsupported_reason(kernel, kind, required, platform)
        if reason is None:
            return kernel, _explanation(refusals, platform)
        refusals.setdefault(reason, []).append(kernel)
    return "xla", _explanation(refusals, platform)


def _unsupported_reason(
    kernel: KernelName, kind: AttentionKind, required: KernelRequirements, platform: str
) -> str | None:
    if kernel != "xla" and isinstance(kind, TransientGlobal):
        return "it does not support global tokens"
    if kernel != "xla" and required.content_bias:
        return "it does not support positions whose bias depends on queries and keys"
    if kernel != "xla" and required.memory:
        return "it does not support a memory of the batch before"
    if kernel != "xla" and required.rank:
        return "it does not support orders of factorisation"
    if kernel != "xla" and required.value_dim > required.head_dim:
        return "it does not support values that are wider than keys"
    return KERNELS[kernel].unsupported_reason(kind, required, platform)


def _explanation(refusals: Mapping[str, Sequence[str]], platform: str) -> str:
    """Return why a kernel was chosen: because of the reasons for which the faster ones were not."""
    reasons = [f"not {' or '.join(kernels)}: {reason}" for reason, kernels in refusals.items()]
    return "; ".join(reasons) or f"the kernel for {platform}"


@dataclass(frozen=True)
class PlannedKernel:
    """The kernel of some layers of a model.

    Attributes:
        kind: their attention.
        kernel: its name.
        reason: why it was chosen.
    """

    kind: AttentionKind
    kernel: KernelName
    reason: str


def _plan_kernels(
    config: ModelConfig, length: int, platform: str, *, causal: bool, documents: bool = False
) -> list[PlannedKernel]:
    """Return the kernels of the layers, each once. Layers of one kind may have several, by their mixers."""
    required = KernelRequirements(
        length=length,
        head_dim=0,
        dtype=config.compute,
        causal=causal,
        bias=config.positions.adds_bias,
        dropout=config.attention_dropout_rate > 0,
        prefix=config.prefix_lm,
        softcap=config.attention_softcap is not None,
        sinks=config.attention_sinks,
        content_bias=config.positions.reads_content,
        rank=config.query_stream,
        documents=documents,
    )
    planned = []
    for layer in (*config.first, *config.pattern):
        if isinstance(layer.mixer, SelfAttention):
            mixer = layer.mixer
            of_layer = replace(
                required,
                head_dim=mixer.key_dim(config),
                value_dim=mixer.value_dim(config),
                memory=mixer.memory > 0,
            )
            kernel, reason = choose_kernel(layer.attention, of_layer, config.kernel, platform)
            planned.append(PlannedKernel(layer.attention, kernel, reason))
    return list(dict.fromkeys(planned))


def _plan_cross_attention(config: ModelConfig, targets: int, platform: str) -> tuple[KernelName, str]:
    required = KernelRequirements(
        length=targets,
        head_dim=config.head_dim,
        dtype=config.compute,
        causal=False,
        self_attention=False,
        dropout=config.attention_dropout_rate > 0,
        softcap=config.attention_softcap is not None,
        documents=True,
    )
    return choose_kernel(Dense(), required, config.kernel, platform)


def fuses_cross_attention(config: ModelConfig, targets: int, platform: str) -> bool:
    """Return whether the scores of cross-attention from `targets` tokens stay in a fused kernel."""
    return _plan_cross_attention(config, targets, platform)[0] != "xla"


def unfused_kinds(config: ModelConfig, length: int, platform: str, *, causal: bool) -> set[AttentionKind]:
    """Return the attention kinds of a model that XLA computes in rows of `length`, scores and all."""
    planned = _plan_kernels(config, length, platform, causal=causal)
    return {choice.kind for choice in planned if choice.kernel == "xla"}


def planned_kernels(
    config: ModelConfig, length: int, platform: str, targets: int = 0, *, documents: bool = False
) -> dict[str, str]:
    """Return the kernel, and the reason for it, of each attention kind of a model in training.

    Args:
        config: the model.
        length: tokens of a row; of an encoder_decoder, of the encoder.
        platform: of the devices.
        targets: tokens of the decoder of an encoder_decoder.
        documents: a row may hold several documents, or padding.

    Raises:
        ValueError: see `choose_kernel`.
    """
    names = {kind: name for name, kind in ATTENTION.items()}
    planned = _plan_kernels(config, length, platform, causal=config.family == "decoder", documents=documents)
    if config.family == "encoder_decoder":
        planned += _plan_kernels(config.decoder_model, targets, platform, causal=True, documents=documents)
    descriptions: dict[str, list[str]] = {}
    for choice in planned:
        name = names[type(choice.kind)]
        settings = ", ".join(f"{key} {value}" for key, value in choice.kind)
        if settings:
            name = f"{name} ({settings})"
        descriptions.setdefault(name, []).append(f"{choice.kernel} ({choice.reason})")
    if config.family == "encoder_decoder":
        kernel, reason = _plan_cross_attention(config, targets, platform)
        descriptions[CROSS_ATTENTION] = [f"{kernel} ({reason})"]
    return {name: "; ".join(dict.fromkeys(kernels)) for name, kernels in descriptions.items()}


def row_order(config: ModelConfig, length: int, *, causal: bool) -> Int[np.ndarray, "l"]:
    """Return the order in which the tokens of a row are computed: as they are, or dealt out for equal work.

    Of a causal row that C devices share, the last part has the most keys. If the kernel skips masked blocks, the row is
    cut into 2C parts, of which device i has the parts i and 2C-1-i (Grattafiori et al. 2024, §3.3.2).
    """
    in_order = np.arange(length)
    parts = 2 * num_shards("length")
    if not causal or parts == 2 or length % parts or config.state_mixers:
        return in_order
    planned = _plan_kernels(config, length, target_platform(), causal=True)
    if any(choice.kernel != "splash" for choice in planned):
        return in_order
    return in_order.reshape(parts, -1)[zigzag_order(parts)].reshape(-1)


def zigzag_order(parts: int) -> Int[np.ndarray, "parts"]:
    """Return parts from both ends in turn: 0, n-1, 1, n-2, and so on."""
    from_start = np.arange(parts // 2)
    from_end = np.arange(parts - 1, parts // 2 - 1, -1)
    return np.stack([from_start, from_end], axis=1).reshape(-1)
