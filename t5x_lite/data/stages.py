"""Stages of a run (`data.schedule`): which steps have which shares of the sources and which shape of a batch.

This module does not import JAX.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

from t5x_lite.data.config import DataConfig, StageConfig

ROUNDING = 1e-9
"""Added to a product of a share and a number of steps before it is rounded down."""


@dataclass(frozen=True)
class Stage:
    """Consecutive steps whose batches have one shape and one mixture. The last stage has no end.

    Attributes:
        name: its name in messages and in the report; empty if the run has no schedule.
        first_step: steps of the run before it.
        seq_len: tokens of a sequence.
        batch_size: sequences of a batch, over all devices.
        weights: weight of each source that is drawn, by its name; None takes the weights of the mixture.
    """

    name: str
    first_step: int
    seq_len: int
    batch_size: int
    weights: Mapping[str, float] | None = None

    @property
    def shape(self) -> tuple[int, int]:
        """Sequences and tokens of a batch, for which a train step is compiled."""
        return self.batch_size, self.seq_len

    @property
    def batch_tokens(self) -> int:
        """Tokens of a batch."""
        return self.batch_size * self.seq_len

    def draws(self, source: str) -> bool:
        """Return whether the stage has rows of a source."""
        return self.weights is None or source in self.weights


def resolve_stages(data: DataConfig, steps: int, batch_size: int, seq_len: int) -> tuple[Stage, ...]:
    """Return the stages of a run. One without a schedule has one stage, without a name.

    A stage keeps the tokens of a batch: with sequences half as long a batch has twice as many, unless the stage says
    how many.

    Args:
        data: has the schedule.
        steps: steps of the run.
        batch_size: sequences of a batch, over all devices.
        seq_len: tokens of a sequence.
    """
    if not data.schedule:
        return (Stage("", 0, seq_len, batch_size),)
    stages = []
    for settings in data.schedule:
        stage_seq_len = settings.seq_len or seq_len
        stage = Stage(
            name=settings.name,
            first_step=_first_step(settings, steps),
            seq_len=stage_seq_len,
            batch_size=settings.batch_size or batch_size * seq_len // stage_seq_len,
            weights=settings.weights,
        )
        stages.append(stage)
    return tuple(stages)


def _first_step(settings: StageConfig, steps: int) -> int:
    if settings.after_share is not None:
        return math.floor(settings.after_share * steps + ROUNDING)
    return settings.after_steps or 0


def stage_problems(data: DataConfig, stages: Sequence[Stage], steps: int, batch_tokens: int) -> Iterator[str]:
    """Yield what is wrong with the stages of a schedule of a run.

    Args:
        data: has the schedule.
        stages: its stages, from `resolve_stages`.
        steps: steps of the run.
        batch_tokens: tokens of a batch of `train.batch_size` sequences of `train.seq_len` tokens.
    """
    for settings, stage in zip(data.schedule, stages, strict=True):
        if stage.first_step >= steps:
            yield f"{title(stage)}: never begins: it comes after {stage.first_step} steps, and train.steps is {steps}"
        if settings.batch_size is None and batch_tokens % stage.seq_len:
            yield (
                f"{title(stage)}: seq_len {stage.seq_len} does not divide the {batch_tokens} tokens of a batch "
                "(train.batch_size × train.seq_len); choose another, or give the stage a batch_size"
            )
    for before, stage in pairwise(stages):
        if stage.first_step <= before.first_step:
            yield (
                f"{title(stage)}: begins after {stage.first_step} steps, but stage {before.name} before it begins "
                f"after {before.first_step}; list the stages in the order of their steps"
            )
    for source in data.sources:
        lengths = sorted({stage.seq_len for stage in stages if stage.draws(source.name)})
        if len(lengths) > 1 and data.of_source(source).packing == "documents":
            yield (
                f"data.schedule: source {source.name} is drawn with seq_len {' and '.join(map(str, lengths))}, but "
                "with packing=documents each length packs other documents together, so that text would repeat within "
                "an epoch; use packing=stream, sentences or none, or a source of its own for each length"
            )


def title(stage: Stage) -> str:
    """Return the name of a stage in messages."""
    return f"data.schedule stage {stage.name}"


def stage_number(stages: Sequence[Stage], step: int) -> int:
    """Return the number of the stage that a step is in, counted from 0 as is the step."""
    return sum(stage.first_step <= step for stage in stages) - 1


def tokens_until(stages: Sequence[Stage], steps: int) -> int:
    """Return the tokens of the first steps of a run."""
    tokens = 0
    for number, stage in enumerate(stages):
        end = steps
        if number + 1 < len(stages):
            end = min(steps, stages[number + 1].first_step)
        tokens += max(end - stage.first_step, 0) * stage.batch_tokens
    return tokens
