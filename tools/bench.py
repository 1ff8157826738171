"""Benchmarks as tables: `python tools/bench.py [TABLE …] [--quick]`; without a table, all of them.

All cases of a table run on one machine, in turn, round after round; a figure is the median of its rounds. Those
of `mfu` run one after the other, since the memory of a device does not hold them together. Only ratios are claims:
seconds depend on the machine.
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

TABLES = (
    "step",
    "mfu",
    "loop",
    "compilation",
    "input",
    "storage",
    "packing",
    "scaling",
    "checkpoints",
    "decode",
    "attention",
    "moe",
)
PACKAGES = ("jax", "torch", "transformers", "sentencepiece", "orbax-checkpoint")
ROUNDS = 7
ROUNDS_IF_QUICK = 3


def print_table(title: str, rows: Sequence[Mapping[str, object]]) -> None:
    """Print rows that have the same keys, which are the columns."""
    from rich.console import Console
    from rich.table import Table

    table = Table(title=title, title_justify="left")
    for column in rows[0]:
        table.add_column(column, justify="right")
    for row in rows:
        table.add_row(*map(_format_cell, row.values()))
    Console().print(table)


def _format_cell(value: object) -> str:
    if value is None:
        return ""
    if isinstance(value, float):
        return f"{value:.2f}" if abs(value) < 1000 else f"{value:,.0f}"
    return str(value)


def read_versions() -> dict[str, str]:
    """Return the versions of Python and of the packages that are measured."""
    versions = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            versions[name] = "absent"
    return versions


def describe_device() -> str:
    """Return the kind of the accelerator, or the processor and its cores."""
    import jax

    device = jax.devices()[0]
    if device.platform != "cpu":
        return device.device_kind
    return f"{platform.machine()}, {os.cpu_count()} cores"


def main() -> None:
    """Measure and print the tables that the command line names."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tables", nargs="*", help=f"of {', '.join(TABLES)}")
    parser.add_argument("--rounds", type=int, help=f"{ROUNDS}, or {ROUNDS_IF_QUICK} with --quick")
    parser.add_argument("--quick", action="store_true", help="fewer and smaller cases, PyTorch uncompiled")
    parser.add_argument("--json", action="store_true", help="one JSON object instead of tables")
    options = parser.parse_args()
    unknown = set(options.tables) - set(TABLES)
    if unknown:
        parser.error(f"no such table: {', '.join(sorted(unknown))}; there are {', '.join(TABLES)}")
    # The processes of a table share a GPU with this process, which would reserve most of its memory.
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    device = describe_device()
    versions = read_versions()
    report: dict[str, Any] = {"device": device, "versions": versions}
    if not options.json:
        print(f"{device}: " + ", ".join(f"{name} {number}" for name, number in versions.items()))
    rounds = options.rounds or (ROUNDS_IF_QUICK if options.quick else ROUNDS)
    for name in options.tables or TABLES:
        started = time.perf_counter()
        report[name] = importlib.import_module(f"benchmarks.{name}").measure(rounds, options.quick)
        if not options.json:
            print_table(f"{name}: {rounds} rounds, {time.perf_counter() - started:.0f} s", report[name])
    if options.json:
        print(json.dumps(report))


if __name__ == "__main__":
    main()
