"""What things cost, side by side: `python tools/bench.py [TABLE …] [--quick]`; without a table, all.

All cases of a table run on one machine, in turn, round after round; a figure is the median of its rounds. Only ratios
are claims: a machine's seconds are its own.
"""

import argparse
import importlib
import json
import os
import platform
import time
from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from typing import Any

TABLES = ("step", "mfu", "loop", "compilation", "input", "checkpoints", "decode", "attention", "moe")


def show(name: str, lines: Sequence[Mapping[str, Any]]) -> None:
    """One table."""
    from rich.console import Console
    from rich.table import Table

    table = Table(title=name, title_justify="left")
    for column in lines[0]:
        table.add_column(column, justify="right")
    for line in lines:
        table.add_row(*map(_shown, line.values()))
    Console().print(table)


def _shown(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.2f}" if abs(value) < 1000 else f"{value:,.0f}"
    return "" if value is None else str(value)


def versions() -> dict[str, str]:
    """What was measured with."""
    found = {"python": platform.python_version()}
    for name in ("jax", "torch", "transformers", "sentencepiece", "orbax-checkpoint"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "absent"
    return found


def main() -> None:
    """Measure what is asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tables", nargs="*", help=f"of {', '.join(TABLES)}")
    parser.add_argument("--rounds", type=int, help="7, or 3 if --quick")
    parser.add_argument("--quick", action="store_true", help="less of everything, PyTorch uncompiled")
    parser.add_argument("--json", action="store_true", help="one JSON object instead of tables")
    given = parser.parse_args()
    unknown = set(given.tables) - set(TABLES)
    if unknown:
        parser.error(f"no such table: {', '.join(sorted(unknown))}; there are {', '.join(TABLES)}")
    # Sides of a table share a GPU with this process, which would take most of its memory.
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    import jax

    device = jax.devices()[0]
    kind = device.device_kind if device.platform != "cpu" else f"{platform.machine()}, {os.cpu_count()} cores"
    found: dict[str, Any] = {"device": kind, "versions": versions()}
    if not given.json:
        print(f"{kind}: " + ", ".join(f"{name} {number}" for name, number in found["versions"].items()))
    for name in given.tables or TABLES:
        rounds, begun = given.rounds or (3 if given.quick else 7), time.perf_counter()
        found[name] = importlib.import_module(f"benchmarks.{name}").table(rounds, given.quick)
        if not given.json:
            show(f"{name}: {rounds} rounds, {time.perf_counter() - begun:.0f} s", found[name])
    if given.json:
        print(json.dumps(found))


if __name__ == "__main__":
    main()
