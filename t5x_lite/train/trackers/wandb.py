"""Weights & Biases (extra `wandb`)."""

import os
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Literal

from t5x_lite.extras import require_library
from t5x_lite.schema import setting
from t5x_lite.train.trackers.tracker import TrackedRun, Tracker, TrackerWriter

if TYPE_CHECKING:
    import wandb


SECONDS_OF_A_NAME = 1.1
"""Time after which the name of a run's folder is another."""


class WeightsAndBiases(Tracker):
    """Weights & Biases. Without a network, `mode: offline` writes to `RUN/wandb`, which `wandb sync` uploads."""

    project: str = setting("t5x_lite", "project of the run", min_length=1)
    entity: str | None = setting(None, "user or team; null is your default", min_length=1)
    mode: Literal["online", "offline"] | None = setting(None, "null takes WANDB_MODE, or online")

    def check(self) -> None:
        """Check that the library is installed."""
        require_library("train.trackers: wandb", "wandb", "wandb")

    def open(self, run: TrackedRun) -> TrackerWriter:
        """Open the run, whose id on the server is that of the run directory."""
        import wandb

        _wait_for_new_second(run)
        # A job that nobody watches must not ask for a key on its terminal.
        settings = wandb.Settings(console="off", silent=True, disable_git=True, disable_code=True, login_timeout=1)
        wandb_run = wandb.init(
            project=self.project,
            entity=self.entity,
            mode=self.mode or os.environ.get("WANDB_MODE", "online"),  # type: ignore[arg-type]
            id=run.identifier,
            name=run.name,
            resume="allow",
            dir=str(run.folder),
            config=dict(run.settings),
            settings=settings,
        )
        return WandbRun(wandb_run, run.tracked_step)


def _wait_for_new_second(run: TrackedRun) -> None:
    """Wait until a second has passed since the run was last opened.

    The library names a folder after the second, and a run that is opened twice within it would lose the later steps.
    """
    for folder in (run.folder / "wandb").glob(f"*run-*-{run.identifier}"):
        age = time.time() - folder.stat().st_mtime
        time.sleep(min(max(SECONDS_OF_A_NAME - age, 0.0), SECONDS_OF_A_NAME))


class WandbRun:
    """An open run of Weights & Biases. It has no way to take steps back, so steps that it already has are left out."""

    def __init__(self, run: "wandb.Run", tracked_step: int) -> None:
        self._run = run
        self._tracked_step = tracked_step

    def write(self, step: int, scalars: Mapping[str, float]) -> None:
        """Log the metrics of a step."""
        if step > self._tracked_step:
            self._run.log(dict(scalars), step=step)

    def close(self) -> None:
        """Upload what is waiting, and end the process that uploads."""
        self._run.finish()
