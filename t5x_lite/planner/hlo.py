"""Collectives of a compiled program, read from its text (HLO)."""

import itertools
import math
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Int

from t5x_lite.planner.hlo_program import read_program
from t5x_lite.planner.overlap import FUSED_WITH_WORK, overlapped_lines

COLLECTIVES = (
    "all-gather",
    "all-reduce",
    "reduce-scatter",
    "all-to-all",
    "collective-permute",
    "ragged-all-to-all",
)
SCATTERED_SUM = "all-reduce-scatter"
"""The TPU compiler writes a reduce-scatter as a computation of this name that holds an all-reduce."""
BITS_PER_ELEMENT = {
    "pred": 8,
    "s4": 4,
    "s8": 8,
    "u8": 8,
    "f8e4m3fn": 8,
    "f8e5m2": 8,
    "s16": 16,
    "s32": 32,
    "s64": 64,
    "bf16": 16,
    "f16": 16,
    "f32": 32,
    "f64": 64,
}

_COLLECTIVE = re.compile(rf"= (.*?) ({'|'.join(COLLECTIVES)})(?:-start)?\(")
_SPREAD_START = re.compile(r"%async-collective-start[\w.\-]* = .*calls=%([\w.\-]+)")
_SEND_BETWEEN_SLICES = re.compile(r"= (.*?) send\(.*_xla_megascale_transfer_type=\"(\w+)\"")
_CHANNEL = re.compile(r"channel_id=(\d+)")
_OP_NAME = re.compile(r'op_name="([^"]*)"')
_TYPE = re.compile(r"(%[\w.\-]+) = (\w+)\[")
_PRODUCT = re.compile(
    r" (?:convolution|dot)\((%[\w.\-]+), (%[\w.\-]+)\)|custom_call_target=\"__cublas\$lt\$matmul\$f8\""
)
_SHAPE = re.compile(r"(\w+)\[([\d,]*)\]")

_IOTA = r"\[([\d,]+)\](?:T\(([\d,]+)\))?"
_IOTA_GROUPS = re.compile(rf"replica_groups=\[([\d,]+)\]<={_IOTA}")
_MESH_GROUPS = re.compile(rf"replica_groups=mesh\[(.*?)\](?:, device_ids=\({_IOTA}\))? \{{(.*?)\}}")
_PAIRS = re.compile(r"source_target_pairs=\{(.*?)\}\}")
_LISTED_GROUPS = re.compile(r"replica_groups=\{\{([\d,]+)\}")


@dataclass(frozen=True)
class Collective:
    """All collectives of one kind over the same mesh axes in one run of a program.

    Attributes:
        kind: one of `COLLECTIVES`.
        axes: the mesh axes along which the devices of a group differ.
        times: number of executions.
        sent: bytes that each device sends in all executions together.
        overlapped: those of them that the schedule sends while the device works; see `planner.overlap`.
        between_slices: the devices of a group are in several slices.
    """

    kind: str
    axes: tuple[str, ...]
    times: int
    sent: float
    overlapped: float = 0.0
    between_slices: bool = False


@dataclass(frozen=True)
class _Channel:
    """One collective of a program: `sent` bytes in each of `times` executions, while the device works or not."""

    kind: str
    axes: tuple[str, ...]
    sent: float
    times: int
    is_overlapped: bool = False
    between_slices: bool = False


