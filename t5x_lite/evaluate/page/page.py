"""The report of runs as one HTML page that loads nothing: its data, style and script are in it."""

import json
from collections.abc import Sequence
from dataclasses import asdict
from html import escape
from pathlib import Path

from t5x_lite.evaluate.page.panels import build_panels
from t5x_lite.evaluate.page.reported_run import ReportedRun, read_runs
from t5x_lite.evaluate.page.tables import goodput_table, samples_table, settings_tables, summary_table
from t5x_lite.files import write_file

ASSETS = Path(__file__).parent
POLICY = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'"
"""Content Security Policy: the page can load nothing, even if a text of a run were not escaped."""
JSON_ESCAPES = str.maketrans({"<": "\\u003c", ">": "\\u003e", "&": "\\u0026", "\u2028": "\\u2028", "\u2029": "\\u2029"})
"""Signs that would end the script element or a line of it."""


def write_page(folders: Sequence[Path], to: Path) -> Path:
    """Write the report of runs.

    It has curves that zoom, the newest metrics, the settings that differ, the use of the time, generated texts, the
    load of experts, the shares of sources and the attention of a prompt.

    Args:
        folders: the run directories.
        to: the file to write.

    Raises:
        UserError: a run without metrics; a file that cannot be written.
    """
    return write_file(to, build_page(read_runs(folders)))


def build_page(runs: Sequence[ReportedRun]) -> str:
    """Return the page."""
    title = escape(", ".join(run.name for run in runs))
    sections = {
        "Settings": settings_tables(runs),
        "Time": goodput_table(runs),
        "Samples": "".join(samples_table(run) for run in runs),
    }
    shown_sections = "".join(f"<h2>{name}</h2>{content}" for name, content in sections.items() if content)
    data = {
        "runs": [run.name for run in runs],
        "panels": [asdict(panel) for panel in build_panels(runs)],
        "attention": [{"run": run.name, **asdict(run.attention)} for run in runs if run.attention is not None],
    }
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="{POLICY}">
<title>{title}</title>
<style>
{(ASSETS / "page.css").read_text(encoding="utf-8")}</style>
</head>
<body>
<h1>{title}</h1>
{summary_table(runs)}
<p id="legend"></p>
<p>Drag over a curve to zoom, double-click to see all tokens. <button id="reset" type="button">all tokens</button></p>
<noscript><p>The curves are drawn by a script of this page; allow it.</p></noscript>
<div id="panels"></div>
<div id="attention"></div>
{shown_sections}
<script type="application/json" id="report">{_to_json(data)}</script>
<script>
{(ASSETS / "page.js").read_text(encoding="utf-8")}</script>
</body>
</html>
"""


def _to_json(data: object) -> str:
    text = json.dumps(data, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return text.translate(JSON_ESCAPES)
