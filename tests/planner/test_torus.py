"""Times of collectives on tori, by hand and by counting what crosses each link."""

import math
from collections import Counter
from collections.abc import Mapping
from itertools import product
from types import SimpleNamespace
from typing import cast

import numpy as np
import pytest
from jax.sharding import Mesh

from t5x_lite.parallel.chips import CHIPS
from t5x_lite.planner.torus import torus_seconds

V4 = CHIPS["TPU v4"]
V5E = CHIPS["TPU v5 lite"]
LINK = 45e9
BYTES = 2 * 2048 * 8192


def torus_mesh(torus: tuple[int, int, int], sizes: Mapping[str, int], slices: int = 1) -> Mesh:
    """Return a mesh of the chips of a torus, the last axis of both varying fastest."""
    chips = []
    for slice_index, coords in product(range(slices), product(*map(range, torus))):
        chips.append(SimpleNamespace(coords=coords, slice_index=slice_index))
    grid = np.array(chips, dtype=object).reshape(tuple(sizes.values()))
    # The times need nothing of a mesh but its sizes and where its devices stand.
    return cast(Mesh, HashableMesh(dict(sizes), grid))


class HashableMesh:
    """Sizes and devices of a mesh."""

    def __init__(self, shape: dict[str, int], devices: np.ndarray) -> None:
        self.shape = shape
        self.devices = devices


@pytest.mark.parametrize(("fsdp", "tensor", "groups_on_a_chip"), [(64, 2, 2), (128, 1, 1)])
def test_groups_on_the_same_chips_share_their_links(fsdp: int, tensor: int, groups_on_a_chip: int) -> None:
    """Two devices on each chip of a torus of 4 x 4 x 4. Six links bring a chip what each group on it gathers.

    Of two devices in one group, each sends 127/128 of an array of which the chip receives 63/64.
    """
    coords = [position for position in product(range(4), repeat=3) for _ in range(2)]
    devices = [SimpleNamespace(coords=position, slice_index=0) for position in coords]
    grid = np.array(devices, dtype=object).reshape(fsdp, tensor)
    mesh = cast(Mesh, HashableMesh({"fsdp": fsdp, "tensor": tensor}, grid))
    chip = CHIPS["TPU7x"]
    seconds = torus_seconds("all-gather", ("fsdp",), BYTES * (fsdp - 1) / fsdp, mesh, chip)
    assert seconds == pytest.approx(groups_on_a_chip * BYTES * 63 / 64 / (6 * chip.link_rate))


@pytest.mark.parametrize(
    ("name", "gigabits", "chips"),
    [
        ("TPU v4", 200, 4),
        ("TPU v5 lite", 2 * 100, 8),
        ("TPU v5", 200, 4),
        ("TPU v6 lite", 4 * 200, 8),
        ("TPU7x", 100, 2),
    ],
)
def test_the_chips_of_a_host_share_its_network(name: str, gigabits: int, chips: int) -> None:
    """Google Cloud's pages on v5e and v6e give the cards of a host, and that on TPU7x the rate of a chip, 2 devices."""
    assert CHIPS[name].network_rate == gigabits * 1e9 / 8 / chips


def test_a_ring_of_eight_takes_the_times_of_how_to_scale_your_model() -> None:
    """Part 3 of Austin et al. 2025: bytes / W to gather, bytes / 4W for an all-to-all, W both ways of a link.

    Their time to gather neglects the device's own shard. Of an all-to-all each device holds an eighth.
    """
    mesh = torus_mesh((4, 4, 8), {"data": 16, "fsdp": 8})
    both_ways = 2 * LINK
    gathering = torus_seconds("all-gather", ("fsdp",), BYTES * 7 / 8, mesh, V4)
    assert gathering == pytest.approx(BYTES / both_ways * 7 / 8)
    exchange = torus_seconds("all-to-all", ("fsdp",), BYTES / 8 * 7 / 8, mesh, V4)
    assert exchange == pytest.approx(BYTES / (4 * both_ways))


@pytest.mark.parametrize(
    ("torus", "sizes", "axes", "links"),
    [
        ((4, 8, 8), {"fsdp": 32, "data": 8}, ("fsdp",), 4),
        ((4, 8, 8), {"fsdp": 32, "data": 8}, ("data",), 2),
        ((4, 8, 8), {"fsdp": 32, "data": 8}, ("fsdp", "data"), 6),
        # Four of eight positions are no ring.
        ((4, 4, 8), {"fsdp": 4, "data": 8, "tensor": 4}, ("tensor",), 1),
        # A slice that does not consist of cubes has no rings.
        ((2, 4, 4), {"fsdp": 32}, ("fsdp",), 3),
        ((2, 2, 1), {"fsdp": 4}, ("fsdp",), 2),
    ],
)
def test_all_links_along_a_group_gather(
    torus: tuple[int, int, int], sizes: Mapping[str, int], axes: tuple[str, ...], links: int
) -> None:
    mesh = torus_mesh(torus, sizes)
    for kind in ("all-gather", "reduce-scatter"):
        assert torus_seconds(kind, axes, 1e9, mesh, V4) == pytest.approx(1e9 / (links * LINK))
    assert torus_seconds("collective-permute", axes, 1e9, mesh, V4) == pytest.approx(1e9 / (min(links, 2) * LINK))