def find_collectives(text: str, mesh: Mapping[str, int], slices: int = 1) -> list[Collective]:
    """Return the collectives of one run of a compiled program by kind and mesh axes, the largest first.

    They count as often as they run; see `hlo_program.Program`. A collective that the compiler has spread over several
    fusions, to overlap it with other work, counts where it starts. The further rounds of dropless experts, a loop whose
    limit is computed, are for batches whose tokens choose unevenly.

    Args:
        text: `compiled.as_text()`.
        mesh: sizes of the axes, in the order in which devices are numbered.
        slices: number of slices, which are joined along the axis `data`. The compiler cuts a collective of several
            slices into one inside each slice and one between them, for which the hosts `send` a share of the array.
    """
    program = read_program(text)
    bodies = program.bodies
    spread_starts = set(_SPREAD_START.findall(text))
    spread = _channel_keys(bodies, spread_starts)
    fused_with_work = _channel_keys(bodies, [name for name in program.fused if name.startswith(FUSED_WITH_WORK)])
    channels: list[_Channel] = []
    for name, times in program.executions.items():
        overlapped = set(overlapped_lines(bodies[name]))
        for line in bodies[name]:
            is_overlapped = line in overlapped
            send = _SEND_BETWEEN_SLICES.search(line)
            if send:
                channel = _read_send_between_slices(send, slices, times)
                channels.append(replace(channel, is_overlapped=is_overlapped))
            instruction = _COLLECTIVE.search(line)
            if instruction:
                key = _channel_key(line, instruction[2])
                if name in spread_starts:
                    is_overlapped = key in fused_with_work
                elif name in program.fused and key in spread:
                    continue  # a part of a collective that starts elsewhere
                channel = _read_collective(instruction, line, name, mesh, slices, times)
                channels.append(replace(channel, is_overlapped=is_overlapped))
    return _sum_by_kind_and_axes(channels)


def count_quantized_products(text: str) -> int:
    """Return the number of matrix products of a compiled program whose operands have 8 bits; loops are counted once."""
    types = dict(_TYPE.findall(text))
    count = 0
    for product in _PRODUCT.finditer(text):
        operand = product[1]
        is_quantized = operand is None or types.get(operand, "").startswith(("s8", "f8"))
        count += is_quantized
    return count


def _sum_by_kind_and_axes(channels: Iterable[_Channel]) -> list[Collective]:
    """Add up channels, the largest sum first. A channel without axes or bytes stays on its device and is left out."""
    times = Counter[tuple[str, tuple[str, ...], bool]]()
    sent: dict[tuple[str, tuple[str, ...], bool], float] = defaultdict(float)
    overlapped: dict[tuple[str, tuple[str, ...], bool], float] = defaultdict(float)
    for channel in channels:
        if channel.axes and channel.sent:
            key = (channel.kind, channel.axes, channel.between_slices)
            times[key] += channel.times
            sent[key] += channel.times * channel.sent
            overlapped[key] += channel.times * channel.sent * channel.is_overlapped
    collectives = []
    for key, count in times.items():
        kind, axes, between_slices = key
        collectives.append(Collective(kind, axes, count, sent[key], overlapped[key], between_slices))
    return sorted(collectives, key=lambda collective: -collective.sent)


def _read_send_between_slices(send: re.Match[str], slices: int, times: int) -> _Channel:
    kind = send[2].lower().replace("_", "-")
    shape = send[1].partition(", u32[]")[0]
    sent = _bytes_sent(shape, kind, slices, is_start=False)
    return _Channel(kind, ("data",), sent, times, between_slices=True)


def _read_collective(
    instruction: re.Match[str], line: str, computation: str, mesh: Mapping[str, int], slices: int, times: int
) -> _Channel:
    kind = instruction[2]
    groups = _read_groups(line, math.prod(mesh.values()))
    axes = _group_axes(groups, mesh)
    group_size = groups.shape[1]
    # The devices of a slice have consecutive numbers.
    slice_numbers = groups // (math.prod(mesh.values()) // slices)
    between_slices = bool(np.ptp(slice_numbers, axis=1).any())
    sent = _bytes_sent(instruction[1], kind, group_size, is_start="-start(" in line)
    if computation.startswith(SCATTERED_SUM):
        kind = "reduce-scatter"
        sent /= 2
    return _Channel(kind, axes, sent, times, between_slices=between_slices)


def _channel_keys(bodies: Mapping[str, Sequence[str]], names: Iterable[str]) -> set[str]:
    """Return the keys of the collectives in some computations."""
    keys = set()
    for name in names:
        for line in bodies.get(name, ()):
            instruction = _COLLECTIVE.search(line)
            if instruction:
                keys.add(_channel_key(line, instruction[2]))
    return keys


