"""The results of evaluations in a run directory: `RUN/eval/STEP`."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import jax
import numpy as np

from t5x_lite.files import read_json_object, write_file
from t5x_lite.local_copies import upload_changes


def save_scores(folder: Path, scores: Mapping[str, float]) -> None:
    """Add scores to those in `scores.json`. The first process writes.

    Raises:
        UserError: the file cannot be read or written.
    """
    if jax.process_index() > 0:
        return
    path = folder / "scores.json"
    saved_scores: dict[str, float] = {}
    if path.is_file():
        saved_scores = read_json_object(path)
    write_file(path, json.dumps({**saved_scores, **scores}, indent=2) + "\n")
    upload_changes()


def save_samples(folder: Path, samples: Mapping[str, Sequence[object]]) -> None:
    """Write the samples of each task to `<task>.jsonl`. The first process writes.

    Raises:
        UserError: a file cannot be written.
    """
    if jax.process_index() > 0:
        return
    for task, records in samples.items():
        lines = [json.dumps(record, default=_to_json, ensure_ascii=False) + "\n" for record in records]
        write_file(folder / f"{task.replace('/', '_')}.jsonl", "".join(lines))


def _to_json(value: object) -> object:
    """Return a value that JSON holds, for one that it does not."""
    if isinstance(value, np.generic):
        return value.item()
    return str(value)
