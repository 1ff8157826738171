"""The tables of a report as HTML. All texts of runs are escaped."""

from collections.abc import Iterable, Mapping, Sequence
from html import escape
from typing import Any

from t5x_lite.evaluate.page.reported_run import ReportedRun, differing_settings
from t5x_lite.metrics_file import is_number
from t5x_lite.progress import format_duration, format_si

SUMMARY = {
    "step": "step",
    "tokens": "tokens",
    "loss": "loss",
    "eval/loss": "validation loss",
    "eval/perplexity": "perplexity",
    "eval/bits_per_byte": "bits per byte",
    "tokens_per_second": "tokens/s",
    "mfu": "MFU",
    "goodput": "goodput",
}
"""Columns of the summary: the newest value of each metric."""
SHARES = {"mfu", "goodput"}
LARGE_NUMBERS = {"tokens", "tokens_per_second"}
ACTIVITY_COLORS = ("#ff7f0e", "#8c564b", "#2ca02c", "#1f77b4", "#9467bd", "#7f7f7f", "#d62728")
"""Colours of `compile`, `data`, `step`, `evaluation`, `checkpoint`, `restart` and `lost`."""


def summary_table(runs: Sequence[ReportedRun]) -> str:
    """Return the newest metrics of each run."""
    newest = [_newest_values(run.lines) for run in runs]
    columns = [metric for metric in SUMMARY if any(metric in values for values in newest)]
    rows = []
    for run, values in zip(runs, newest, strict=True):
        rows.append([run.name, *(_format_metric(metric, values.get(metric)) for metric in columns)])
    return table(["run", *(SUMMARY[metric] for metric in columns)], rows)


def _newest_values(lines: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    values = {}
    for line in lines:
        for metric in SUMMARY:
            if is_number(line.get(metric)):
                values[metric] = float(line[metric])
    return values


def _format_metric(metric: str, value: float | None) -> str:
    if value is None:
        return ""
    if metric in SHARES:
        return f"{value:.1%}"
    if metric in LARGE_NUMBERS:
        return format_si(value)
    if metric == "step":
        return str(round(value))
    return f"{value:.4f}"


def settings_tables(runs: Sequence[ReportedRun]) -> str:
    """Return the settings that differ between the runs, and all settings of each run to unfold."""
    parts = []
    rows = [[key, *values] for key, values in differing_settings(runs).items()]
    if len(runs) > 1:
        parts.append(table(["setting", *(run.name for run in runs)], rows) if rows else "<p>The configs are equal.</p>")
    for run in runs:
        if run.settings:
            settings = [[key, str(value)] for key, value in run.settings.items()]
            unfolded = table(["setting", "value"], settings)
            parts.append(f"<details><summary>all settings of {escape(run.name)}</summary>{unfolded}</details>")
    return "".join(parts)


def goodput_table(runs: Sequence[ReportedRun]) -> str:
    """Return the use of the time of each run, as a bar and in words; an empty text if no run has measured it."""
    rows = []
    for run in runs:
        total = sum(run.goodput.values())
        if total <= 0:
            continue
        segments = []
        words = []
        for number, (activity, seconds) in enumerate(run.goodput.items()):
            color = ACTIVITY_COLORS[number % len(ACTIVITY_COLORS)]
            label = f"{activity} {seconds / total:.1%} ({format_duration(seconds)})"
            if seconds > 0:
                width = f"width:{seconds / total:.4%};background:{color}"
                segments.append(f'<span style="{width}" title="{escape(label)}"></span>')
                words.append(label)
        bar = f'<div class="bar">{"".join(segments)}</div>{escape(", ".join(words))}'
        rows.append(f"<tr><td>{escape(run.name)}</td><td>{bar}</td></tr>")
    if not rows:
        return ""
    return f"<table><tr><th>run</th><th>time</th></tr>{''.join(rows)}</table>"


def samples_table(run: ReportedRun) -> str:
    """Return the generated texts of a run by prompt and step; an empty text if it has none."""
    rows = []
    for prompt in dict.fromkeys(sample.prompt for sample in run.samples):
        for sample in run.samples:
            if sample.prompt == prompt:
                rows.append([str(sample.step), sample.prompt, sample.text])
    if not rows:
        return ""
    return f"<h3>{escape(run.name)}</h3>" + table(["step", "prompt", "text"], rows)


def table(header: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    """Return a table of texts."""
    head = "".join(f"<th>{escape(name)}</th>" for name in header)
    lines = []
    for row in rows:
        lines.append("<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>")
    return f"<table><tr>{head}</tr>{''.join(lines)}</table>"
