"""The parts of a run directory that a report shows."""

import base64
import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from t5x_lite import schema
from t5x_lite.config import RunConfig
from t5x_lite.data.mixture_file import read_mixture
from t5x_lite.errors import UserError
from t5x_lite.evaluate.curves import distinct_names
from t5x_lite.evaluate.mixture_curve import MixtureCurve
from t5x_lite.files import read_json_object
from t5x_lite.metrics_file import is_number, metric_records, read_metrics
from t5x_lite.run_layout import CONFIG_FILE, is_step


@dataclass(frozen=True)
class Sample:
    """A text that the model generated in training, by the evaluator `samples`."""

    step: int
    prompt: str
    text: str


@dataclass(frozen=True)
class AttentionWeights:
    """The attention of a prompt, from the newest evaluation by `attention_map`.

    Attributes:
        step: of the evaluation.
        prompt: the text.
        tokens: its tokens.
        layers: number of layers.
        heads: number of heads.
        weights: bytes `[layers, heads, tokens, tokens]` in base64; 255 is a weight of 1.
    """

    step: int
    prompt: str
    tokens: tuple[str, ...]
    layers: int
    heads: int
    weights: str


@dataclass(frozen=True)
class ReportedRun:
    """A run as its report shows it.

    Attributes:
        name: the name that tells it from the other runs of the report.
        lines: the lines of its metrics.
        settings: its config, by dotted keys; empty if it has none that can be read.
        goodput: seconds by activity.
        samples: by step.
        mixture: the shares of its sources; None if it has one source and no schedule.
        attention: of a prompt; None if it was not evaluated.
    """

    name: str
    lines: Sequence[Mapping[str, Any]]
    settings: Mapping[str, object]
    goodput: Mapping[str, float]
    samples: Sequence[Sample]
    mixture: MixtureCurve | None
    attention: AttentionWeights | None = None


def read_runs(folders: Sequence[Path]) -> list[ReportedRun]:
    """Read run directories.

    Raises:
        UserError: a run without metrics.
    """
    runs = []
    for folder, name in zip(folders, distinct_names(folders), strict=True):
        lines = read_metrics(folder)
        stages = read_mixture(folder)
        mixture = MixtureCurve.of(stages, lines[-1]["step"]) if stages else None
        runs.append(
            ReportedRun(
                name,
                lines,
                _read_settings(folder),
                _read_goodput(folder),
                _read_samples(folder),
                mixture,
                _read_attention(folder),
            )
        )
    return runs


def _read_settings(folder: Path) -> dict[str, object]:
    path = folder / CONFIG_FILE
    if not path.is_file():
        return {}
    try:
        return dict(schema.dotted(schema.read(RunConfig, path).values))
    except UserError:  # a report is of the metrics first
        return {}


def _read_goodput(folder: Path) -> dict[str, float]:
    path = folder / "goodput.json"
    if not path.is_file():
        return {}
    try:
        seconds = read_json_object(path)
    except UserError:
        return {}
    return {activity: float(value) for activity, value in seconds.items() if is_number(value)}


def _read_samples(folder: Path) -> list[Sample]:
    samples = []
    for path in (folder / "eval").glob("*/samples.jsonl"):
        step = path.parent.name
        if not is_step(step):
            continue
        for record in metric_records(path):
            samples.append(Sample(int(step), str(record.get("prompt", "")), str(record.get("text", ""))))
    return sorted(samples, key=lambda sample: sample.step)


def _read_attention(folder: Path) -> AttentionWeights | None:
    """Return the newest attention of a prompt; None if there is none that can be read."""
    paths = {}
    for path in (folder / "eval").glob("*/attention.json"):
        if is_step(path.parent.name):
            paths[int(path.parent.name)] = path
    if not paths:
        return None
    step = max(paths)
    with suppress(KeyError, TypeError, UserError, ValueError):
        content = read_json_object(paths[step])
        attention = AttentionWeights(
            step,
            str(content["prompt"]),
            tuple(map(str, content["tokens"])),
            int(content["layers"]),
            int(content["heads"]),
            str(content["weights"]),
        )
        count = attention.layers * attention.heads * len(attention.tokens) ** 2
        if len(base64.b64decode(attention.weights, validate=True)) == count > 0:
            return attention
    return None


def differing_settings(runs: Sequence[ReportedRun]) -> dict[str, list[str]]:
    """Return the settings whose values differ between runs: the value of each as JSON, empty where it has none."""
    keys = dict.fromkeys(key for run in runs for key in run.settings)
    rows = {}
    for key in keys:
        if key == "run_dir":
            continue
        values = [_format_setting(run.settings, key) for run in runs]
        if len(set(values)) > 1:
            rows[key] = values
    return rows


def _format_setting(settings: Mapping[str, object], key: str) -> str:
    if key not in settings:
        return ""
    value = settings[key]
    if isinstance(value, str):
        return value
    with suppress(TypeError, ValueError):
        return json.dumps(value, ensure_ascii=False)
    return str(value)