def _channel_key(line: str, operation: str) -> str:
    """Return a key that is equal for the parts of one collective in several computations."""
    channel = _CHANNEL.search(line)
    if not channel:
        return line
    op_name = _OP_NAME.search(line)
    source = op_name[1] if op_name else ""
    return f"{operation} {channel[1]} {source}"


def _group_axes(groups: Int[np.ndarray, "groups members"], mesh: Mapping[str, int]) -> tuple[str, ...]:
    """Return the mesh axes along which the devices of a group differ."""
    coordinates = np.unravel_index(groups, tuple(mesh.values()))
    differs = [bool(np.ptp(coordinate, axis=1).any()) for coordinate in coordinates]
    return tuple(itertools.compress(mesh, differs))


def _read_groups(line: str, device_count: int) -> Int[np.ndarray, "groups members"]:
    """Return the devices of a collective's groups: only one group where all groups differ along the same axes."""
    if iota := _IOTA_GROUPS.search(line):
        group_size = int(iota[1].split(",")[-1])
        return _read_iota(iota[2], iota[3]).reshape(-1, group_size)[:1]
    if named := _MESH_GROUPS.search(line):
        sizes = {name: int(size) for name, size in re.findall(r"'(\w+)'=(\d+)", named[1])}
        devices = _read_iota(named[2] or str(device_count), named[3]).reshape(tuple(sizes.values()))
        group_axes = re.findall(r"'(\w+)'", named[4])
        first_group: list[int | slice] = []
        for name in sizes:
            first_group.append(slice(None) if name in group_axes else 0)
        return devices[tuple(first_group)].reshape(1, -1)
    if pairs := _PAIRS.search(line):
        return np.array(re.findall(r"(\d+),(\d+)", pairs[1]), int)
    if listed := _LISTED_GROUPS.search(line):
        return np.array([listed[1].split(",")], int)
    return np.arange(device_count)[None]


def _read_iota(shape: str, permutation: str | None) -> Int[np.ndarray, "..."]:
    """Return device numbers as HLO writes them: counted up in a shape, whose axes are then permuted."""
    sizes = [int(size) for size in shape.split(",")]
    devices = np.arange(math.prod(sizes)).reshape(sizes)
    if not permutation:
        return devices
    return devices.transpose([int(axis) for axis in permutation.split(",")])


def _bytes_sent(shape: str, kind: str, group_size: int, *, is_start: bool) -> float:
    """Return the bytes that one device sends in one collective.

    On a ring of s devices an array of n bytes costs n·(s-1)/s, and twice that for an all-reduce.

    Args:
        shape: the result of the instruction, as HLO writes it: one array, or a tuple of arrays.
        kind: one of `COLLECTIVES`.
        group_size: number of devices that take part.
        is_start: the instruction starts an asynchronous collective. But for an all-reduce, it gives a tuple whose
            first element is the operand or a tuple of operands, and whose second one is the result.
    """
    if is_start and kind != "all-reduce":
        operands, result, *_ = _tuple_elements(shape)
        total = _array_bytes(operands if kind == "reduce-scatter" else result)
    else:
        total = _array_bytes(shape)
    if kind == "reduce-scatter" and not is_start:
        total *= group_size  # the result is one device's part
    if kind == "collective-permute":
        return total
    ring_share = (group_size - 1) / group_size
    if kind == "all-reduce":
        return total * (2 * ring_share)
    return total * ring_share


def _array_bytes(shape: str) -> float:
    """Return the bytes of all arrays of a shape."""
    total_bits = 0
    for dtype, dimensions in _SHAPE.findall(shape):
        elements = math.prod(int(size) for size in dimensions.split(",") if size)
        total_bits += elements * BITS_PER_ELEMENT.get(dtype, 32)
    return total_bits / 8


def _tuple_elements(shape: str) -> list[str]:
    """Return the elements of a tuple as HLO writes it; an element may be a tuple itself."""
    elements = [""]
    depth = 0
    for character in shape:
        depth += (character in "([{") - (character in ")]}")
        if character == "," and depth == 1:
            elements.append("")
        else:
            elements[-1] += character
    return elements
