"""Descriptions of NVIDIA GPUs that are not here, for XLA's compiler."""

from dataclasses import dataclass, replace

from t5x_lite.parallel.job_environment import GPU_MEMORY_FRACTION

CUDNN_VERSION = (9, 12)
"""The oldest cuDNN that JAX with CUDA 13 runs with."""
SCHEDULER_MEMORY_SHARE = 0.8
"""Share of a described GPU's memory that XLA's scheduler counts with (xla/service/gpu/gpu_hlo_schedule.cc). Of an
attached one it counts with all that JAX takes."""


@dataclass(frozen=True)
class GpuTarget:
    """A GPU as its driver describes it.

    Attributes:
        name: the model.
        compute_capability: generation of the instructions, such as 9 of Hopper.
        cores: streaming multiprocessors.
        clock_ghz: their highest clock.
        float32_units: float32 units of a multiprocessor.
        shared_memory: bytes of a multiprocessor that blocks share.
        largest_shared_memory: bytes of it that one block can have.
        l2_cache: bytes.
        memory: bytes of memory.
        memory_rate: bytes per second of it.
    """

    name: str
    compute_capability: int
    cores: int
    clock_ghz: float
    float32_units: int
    shared_memory: int
    largest_shared_memory: int
    l2_cache: int
    memory: int
    memory_rate: int

    @property
    def text_proto(self) -> str:
        """The GPU as XLA's message `GpuTargetConfigProto` in text format.

        Its memory lets the scheduler use as much as on an attached GPU.
        """
        memory = round(self.memory * GPU_MEMORY_FRACTION / SCHEDULER_MEMORY_SHARE)
        extension = "ACCELERATED_FEATURES" if self.compute_capability >= 9 else "NONE"
        major, minor = CUDNN_VERSION
        return f"""
            platform_name: "CUDA"
            device_description_str: "{self.name}"
            dnn_version_info {{ major: {major} minor: {minor} }}
            runtime_version {{ major: 13 }}
            gpu_device_info {{
              cuda_compute_capability {{ major: {self.compute_capability} feature_extension: {extension} }}
              core_count: {self.cores}
              clock_rate_ghz: {self.clock_ghz}
              fpus_per_core: {self.float32_units}
              threads_per_warp: 32
              threads_per_block_limit: 1024
              threads_per_core_limit: 2048
              registers_per_block_limit: 65536
              registers_per_core_limit: 65536
              block_dim_limit_x: 2147483647
              block_dim_limit_y: 65535
              block_dim_limit_z: 65535
              shared_memory_per_block: 49152
              shared_memory_per_block_optin: {self.largest_shared_memory}
              shared_memory_per_core: {self.shared_memory}
              l2_cache_size: {self.l2_cache}
              device_memory_size: {memory}
              memory_bandwidth: {self.memory_rate}
            }}
        """


_HOPPER = GpuTarget(
    name="NVIDIA H100 80GB HBM3",
    compute_capability=9,
    cores=132,
    clock_ghz=1.98,
    float32_units=128,
    shared_memory=233_472,
    largest_shared_memory=232_448,
    l2_cache=52_428_800,
    memory=84_942_979_072,
    memory_rate=3_352_320_000_000,
)
GPU_TARGETS = {
    "NVIDIA A100": GpuTarget(
        name="NVIDIA A100-SXM4-80GB",
        compute_capability=8,
        cores=108,
        clock_ghz=1.41,
        float32_units=64,
        shared_memory=167_936,
        largest_shared_memory=166_912,
        l2_cache=41_943_040,
        memory=85_100_068_864,
        memory_rate=2_039_040_000_000,
    ),
    "NVIDIA H100": _HOPPER,
    "NVIDIA H200": replace(_HOPPER, name="NVIDIA H200", memory=151_397_597_184, memory_rate=4_800_000_000_000),
    "NVIDIA B200": GpuTarget(
        name="NVIDIA B200",
        compute_capability=10,
        cores=148,
        clock_ghz=1.965,
        float32_units=128,
        shared_memory=233_472,
        largest_shared_memory=232_448,
        l2_cache=132_644_864,
        memory=191_514_411_008,
        memory_rate=7_672_320_000_000,
    ),
}
"""GPUs by the first words of `device_kind` in JAX. The figures are those that XLA's repository has of these cards
(xla/backends/gpu/target_config/specs), which their drivers reported."""


def gpu_target(device_kind: str) -> GpuTarget:
    """Return the description of a GPU of the kind that JAX names."""
    [target] = [target for kind, target in GPU_TARGETS.items() if device_kind.startswith(kind)]
    return target
