"""Options of XLA's compiler for a train step."""

import re
from collections.abc import Mapping

import jax
from jax.sharding import Mesh

from t5x_lite.errors import UserError

OVERLAP_ON_TPU: Mapping[str, bool | int] = {
    # Gathers become asynchronous, and parts of them are fused with the work that hides them.
    "xla_enable_async_all_gather": True,
    "xla_tpu_enable_async_collective_fusion": True,
    "xla_tpu_enable_async_collective_fusion_fuse_all_gather": True,
    "xla_tpu_enable_async_collective_fusion_multiple_steps": True,
    "xla_tpu_overlap_compute_collective_tc": True,
    # No product of weights below this size becomes a loop of small products and permutes, which hides a gather or a
    # sum and takes twice the time by the compiler's own estimate.
    "xla_jf_spmd_threshold_for_windowed_einsum_mib": 1_000_000,
}
"""Options with which a TPU overlaps collectives with computation (docs/results/performance.md)."""
_UNKNOWN_OPTION = re.compile(r"No such compile option: '(.*?)'")

Options = Mapping[str, bool | int | float | str]


def compiler_options(chosen: Options | None, mesh: Mesh) -> dict[str, bool | int | float | str]:
    """Return the chosen options; without a choice, `OVERLAP_ON_TPU` on a TPU and none elsewhere."""
    if chosen is not None:
        return dict(chosen)
    return dict(OVERLAP_ON_TPU) if mesh.devices.flat[0].platform == "tpu" else {}


def compile_lowered(lowered: jax.stages.Lowered) -> jax.stages.Compiled:
    """Compile a train step.

    Raises:
        UserError: the compiler does not know one of its options.
    """
    try:
        return lowered.compile()
    except jax.errors.JaxRuntimeError as error:
        unknown = _UNKNOWN_OPTION.search(str(error))
        if unknown is None:
            raise
        raise UserError(
            f"train.compiler_options: this version of XLA's compiler has no option {unknown[1]}; name options that it "
            "has, or {} for none"
        ) from None
