"""Print `plan --json` reports as a Markdown table: `python tools/plan_table.py build/plans/*.json`."""

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from markdown_table import print_markdown

from t5x_lite.parallel.config import gpu_count

GIBIBYTE = 2**30
COLUMNS = (
    "config",
    "topology, devices",
    "mesh",
    "remat",
    "parameters",
    "GiB per device",
    "fits",
    "GB sent per step (modelled)",
    "overlapped",
    "step ≥ s",
    "bound by",
    "MFU ≤",
    "MFU estimated",
    "compilation, s",
)
LINKS = {"memory": "HBM", "ici": "ICI", "dcn": "DCN"}
"""Names of what bounds the time of a step beside arithmetic, by the keys of a report."""
LINKS_OF_GPUS = {**LINKS, "ici": "NVLink", "dcn": "network"}
LEAST_EXPOSED = 0.01
"""Share of a step from which on collectives that nothing overlaps are named."""


def name_bound(topology: str, modelled: Mapping[str, float], collectives: Sequence[Mapping[str, Any]]) -> str:
    """Return what the time of a step is bound by: one of them, or arithmetic and waits for links."""
    step = modelled["step_seconds"]
    names = LINKS if gpu_count(topology) is None else LINKS_OF_GPUS
    for key, name in names.items():
        if modelled[f"{key}_seconds"] == step:
            return name
    if modelled["exposed_seconds"] <= LEAST_EXPOSED * step:
        return "compute"
    links = {row["link"] for row in collectives if row["sent"] - row["overlapped"] > LEAST_EXPOSED * row["sent"]}
    return ", ".join(["compute", *sorted(links, reverse=True)])


def read_row(path: Path) -> tuple[str, ...]:
    """Return the cells of one report; a file without a report gives a row that says so."""
    try:
        report = json.loads(path.read_text())
    except ValueError:
        return (path.stem, "no report", *[""] * (len(COLUMNS) - 2))
    compiled = report["compiled"]
    modelled = report["modelled"]
    mesh = " × ".join(f"{axis} {size}" for axis, size in report["mesh"].items())
    memory = f"{report['available_bytes'] / GIBIBYTE:.1f}"
    used_bytes = compiled.get("memory_bytes")
    if used_bytes is not None:
        memory = f"{used_bytes / GIBIBYTE:.1f} of {memory}"
    sent = sum(collective["sent"] for collective in compiled.get("collectives", ()))
    overlapped = sum(collective["overlapped"] for collective in compiled.get("collectives", ()))
    required = sum(collective["sent"] for collective in modelled["collectives"])
    return (
        path.stem,
        f"{report['topology']}, {report['devices']}",
        mesh,
        report["remat"],
        f"{report['parameters'] / 1e9:.1f}B",
        memory,
        "yes" if report["fits"] else "no",
        f"{sent / 1e9:.1f} ({required / 1e9:.1f})",
        f"{overlapped / max(sent, 1):.0%}",
        f"{modelled['step_seconds']:.2f}",
        name_bound(report["topology"], modelled, compiled.get("collectives", ())),
        f"{modelled['mfu_causal_half']:.0%}",
        f"{report['estimate']['mfu_causal_half']:.0%}" if report["estimate"] else "",
        f"{compiled['seconds']:.0f}",
    )


def main() -> None:
    """Print the reports that the command line names."""
    print_markdown([COLUMNS, *[read_row(Path(path)) for path in sys.argv[1:]]])


if __name__ == "__main__":
    main()
