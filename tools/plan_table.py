"""The Markdown table of `plan --json` reports: `python tools/plan_table.py build/plans/*.json`."""

import json
import sys
from pathlib import Path


def row(path: Path) -> tuple[str, ...]:
    """One report; a file that holds none says so."""
    try:
        found = json.loads(path.read_text())
    except ValueError:
        return (path.stem, "no report", *[""] * 8)
    compiled, modelled = found["compiled"], found["modelled"]
    mesh = " × ".join(f"{axis} {size}" for axis, size in found["mesh"].items())
    size, sent = compiled.get("memory_bytes"), sum(one["sent"] for one in compiled.get("exchanges", ()))
    least = sum(one["sent"] for one in modelled["exchanges"])
    return (
        path.stem,
        f"{found['topology']}, {found['devices']}",
        mesh,
        f"{found['parameters'] / 1e9:.1f}B",
        f"{'' if size is None else f'{size / 2**30:.1f} of '}{found['available_bytes'] / 2**30:.1f}",
        "yes" if found["fits"] else "no",
        f"{sent / 1e9:.1f} ({least / 1e9:.1f})",
        f"{modelled['step_seconds']:.2f}",
        f"{modelled['mfu_causal_half']:.0%}",
        f"{compiled['seconds']:.0f}",
    )


def main() -> None:
    """Print the table."""
    head = (
        "config",
        "topology, devices",
        "mesh",
        "parameters",
        "GiB a device",
        "fits",
        "GB sent a step (modelled)",
        "step ≥ s",
        "MFU ≤",
        "compiled in s",
    )
    rows = [head, ("---",) * len(head), *(row(Path(path)) for path in sys.argv[1:])]
    for cells in rows:
        print("| " + " | ".join(cells) + " |")


if __name__ == "__main__":
    main()
