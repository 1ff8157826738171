"""Published figures of the devices that runs are measured against and planned for."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Chip:
    """One device: dense bfloat16 FLOP/s, bytes of memory, and bytes a second of memory, of a link and of the network.

    A link is one direction to one neighbour of a TPU's torus, or all that a GPU sends over NVLink to the GPUs of its
    host, of which there are `host`. The network joins slices, or hosts.
    """

    flops: float
    memory: float
    memory_rate: float
    link_rate: float
    network_rate: float = 6.25e9
    host: int | None = None


CHIPS = {
    "TPU v4": Chip(275e12, 32 * 2**30, 1228e9, 45e9),
    "TPU v5 lite": Chip(197e12, 16 * 2**30, 819e9, 45e9),
    "TPU v5": Chip(459e12, 95 * 2**30, 2765e9, 90e9),
    "TPU v6 lite": Chip(918e12, 32 * 2**30, 1640e9, 90e9),
    "TPU7x": Chip(1153.5e12, 96 * 2**30, 3690e9, 90e9),
    "NVIDIA A100": Chip(312e12, 80e9, 2039e9, 300e9, 25e9, 8),
    "NVIDIA H100": Chip(989e12, 80e9, 3350e9, 450e9, 50e9, 8),
    "NVIDIA H200": Chip(989e12, 141e9, 4800e9, 450e9, 50e9, 8),
    "NVIDIA B200": Chip(2250e12, 180e9, 8000e9, 900e9, 50e9, 8),
}
"""The makers' data sheets: Google Cloud's system architecture pages, NVIDIA's of the SXM boards.

Links of TPUs are from Austin et al. 2025, "How to Scale Your Model", part 2. A host of four TPUs has 25e9 for its
network. A TPU7x chip is two devices, of half its 2307e12 each. GPUs have the networks of DGX SuperPOD: 200 Gbit/s a GPU
for A100, 400 for the others.
"""


def chip_name(device_kind: str) -> str | None:
    """The entry of `CHIPS` for a device, by the beginning of its name in JAX."""
    return max((name for name in CHIPS if device_kind.startswith(name)), key=len, default=None)
