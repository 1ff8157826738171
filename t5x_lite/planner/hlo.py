"""What a compiled program sends between devices, read from its text (HLO)."""

import itertools
import math
import re
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

KINDS = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute", "ragged-all-to-all")
BITS = {"pred": 8, "s4": 4, "s8": 8, "s16": 16, "s32": 32, "s64": 64, "bf16": 16, "f16": 16, "f32": 32, "f64": 64}

# A body ends with a line of one brace; kernels hold lines of their own, some of which begin with two.
_COMPUTATION = re.compile(r"^(ENTRY )?%?([\w.\-]+) \([^\n]*\{\n((?:(?!\}(?:$|,))[^\n]*\n)*)", re.MULTILINE)
_COLLECTIVE = re.compile(rf"= (.*?) ({'|'.join(KINDS)})(?:-start)?\(")
_CALLED = re.compile(r"(?:calls|to_apply|body|condition|branch_computations|called_computations)=(\{[^}]*\}|%[\w.\-]+)")
_LOOP = re.compile(r"condition=%?([\w.\-]+), body=%?([\w.\-]+)")
_BETWEEN_SLICES = re.compile(r"= (.*?) send\(.*_xla_megascale_transfer_type=\"(\w+)\"")
_CONSTANT = re.compile(r"= [su]\d+\[\]\S* constant\((\d+)\)")
_SHAPE = re.compile(r"(\w+)\[([\d,]*)\]")


@dataclass(frozen=True)
class Collective:
    """One kind of exchange over the same mesh axes: times a step, and bytes that each device sends in them."""

    kind: str
    axes: tuple[str, ...]
    times: int
    sent: float


def find_collectives(text: str, mesh: Mapping[str, int], slices: int = 1) -> list[Collective]:
    """All exchanges of one run of a compiled program, by kind and mesh axes, the largest first.

    A loop's body counts as often as its condition says. One exchange that the compiler has spread over several
    computations (to overlap it, also with the turns of a loop) has one channel, and counts as often as it begins.

    Args:
        text: `compiled.as_text()`.
        mesh: sizes of the axes, in the order in which devices are numbered.
        slices: pods joined along the axis `data`; between them the program hands arrays to the hosts.
    """
    computations = _COMPUTATION.findall(text)
    bodies = {name: body.splitlines() for _, name, body in computations}
    often = _executions(bodies, next(name for begins, name, _ in computations if begins))
    channels: dict[str, tuple[str, tuple[str, ...], float, int]] = {}
    for name, lines in bodies.items():
        here = Counter[str]()
        for line in lines:
            if often[name] and (between := _BETWEEN_SLICES.search(line)):
                kind = between[2].lower().replace("_", "-")
                sent = _bytes(between[1].partition(", u32[]")[0], kind, slices, start=False)
                channels[line] = (kind, ("data",), sent, often[name])
            found = _COLLECTIVE.search(line)
            if not found or not often[name]:
                continue
            channel, origin = (re.search(one, line) for one in (r"channel_id=(\d+)", r'op_name="([^"]*)"'))
            key = f"{found[2]} {channel[1]} {origin[1] if origin else ''}" if channel else line
            here[key] += 1
            key += f" {here[key]}"  # those that `shard_map` has written share one channel
            axes, size = _axes(line, mesh)
            kind, sent = found[2], _bytes(found[1], found[2], size, start="-start(" in line)
            if name.startswith("all-reduce-scatter"):  # the TPU's name for a sum of which each keeps its part
                kind, sent = "reduce-scatter", sent / 2
            times = min(often[name], channels[key][3] if key in channels else often[name])
            channels[key] = (kind, axes, sent, times)
    counts, sums = Counter[tuple[str, tuple[str, ...]]](), defaultdict[tuple[str, tuple[str, ...]], float](float)
    for kind, axes, sent, times in channels.values():
        if axes:
            counts[kind, axes] += times
            sums[kind, axes] += times * sent
    return sorted((Collective(*key, counts[key], sums[key]) for key in counts), key=lambda one: -one.sent)


def _executions(bodies: Mapping[str, Sequence[str]], entry: str) -> dict[str, int]:
    """How often each computation runs."""
    often: dict[str, int] = defaultdict(int)

    def visit(name: str, times: int) -> None:
        often[name] += times
        for line in bodies[name]:
            loop = _LOOP.search(line)
            trips = _trips(line, bodies.get(loop[1], ()), bodies.get(loop[2], ())) if loop else 1
            for called in _CALLED.findall(line):
                for inner in re.findall(r"%([\w.\-]+)", called):
                    if inner in bodies:
                        visit(inner, times * trips)

    visit(entry, 1)
    return often


