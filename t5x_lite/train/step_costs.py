"""The cost of the steps of a run, for MFU."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from jax.sharding import Mesh

from t5x_lite.data.stages import Stage
from t5x_lite.objectives.mixed_rows import largest_lengths
from t5x_lite.objectives.objective import ExampleContext
from t5x_lite.run_dir import Run
from t5x_lite.train.device_speed import peak_flops
from t5x_lite.train.step_flops import step_flops_per_example


@dataclass(frozen=True)
class StepCosts:
    """The cost of the steps, for tokens per second and MFU.

    Attributes:
        stages: stages of the run.
        flops: FLOPs of a step of each stage.
        peak_flops: peak FLOP/s of all devices together.
        peak_source: where the peak comes from.
    """

    stages: Sequence[Stage]
    flops: Sequence[float]
    peak_flops: float
    peak_source: str


def costs_of_run(run: Run, context: ExampleContext, mesh: Mesh) -> StepCosts:
    """Return the costs of the steps of a run.

    Args:
        run: the run.
        context: of its examples.
        mesh: its devices.
    """
    config = run.config
    flops = []
    for stage in config.stages:
        lengths = largest_lengths(config.row_objectives, replace(context, seq_len=stage.seq_len))
        flops.append(stage.batch_size * step_flops_per_example(config, run.spec, lengths))
    peak, source = peak_flops(mesh.devices.flat[0], config.train.peak_flops)
    return StepCosts(config.stages, flops, peak * mesh.size, source)
