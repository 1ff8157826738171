"""Settings of checkpoints. This module does not import JAX."""

from collections.abc import Iterator
from typing import Annotated, Literal

from pydantic import Strict

from t5x_lite.schema import Config, Int, setting
from t5x_lite.storage import is_remote


class LocalCheckpointConfig(Config):
    """A second tier of checkpoints, on the disks of the machines that train."""

    folder: str = setting(
        ...,
        "folder on a disk of each machine; every process keeps its part of the two newest states there",
        min_length=1,
    )
    every_steps: Int = setting(50, "steps between states that are kept", unit="steps", ge=1)

    def problems(self) -> Iterator[str]:
        if is_remote(self.folder):
            yield f"folder {self.folder} must be on a disk of the machine; checkpoint.folder may be in a bucket"


class CheckpointConfig(Config):
    """Rules for saving, keeping and deleting checkpoints."""

    folder: str | None = setting(
        None,
        "folder of the checkpoints, local, gs://BUCKET/… or s3://BUCKET/…; null is RUN/checkpoints",
        min_length=1,
    )
    every_steps: Int = setting(1000, "steps between checkpoints", unit="steps", ge=1)
    every_minutes: float | None = setting(
        None,
        "also save this often, several processes after a multiple of ten steps; null saves by steps alone",
        unit="minutes",
        gt=0,
    )
    keep: Int = setting(2, "newest checkpoints kept; older ones are deleted unless another rule keeps them", ge=1)
    keep_every_steps: Int | None = setting(
        None, "keep checkpoints at multiples of this step forever", unit="steps", ge=1
    )
    keep_steps: Annotated[tuple[Int, ...], Strict(False)] = setting((), "steps to save and keep forever")
    keep_best: Int = setting(1, "number of best checkpoints kept, judged by `best_metric`; 0 keeps none", ge=0)
    best_metric: str = setting("eval/loss", "evaluation metric that ranks checkpoints, such as eval/sst2/accuracy")
    best: Literal["lowest", "highest"] = setting("lowest", "which value of `best_metric` is best")
    local: LocalCheckpointConfig | None = setting(
        None, "also keep the newest states on the disks of the machines, for a quick restart; null keeps none"
    )

    def problems(self) -> Iterator[str]:
        if self.local is not None and self.local.every_steps >= self.every_steps:
            yield (
                f"local.every_steps {self.local.every_steps} is not below every_steps {self.every_steps}: such states "
                "would be older than the checkpoints"
            )