def test_a_sum_for_all_devices_of_a_line_takes_the_time_of_its_bytes_on_one_link() -> None:
    """Partial sums go one way while results come back: n bytes on every link of a line, and on a ring two links."""
    sent = 2 * BYTES * 3 / 4
    line = torus_mesh((4, 4, 8), {"data": 32, "fsdp": 4})
    assert torus_seconds("all-reduce", ("fsdp",), sent, line, V4) == pytest.approx(BYTES / LINK)
    ring = torus_mesh((8, 4, 4), {"data": 32, "fsdp": 4})
    assert torus_seconds("all-reduce", ("fsdp",), sent, ring, V4) == pytest.approx(2 * BYTES * 3 / 4 / (2 * LINK))


def test_two_devices_of_a_chip_share_its_links() -> None:
    """Of four devices on two chips, half of an array must be sent, and of an exchange what four devices send."""
    mesh = torus_mesh((2, 1, 2), {"fsdp": 4})
    for device in mesh.devices.flat:
        device.coords = (device.coords[0], 0, 0)
    assert torus_seconds("all-gather", ("fsdp",), BYTES * 3 / 4, mesh, V4) == pytest.approx(BYTES / 2 / LINK)
    # Each of two devices of a chip sends a quarter of its array to each of two devices of the other chip.
    assert torus_seconds("all-to-all", ("fsdp",), BYTES * 3 / 4, mesh, V4) == pytest.approx(BYTES / LINK)


@pytest.mark.parametrize(("torus", "links"), [((4, 4, 1), 2), ((8, 16, 1), 3), ((16, 16, 1), 4)])
def test_axes_of_sixteen_chips_are_the_rings_of_a_torus_with_two_axes(torus: tuple[int, int, int], links: int) -> None:
    mesh = torus_mesh(torus, {"fsdp": math.prod(torus)})
    assert torus_seconds("all-gather", ("fsdp",), 1e9, mesh, V5E) == pytest.approx(1e9 / (links * LINK))


def test_links_between_slices_are_not_those_of_the_torus() -> None:
    """Of eight devices along `data`, four are in each slice, and these are a ring."""
    mesh = torus_mesh((4, 4, 4), {"data": 8, "fsdp": 16}, slices=2)
    assert torus_seconds("all-reduce", ("data",), 1e9, mesh, V4) == pytest.approx(1e9 / (2 * LINK))


@pytest.mark.parametrize(
    ("torus", "sizes"),
    [
        ((4, 4, 4), {"expert": 64}),
        ((4, 8, 8), {"expert": 256}),
        ((2, 2, 1), {"expert": 4}),
        ((2, 4, 4), {"expert": 32}),
        ((2, 2, 3), {"expert": 12}),
        # Groups between each other: every fourth chip of a ring and of a line, and on two axes.
        ((4, 4, 8), {"fsdp": 16, "expert": 2, "data": 4}),
        ((2, 2, 8), {"fsdp": 4, "expert": 2, "data": 4}),
        ((4, 4, 8), {"fsdp": 4, "expert": 8, "data": 4}),
    ],
)
def test_an_exchange_takes_as_long_as_its_busiest_link(torus: tuple[int, int, int], sizes: Mapping[str, int]) -> None:
    """Each device sends a message to each of its group, along one axis after the other.

    A message goes the shortest way, or half of it goes either way. All groups send at the same time.
    """
    mesh = torus_mesh(torus, sizes)
    is_ring = all(size % 4 == 0 for size in torus)
    loads = Counter[tuple[int, tuple[int, ...], int]]()
    grid = np.moveaxis(mesh.devices, list(sizes).index("expert"), -1).reshape(-1, sizes["expert"])
    groups = [[device.coords for device in group] for group in grid]
    for source, target in (pair for group in groups for pair in product(group, repeat=2)):
        place = list(source)
        for axis, size in enumerate(torus):
            distance = target[axis] - source[axis]
            ways = {distance: 1.0}
            if is_ring:
                nearest = (distance + size // 2) % size - size // 2
                ways = {nearest: 1.0} if abs(nearest) < size / 2 else {nearest: 0.5, -nearest: 0.5}
            for way, share in ways.items():
                direction = 1 if way > 0 else -1
                for step in range(0, way, direction):
                    here = list(place)
                    here[axis] = (place[axis] + step) % size
                    loads[axis, tuple(here), direction] += share
            place[axis] = target[axis]
    message = 1e6
    sent = message * (sizes["expert"] - 1)
    seconds = torus_seconds("all-to-all", ("expert",), sent, mesh, V4)
    assert seconds == pytest.approx(message * max(loads.values()) / LINK)
