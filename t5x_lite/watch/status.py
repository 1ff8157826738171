"""The state of a run, as its config, its metrics and its checkpoints tell it."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from t5x_lite import local_copies, schema, storage
from t5x_lite.config import RunConfig
from t5x_lite.errors import UserError
from t5x_lite.metrics_file import is_number
from t5x_lite.run_layout import CONFIG_FILE, checkpoints_folder, newest_checkpoint

STEPS_FOR_SPEED = 50
"""Newest steps whose times the estimate of the remaining time takes."""
PARTS_OF_A_SCORE = 2
"""Parts of the names of the scores that are shown, such as `eval/loss`: `eval/blimp/set/…` has many."""


@dataclass(frozen=True)
class WatchedRun:
    """The parts of a run's config that do not change while it trains.

    Attributes:
        name: the run directory.
        steps: steps of the complete run.
        checkpoints: the folder of its checkpoints.
    """

    name: str
    steps: int
    checkpoints: str


@dataclass(frozen=True)
class Status:
    """The state of a run.

    Attributes:
        run: the run directory.
        step: the newest step; 0 before the first one.
        steps: steps of the complete run.
        losses: loss of each step, NaN where it was not finite.
        tokens: tokens so far.
        tokens_per_second: at the newest step.
        mfu: at the newest step.
        seconds_left: for the remaining steps at the speed of the newest ones, without evaluations; None before the
            first step.
        checkpoint: step of the newest complete checkpoint; None if there is none.
        evaluation_step: step of the newest evaluation; None if there is none.
        evaluation: its scores.
    """

    run: str
    step: int
    steps: int
    losses: tuple[float, ...]
    tokens: float | None
    tokens_per_second: float | None
    mfu: float | None
    seconds_left: float | None
    checkpoint: int | None
    evaluation_step: int | None
    evaluation: Mapping[str, float]

    @property
    def is_complete(self) -> bool:
        """All steps are done."""
        return self.step >= self.steps

    def as_json(self) -> dict[str, object]:
        """Return the state without the losses of earlier steps."""
        loss = self.losses[-1] if self.losses and math.isfinite(self.losses[-1]) else None
        return {
            "run": self.run,
            "step": self.step,
            "steps": self.steps,
            "complete": self.is_complete,
            "loss": loss,
            "tokens": self.tokens,
            "tokens_per_second": self.tokens_per_second,
            "mfu": self.mfu,
            "seconds_left": self.seconds_left,
            "checkpoint": self.checkpoint,
            "evaluation_step": self.evaluation_step,
            **self.evaluation,
        }


def open_watched(run: str) -> WatchedRun:
    """Read the config of a run. Nothing is validated: the run may be of another version of this package.

    Raises:
        UserError: it is not a run directory, or its config has no steps.
    """
    run = storage.expand(run).rstrip("/") or "/"
    name = storage.join(run, CONFIG_FILE)
    if not storage.file_exists(name):
        raise UserError(f"{run}: is not a run directory (no {CONFIG_FILE}); `t5x-lite train CONFIG` creates one")
    values = schema.read(RunConfig, local_copies.local_file(name)).values
    train = values.get("train")
    steps = train.get("steps") if isinstance(train, Mapping) else None
    if not isinstance(steps, int) or isinstance(steps, bool):
        raise UserError(f"{name}: has no number of steps (train.steps)")
    checkpoint = values.get("checkpoint")
    folder = checkpoint.get("folder") if isinstance(checkpoint, Mapping) else None
    return WatchedRun(run, steps, checkpoints_folder(run, str(folder) if folder else None))


def read_status(run: WatchedRun, records: Sequence[Mapping[str, Any]]) -> Status:
    """Return the state of a run from the lines of its metrics so far, and look for its newest checkpoint.

    Raises:
        UserError: the store of its checkpoints cannot be read.
    """
    newest: Mapping[str, Any] = records[-1] if records else {}
    step = int(newest.get("step", 0))
    evaluation_step = None
    evaluation: dict[str, float] = {}
    for record in reversed(records):
        evaluation = _scores(record)
        if evaluation:
            evaluation_step = int(record["step"])
            break
    return Status(
        run=run.name,
        step=step,
        steps=run.steps,
        losses=tuple(_losses(records)),
        tokens=_number(newest, "tokens"),
        tokens_per_second=_number(newest, "tokens_per_second"),
        mfu=_number(newest, "mfu"),
        seconds_left=_seconds_left(records[-STEPS_FOR_SPEED:], run.steps - step),
        checkpoint=newest_checkpoint(run.checkpoints),
        evaluation_step=evaluation_step,
        evaluation=evaluation,
    )


def _number(record: Mapping[str, Any], name: str) -> float | None:
    value = record.get(name)
    if value is None or not is_number(value):
        return None
    return float(value)


def _losses(records: Sequence[Mapping[str, Any]]) -> list[float]:
    losses = []
    for record in records:
        loss = _number(record, "loss")
        losses.append(math.nan if loss is None else loss)
    return losses


def _scores(record: Mapping[str, Any]) -> dict[str, float]:
    """Return the scores in a line of the metrics that have short names."""
    scores = {}
    for name, value in record.items():
        parts = name.split("/")
        if parts[0] == "eval" and len(parts) <= PARTS_OF_A_SCORE + 1 and is_number(value):
            scores[name] = float(value)
    return scores


def _seconds_left(records: Sequence[Mapping[str, Any]], steps: int) -> float | None:
    """Return the median time of these steps, times the number of steps."""
    seconds = sorted(record["seconds_per_step"] for record in records if is_number(record.get("seconds_per_step")))
    if not seconds:
        return None
    return max(steps, 0) * float(seconds[len(seconds) // 2])
