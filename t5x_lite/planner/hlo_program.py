"""Computations of a compiled program, and how often each runs, read from its text (HLO)."""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

# A computation's body ends with a line that holds one brace. The lines of a kernel's attributes may begin with two.
_COMPUTATION = re.compile(r"^(ENTRY )?%?([\w.\-]+) \([^\n]*\{\n((?:(?!\}(?:$|,))[^\n]*\n)*)", re.MULTILINE)
_CALLED = re.compile(r"(?:calls|to_apply|body|condition|branch_computations|called_computations)=(\{[^}]*\}|%[\w.\-]+)")
_FUSED = re.compile(r"calls=%([\w.\-]+)")
_LOOP = re.compile(r"condition=%?([\w.\-]+), body=%?([\w.\-]+)")
_TRIP_COUNT = re.compile(r'known_trip_count":\{"n":"(\d+)"')
_NAME = re.compile(r"%[\w.\-]+")
_DEFINITION = re.compile(r"\s*(?:ROOT )?(%[\w.\-]+) = ")
_INDEX = re.compile(r"index=(\d+)")
_CONSTANT = re.compile(r"= [su]\d+\[\]\S* constant\((\d+)\)")


@dataclass(frozen=True)
class Program:
    """The computations that run in a compiled program.

    Attributes:
        bodies: lines of each computation.
        executions: how often each computation runs, of those that do. A body of a loop runs as often as the loop's
            condition says; a loop whose limit is computed does not count.
        fused: names of the computations of fusions and other calls.
    """

    bodies: Mapping[str, Sequence[str]]
    executions: Mapping[str, int]
    fused: frozenset[str]


def read_program(text: str) -> Program:
    """Return the computations of a program whose text is `compiled.as_text()`."""
    computations = _COMPUTATION.findall(text)
    bodies = {name: body.splitlines() for _, name, body in computations}
    entry = next(name for entry_mark, name, _ in computations if entry_mark)
    return Program(bodies, _count_executions(bodies, entry), frozenset(_FUSED.findall(text)))


def _count_executions(bodies: Mapping[str, Sequence[str]], entry: str) -> dict[str, int]:
    """Return how often each computation runs, for those that `entry` calls, in the order of `bodies`."""
    executions: dict[str, int] = dict.fromkeys(bodies, 0)

    def visit(name: str, times: int) -> None:
        executions[name] += times
        for line in bodies[name]:
            trips = _count_trips(line, bodies)
            for called in _CALLED.findall(line):
                for inner in re.findall(r"%([\w.\-]+)", called):
                    if inner in bodies:
                        visit(inner, times * trips)

    visit(entry, 1)
    return {name: times for name, times in executions.items() if times}


def _count_trips(line: str, bodies: Mapping[str, Sequence[str]]) -> int:
    """Return how often the body of the loop in a line runs, or 1 if the line holds no loop.

    A loop whose limit is no constant runs as often as a batch needs, and counts 0.
    """
    loop = _LOOP.search(line)
    if loop is None:
        return 1
    known = _TRIP_COUNT.search(line)
    if known:
        return int(known[1])
    condition = bodies.get(loop[1], ())
    body = bodies.get(loop[2], ())
    # The condition of a counted loop compares the counter with a constant. An unrolled loop counts in larger steps.
    limits = _CONSTANT.findall("\n".join(condition))
    limit = max(map(int, limits), default=0)
    return math.ceil(limit / _counter_step(condition, body))


def _counter_step(condition: Sequence[str], body: Sequence[str]) -> int:
    """Return what a loop's body adds to the counter that its condition compares, or 1 if that cannot be read."""
    definitions = _read_definitions([*condition, *body])
    comparison = _find_root(condition, " compare(")
    operands = _NAME.findall(comparison)[1:3]
    indices = [_INDEX.search(definitions.get(name, "")) for name in operands]
    counter_index = next((int(index[1]) for index in indices if index), None)
    results = _NAME.findall(_find_root(body, " tuple(").rpartition(" tuple(")[2])
    if counter_index is None or counter_index >= len(results):
        return 1
    next_counter = definitions.get(results[counter_index], "")
    for term in _NAME.findall(next_counter.rpartition(" add(")[2])[:2]:
        constant = _CONSTANT.search(definitions.get(term, ""))
        if constant:
            return max(int(constant[1]), 1)
    return 1


def _read_definitions(lines: Sequence[str]) -> dict[str, str]:
    """Return the line that defines each name."""
    definitions = {}
    for line in lines:
        definition = _DEFINITION.match(line)
        if definition:
            definitions[definition[1]] = line
    return definitions


def _find_root(lines: Sequence[str], operation: str) -> str:
    """Return the line of the root instruction if it is this operation, else an empty line."""
    return next((line for line in lines if "ROOT" in line and operation in line), "")
