"""Published figures of accelerators, which MFU is measured against and which the planner computes with."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Chip:
    """One device, as JAX counts them.

    Attributes:
        flops: dense bfloat16 FLOP/s.
        memory: bytes of memory.
        memory_rate: bytes per second of that memory.
        link_rate: bytes per second of a link. On a TPU, one direction to one neighbour of its torus. On a GPU, all that
            it sends over NVLink to the other GPUs of its host.
        network_rate: bytes per second of the network that joins slices or hosts.
        gpus_per_host: GPUs that NVLink joins; None on a TPU.
        int8_flops: operations per second on 8-bit integers; None without units for them.
        fp8_flops: FLOP/s on 8-bit floats; None without units for them.
        torus_axes: axes of the torus of a TPU, 2 or 3.
        clock: cycles per second of a TPU, if they are published.
    """

    flops: float
    memory: float
    memory_rate: float
    link_rate: float
    network_rate: float = 6.25e9
    gpus_per_host: int | None = None
    int8_flops: float | None = None
    fp8_flops: float | None = None
    torus_axes: int = 3
    clock: float | None = None


GPUS_PER_HOST = 8
"""GPUs that NVLink joins in a host of the models below."""
CHIPS = {
    "TPU v4": Chip(275e12, 32 * 2**30, 1228e9, 45e9, int8_flops=275e12, clock=1.05e9),
    "TPU v5 lite": Chip(197e12, 16 * 2**30, 819e9, 45e9, 3.125e9, int8_flops=394e12, torus_axes=2, clock=1.5e9),
    "TPU v5": Chip(459e12, 95 * 2**30, 2765e9, 90e9, int8_flops=918e12, clock=1.75e9),
    "TPU v6 lite": Chip(918e12, 32 * 2**30, 1640e9, 90e9, 12.5e9, int8_flops=1836e12, torus_axes=2),
    "TPU7x": Chip(1153.5e12, 96 * 2**30, 3690e9, 90e9, fp8_flops=2307e12),
    "NVIDIA A100": Chip(312e12, 80e9, 2039e9, 300e9, 25e9, GPUS_PER_HOST, int8_flops=624e12),
    "NVIDIA H100": Chip(989e12, 80e9, 3350e9, 450e9, 50e9, GPUS_PER_HOST, int8_flops=1979e12, fp8_flops=1979e12),
    "NVIDIA H200": Chip(989e12, 141e9, 4800e9, 450e9, 50e9, GPUS_PER_HOST, int8_flops=1979e12, fp8_flops=1979e12),
    "NVIDIA B200": Chip(2250e12, 180e9, 8000e9, 900e9, 50e9, GPUS_PER_HOST, int8_flops=4500e12, fp8_flops=4500e12),
}
"""Chips by the first words of `device_kind` in JAX.

The figures are those of the makers' data sheets: Google Cloud's system architecture pages, and NVIDIA's data sheets of
the SXM boards. Links of TPUs are from Austin et al. 2025, "How to Scale Your Model", part 2. Four v4 or v5p share a
network of 25e9 bytes per second; eight v5e have 200 Gbit/s, eight v6e 800 Gbit/s, and a TPU7x chip 100 Gbit/s. A v4
computes on 8-bit integers as fast as on bfloat16. A TPU7x chip is two devices, each with half of its FLOP/s. GPUs have
the networks of DGX SuperPOD: 200 Gbit/s for each A100, 400 Gbit/s for each of the others. The clock of v4 is from
Jouppi et al. 2023, table 4; those of v5e and v5p are their FLOP/s over those of a cycle: 2 · 128 · 128 of each matrix
unit, four in a core, with one and two cores.
"""


def chip_name(device_kind: str) -> str | None:
    """Return the longest key of `CHIPS` that a device's kind begins with, or None."""
    matching_names = [name for name in CHIPS if device_kind.startswith(name)]
    return max(matching_names, key=len, default=None)
