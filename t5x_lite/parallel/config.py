"""Settings of the device mesh. No JAX here: see `t5x_lite.config`."""

from collections.abc import Iterator

from t5x_lite.errors import UserError
from t5x_lite.parallel.chips import GPUS_PER_HOST
from t5x_lite.schema import Config, Int, setting

GPUS = {"a100": "NVIDIA A100", "h100": "NVIDIA H100", "h200": "NVIDIA H200", "b200": "NVIDIA B200"}
"""GPUs by their name in a topology such as h100:64; the values are the first words of `device_kind` in JAX."""

MOST_GPUS = 100_000
"""GPUs of the largest cluster that is planned for; without their compiler a CPU device is simulated for each."""


def gpu_count(topology: str) -> int | None:
    """Return the number of GPUs of a topology such as h100:64; None if it is not one of GPUs.

    Raises:
        UserError: the number is missing, no cluster has so many, or some hosts would not be full.
    """
    name, _, count = topology.partition(":")
    if name.lower() not in GPUS:
        return None
    if not count.isascii() or not count.isdigit() or len(count) > 9 or not 1 <= int(count) <= MOST_GPUS:
        raise UserError(f"--topology {topology}: write the number of GPUs, at most {MOST_GPUS:,}, as in {name}:8")
    if int(count) > GPUS_PER_HOST and int(count) % GPUS_PER_HOST:
        raise UserError(f"--topology {topology}: write a multiple of {GPUS_PER_HOST}, the GPUs of a host, or fewer")
    return int(count)


def choose_slices(option: int | None, configured: int, topology: str) -> int:
    """Return the number of TPU slices: that of an option, or else of the config. GPUs have no slices.

    Raises:
        UserError: the option is below 1, or names several slices of GPUs.
    """
    if option is not None and option < 1:
        raise UserError(f"plan: --slices {option}: expected a number of slices from 1 on")
    if gpu_count(topology) is None:
        return configured if option is None else option
    if option not in (None, 1):
        raise UserError(f"plan: --slices {option}: {topology} names all GPUs; slices are for TPUs")
    return 1


class MeshConfig(Config):
    """Number of devices along each mesh axis; one axis may be -1, which takes the remaining devices."""

    data: Int = setting(-1, "copies of the model, each with its share of the batch", unit="devices", ge=-1)
    fsdp: Int = setting(1, "shards of parameters and optimizer state that also split the batch", unit="devices", ge=-1)
    tensor: Int = setting(1, "shards of heads, feed-forward and vocabulary", unit="devices", ge=-1)
    expert: Int = setting(1, "shards of the experts", unit="devices", ge=-1)
    context: Int = setting(1, "shards of the sequence, and of parameters and optimizer state", unit="devices", ge=-1)
    pipeline: Int = setting(1, "stages of layers", unit="devices", ge=-1)

    def problems(self) -> Iterator[str]:
        """Yield what is wrong with the sizes; see `Config.problems`."""
        sizes = self.model_dump()
        unknown_axes = [axis for axis, size in sizes.items() if size == -1]
        if 0 in sizes.values() or len(unknown_axes) > 1:
            yield f"every axis must be ≥ 1, and at most one axis may be -1; found {sizes}"
