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
        links: links along the axis that a device of the group has at least: two of a ring, one at the end of a line.
            Groups whose devices stand between each other share their links: of two groups each has half a link.
    """

    positions: int
    links: float


def torus_seconds(kind: str, axes: tuple[str, ...], sent: float, mesh: Mesh, chip: Chip) -> float:
    """Return the least time of collectives of one kind, if nothing else uses the links (Austin et al. 2025, part 3).

    * What a device gathers or sums comes over all links along the axes of the torus that its group spans.
    * A permute sends both ways around a ring of all devices, over two links.
    * Of an all-to-all, half of what each half of an axis sends goes to the other half, over the links between them.

    Args:
        kind: one of `hlo.COLLECTIVES`.
        axes: mesh axes of the groups.
        sent: bytes that a device sends.
        mesh: the devices.
        chip: their links.
    """
    spans = _spans(mesh, axes, chip)
    if not spans:
        return 0.0  # the devices of one chip
    if kind in EXCHANGES:
        devices = math.prod(span.positions for span in spans)
        array_bytes = sent * devices / (devices - 1)
        return max(_crossing_bytes(array_bytes, span.positions) / (span.links * chip.link_rate) for span in spans)
    links = sum(span.links for span in spans)
    if kind == "collective-permute":
        links = min(links, 2)
    return sent / (links * chip.link_rate)


def _crossing_bytes(array_bytes: float, positions: int) -> float:
    """Return the bytes that one half of a line of devices sends to the other half in an all-to-all."""
    half = positions // 2
    return array_bytes * half * (positions - half) / positions


@functools.cache
def _spans(mesh: Mesh, axes: tuple[str, ...], chip: Chip) -> tuple[_Span, ...]:
    """Return the axes of the torus along which the devices of a group differ, inside one slice."""
    index: list[int | slice] = [slice(None) if axis in axes else 0 for axis in mesh.shape]
    group = _positions(list(mesh.devices[tuple(index)].flat))
    sizes = np.ptp(_positions(list(mesh.devices.flat)), axis=0) + 1
    spans = []
    for positions, size, is_ring in zip(group.T, sizes, _closed_axes(sizes, chip), strict=True):
        distinct = np.unique(positions)
        if len(distinct) > 1:
            spacing = int(np.diff(distinct).min())
            links = 2 if is_ring and len(distinct) * spacing == size else 1
            spans.append(_Span(len(distinct), links / spacing))
    return tuple(spans)


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
