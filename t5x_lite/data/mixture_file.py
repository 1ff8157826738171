"""`RUN/mixture.json`: the shares of the sources in each stage of a run, for its report."""

from collections.abc import Sequence
from pathlib import Path

from pydantic import BaseModel, ConfigDict

from t5x_lite.data.stage_orders import StageRows
from t5x_lite.files import replace_file

MIXTURE_FILE = "mixture.json"


class StageShares(BaseModel):
    """The mixture of a stage.

    Attributes:
        name: the stage; empty if the run has no schedule.
        first_step: steps of the run before it.
        seq_len: tokens of a sequence.
        batch_size: sequences of a batch.
        shares: share of each source in the rows.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    first_step: int
    seq_len: int
    batch_size: int
    shares: dict[str, float]


class MixtureFile(BaseModel):
    """The content of the file: the stages of the run in order."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    stages: list[StageShares]


def write_mixture(folder: Path, stages: Sequence[StageRows], sources: Sequence[str]) -> None:
    """Write the file of a run.

    Args:
        folder: the run directory.
        stages: the stages of the run.
        sources: names of the sources.
    """
    described = []
    for rows in stages:
        stage = rows.stage
        shares = dict(zip(sources, rows.shares.tolist(), strict=True))
        described.append(
            StageShares(
                name=stage.name,
                first_step=stage.first_step,
                seq_len=stage.seq_len,
                batch_size=stage.batch_size,
                shares=shares,
            )
        )
    replace_file(folder / MIXTURE_FILE, MixtureFile(stages=described).model_dump_json(indent=1))


def read_mixture(folder: Path) -> list[StageShares]:
    """Return the stages of a run; none if it has one source and no schedule, or if its file is damaged."""
    try:
        return MixtureFile.model_validate_json((folder / MIXTURE_FILE).read_bytes()).stages
    except (OSError, ValueError):
        return []
