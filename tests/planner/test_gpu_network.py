"""Times of collectives of GPUs, by hand and from the figures of How To Scale Your Model."""

from types import SimpleNamespace
from typing import cast

import pytest
from jax.sharding import Mesh

from t5x_lite.parallel.chips import CHIPS
from t5x_lite.planner.gpu_network import gpu_link_seconds, group_shape

H100 = CHIPS["NVIDIA H100"]
LINK = 450e9
NETWORK = 50e9
HOST = 8 * NETWORK
BYTES = 2 * 16384 * 16384


def mesh_of(**sizes: int) -> Mesh:
    """Return what the times need of a mesh: its sizes."""
    size = 1
    for length in sizes.values():
        size *= length
    return cast(Mesh, SimpleNamespace(shape=sizes, size=size))


def test_groups_are_on_as_many_hosts_as_their_numbers_say() -> None:
    mesh = mesh_of(data=4, fsdp=4, tensor=4)
    assert group_shape(("tensor",), mesh, H100) == (1, 4)
    assert group_shape(("fsdp",), mesh, H100) == (2, 2)
    assert group_shape(("fsdp", "tensor"), mesh, H100) == (2, 8)
    assert group_shape(("data",), mesh, H100) == (4, 1)
    # Of four groups of six the second and the third are on two hosts.
    assert group_shape(("fsdp",), mesh_of(data=4, fsdp=6), H100) == (2, 3)


def test_a_gather_on_a_host_takes_the_time_of_nvlink() -> None:
    """Austin et al. 2025, part 12: bytes · (N - 1) / N over the bandwidth of a GPU."""
    seconds = gpu_link_seconds("all-gather", ("fsdp",), BYTES * 7 / 8, mesh_of(fsdp=8), H100)
    assert seconds == pytest.approx({"NVLink": BYTES * 7 / 8 / LINK, "network": 0.0})


@pytest.mark.parametrize(("kind", "sums"), [("all-gather", 1), ("reduce-scatter", 1), ("all-reduce", 2)])
def test_a_gather_between_hosts_uses_the_ports_of_all_their_gpus(kind: str, sums: int) -> None:
    """Austin et al. 2025, part 12: bytes over the bandwidth of a host, times (hosts - 1) / hosts, twice for a sum."""
    seconds = gpu_link_seconds(kind, ("data",), sums * BYTES * 1023 / 1024, mesh_of(data=1024), H100)
    assert seconds["network"] == pytest.approx(sums * BYTES * 127 / 128 / HOST)
    assert seconds["network"] > seconds["NVLink"]


def test_a_group_with_one_gpu_of_each_host_has_one_port() -> None:
    seconds = gpu_link_seconds("all-gather", ("data",), BYTES * 3 / 4, mesh_of(data=4, tensor=8), H100)
    assert seconds == pytest.approx({"NVLink": 0.0, "network": BYTES * 3 / 4 / NETWORK})


def test_two_hosts_share_what_arrives_over_nvlink() -> None:
    """Half of the bytes arrive at 400 GB/s, which takes less time than to share seven eighths at 450 GB/s."""
    seconds = gpu_link_seconds("all-gather", ("fsdp",), BYTES * 15 / 16, mesh_of(fsdp=16), H100)
    assert seconds == pytest.approx({"NVLink": BYTES * 7 / 8 / LINK, "network": BYTES / 2 / HOST})


def test_an_exchange_sends_to_other_hosts_what_they_need_of_it() -> None:
    """Austin et al. 2025, part 12: bytes · (M - 1) / M² over the bandwidth of a host, of M hosts.

    Here the bytes are those of one of 32 GPUs; on one host NVLink carries seven eighths of them.
    """
    seconds = gpu_link_seconds("all-to-all", ("expert",), BYTES * 31 / 32, mesh_of(expert=32), H100)
    assert seconds == pytest.approx({"NVLink": BYTES * 7 / 32 / LINK, "network": 32 * BYTES * 3 / 4**2 / HOST})
    on_a_host = gpu_link_seconds("all-to-all", ("expert",), BYTES * 7 / 8, mesh_of(data=4, expert=8), H100)
    assert on_a_host == pytest.approx({"NVLink": BYTES * 7 / 8 / LINK, "network": 0.0})


def test_a_permute_goes_over_one_port() -> None:
    mesh = mesh_of(pipeline=2, fsdp=8)
    between_hosts = gpu_link_seconds("collective-permute", ("pipeline",), BYTES, mesh, H100)
    assert between_hosts == {"NVLink": 0.0, "network": BYTES / NETWORK}
    assert gpu_link_seconds("collective-permute", ("fsdp",), BYTES, mesh, H100) == {
        "NVLink": BYTES / LINK,
        "network": 0.0,
    }
