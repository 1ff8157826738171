"""The least time of a collective on the links of a torus of TPUs (Austin et al. 2025, "How to Scale Your Model")."""

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import jax
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Int

from t5x_lite.parallel.chips import Chip

RING_OF_TWO_AXES = 16
"""Chips of a ring of TPUs whose torus has two axes."""
CUBE = 4
"""Chips along each axis of the cubes that a torus with three axes is closed for."""
EXCHANGES = {"all-to-all", "ragged-all-to-all"}


@dataclass(frozen=True)
class _Span:
    """Part of one axis of the torus that a group of devices spans.

    Attributes:
        positions: number of positions along the axis.
        spacing: distance between positions. So many groups stand between each other, and share their links.
        is_ring: whether the positions are a closed ring, and not a line.
    """

    positions: int
    spacing: int
    is_ring: bool

    @property
    def least_links(self) -> float:
        """Links along the axis that a device of the group has at least: two of a ring, one at the end of a line."""
        return (2 if self.is_ring else 1) / self.spacing

    @property
    def mean_links(self) -> float:
        """Links along the axis that a device of the group has on average."""
        links = 2 if self.is_ring else 2 * (self.positions - 1) / self.positions
        return links / self.spacing


def torus_seconds(kind: str, axes: tuple[str, ...], sent: float, mesh: Mesh, chip: Chip) -> float:
    """Return the least time of collectives of one kind, if nothing else uses the links (Austin et al. 2025, part 3).

    * A gather and a scattered sum use all links along the axes of the torus that the group spans. The device with the
      fewest links is the last one.
    * A sum that all devices get goes both ways on every link of a line, so that the mean number of links counts.
    * Permutes go around a ring of all devices, in pairs of opposite ones that use two links.
    * In an all-to-all, half of the bytes of each half of an axis cross its middle.

    Args:
        kind: one of `hlo.COLLECTIVES`.
        axes: mesh axes of the groups.
        sent: bytes that a device sends.
        mesh: the devices.
        chip: their links.
    """
    spans, devices, sharers = _spans(mesh, axes, chip)
    if not spans:
        return 0.0  # the devices of one chip
    sent *= sharers
    least_links = sum(span.least_links for span in spans)
    if kind == "collective-permute":
        return sent / (min(least_links, 2) * chip.link_rate)
    chips = math.prod(span.positions for span in spans)
    array_bytes = sent * devices / (devices - 1)
    if kind in EXCHANGES:
        chip_bytes = array_bytes * devices / chips
        return max(_crossing_bytes(chip_bytes, span.positions) / (span.least_links * chip.link_rate) for span in spans)
    # What a chip has is not sent to it, even if another device of the chip needs it.
    received = array_bytes * (chips - 1) / chips
    links = sum(span.mean_links for span in spans) if kind == "all-reduce" else least_links
    return received / (links * chip.link_rate)


def _crossing_bytes(array_bytes: float, positions: int) -> float:
    """Return the bytes that one half of a line of devices sends to the other half in an all-to-all."""
    half = positions // 2
    return array_bytes * half * (positions - half) / positions


@functools.cache
def _spans(mesh: Mesh, axes: tuple[str, ...], chip: Chip) -> tuple[tuple[_Span, ...], int, int]:
    """Return what a group of devices spans in one slice.

    Returns:
        The axes of the torus along which its devices differ, their number, and how many groups have devices on the same
        chip, whose links they share.
    """
    index: list[int | slice] = [slice(None) if axis in axes else 0 for axis in mesh.shape]
    group = _positions(list(mesh.devices[tuple(index)].flat))
    every_position = _positions(list(mesh.devices.flat))
    sizes = np.ptp(every_position, axis=0) + 1
    devices_on_chip = (every_position == group[0]).all(axis=1).sum()
    devices_of_group_on_chip = (group == group[0]).all(axis=1).sum()
    spans = []
    for positions, size, is_ring in zip(group.T, sizes, _closed_axes(sizes, chip), strict=True):
        distinct = np.unique(positions)
        if len(distinct) > 1:
            spacing = int(np.diff(distinct).min())
            is_closed = is_ring and len(distinct) * spacing == size
            spans.append(_Span(len(distinct), spacing, is_closed))
    return tuple(spans), len(group), int(devices_on_chip // devices_of_group_on_chip)


def _positions(devices: Sequence[jax.Device]) -> Int[np.ndarray, "devices 3"]:
    """Return where devices stand in the torus of the first one's slice."""
    slice_index = getattr(devices[0], "slice_index", None)
    return np.array([device.coords for device in devices if getattr(device, "slice_index", None) == slice_index])


def _closed_axes(sizes: Int[np.ndarray, "3"], chip: Chip) -> list[bool]:
    """Return which axes of a slice are rings (Austin et al. 2025, part 2).

    Of chips with two axes those of 16 chips; of chips with three axes all, if the slice consists of cubes of 4 x 4 x 4.
    """
    if chip.torus_axes == 2:
        return [size == RING_OF_TWO_AXES for size in sizes]
    return [all(size % CUBE == 0 for size in sizes)] * len(sizes)