def _trips(line: str, condition: Sequence[str], body: Sequence[str]) -> int:
    """A counted loop's condition compares with a constant; an unrolled one counts in larger steps."""
    if known := re.search(r'known_trip_count":\{"n":"(\d+)"', line):
        return int(known[1])
    constants = [int(n) for row in condition for n in _CONSTANT.findall(row)]
    return math.ceil(max(constants, default=1) / _step(condition, body))


def _step(condition: Sequence[str], body: Sequence[str]) -> int:
    """What a body adds to the number that its loop's condition compares; 1 where that cannot be read."""
    compared = next((row for row in condition if "ROOT" in row and " compare(" in row), "")
    defined = {found[1]: row for row in (*condition, *body) if (found := re.match(r"\s*(?:ROOT )?(%[\w.\-]+) = ", row))}
    places = (re.search(r"index=(\d+)", defined.get(name, "")) for name in re.findall(r"%[\w.\-]+", compared)[1:3])
    place = next((int(found[1]) for found in places if found), None)
    result = next((row for row in body if "ROOT" in row and " tuple(" in row), "")
    names = re.findall(r"%[\w.\-]+", result.rpartition(" tuple(")[2])
    added = defined.get(names[place], "") if place is not None and place < len(names) else ""
    terms = re.findall(r"%[\w.\-]+", added.rpartition(" add(")[2])[:2]
    steps = [int(n) for name in terms for n in _CONSTANT.findall(defined.get(name, ""))]
    return steps[0] if steps and steps[0] > 0 else 1


_IOTA = r"\[([\d,]+)\](?:T\(([\d,]+)\))?"
_GROUPS = re.compile(rf"replica_groups=\[([\d,]+)\]<={_IOTA}")
_MESH_GROUPS = re.compile(rf"replica_groups=mesh\[(.*?)\](?:, device_ids=\({_IOTA}\))? \{{(.*?)\}}")


def _axes(line: str, mesh: Mapping[str, int]) -> tuple[tuple[str, ...], int]:
    """Mesh axes along which the members of a group differ, and how many members it has."""
    shape = tuple(mesh.values())
    members: np.ndarray  # [groups, members]: one group where all differ alike
    if iota := _GROUPS.search(line):
        members = _iota(iota[2], iota[3]).reshape(-1, int(iota[1].split(",")[-1]))[:1]
    elif named := _MESH_GROUPS.search(line):
        sizes = {name: int(size) for name, size in re.findall(r"'(\w+)'=(\d+)", named[1])}
        ids = _iota(named[2] or str(math.prod(shape)), named[3]).reshape(tuple(sizes.values()))
        over = re.findall(r"'(\w+)'", named[4])
        members = ids[tuple(slice(None) if name in over else 0 for name in sizes)].reshape(1, -1)
    elif pairs := re.search(r"source_target_pairs=\{(.*?)\}\}", line):
        members = np.array(re.findall(r"(\d+),(\d+)", pairs[1]), int)
    elif listed := re.search(r"replica_groups=\{\{([\d,]+)\}", line):
        members = np.array([listed[1].split(",")], int)
    else:
        members = np.arange(math.prod(shape))[None]
    differ = [bool(np.ptp(place, axis=1).any()) for place in np.unravel_index(members, shape)]
    return tuple(itertools.compress(mesh, differ)), members.shape[1]


def _iota(dims: str, permutation: str | None) -> np.ndarray:
    """Device numbers as HLO writes them: counted up in a shape, whose axes are then permuted."""
    sizes = [int(n) for n in dims.split(",")]
    ids = np.arange(math.prod(sizes)).reshape(sizes)
    return ids.transpose([int(n) for n in permutation.split(",")]) if permutation else ids


def _bytes(shape: str, kind: str, size: int, *, start: bool) -> float:
    """Bytes that one device sends: of an array of n bytes over s devices, a ring sends n·(s-1)/s once, or twice."""
    parts = [math.prod(int(n) for n in dims.split(",") if n) * BITS.get(t, 32) / 8 for t, dims in _SHAPE.findall(shape)]
    # A started exchange returns what it was given beside what it makes.
    whole = max(parts, default=0.0) if start or kind == "all-gather" else sum(parts)
    if kind == "reduce-scatter" and not start:
        whole *= size
    share = (size - 1) / size
    return whole * {"all-reduce": 2 * share, "collective-permute": 1.0}.get(kind, share)
