"""The size of a run for people: its model, its devices and its stages."""

from collections.abc import Iterator

import jax
from jax.sharding import Mesh

from t5x_lite.progress import format_si
from t5x_lite.run_dir import Run
from t5x_lite.train.state import TrainState
from t5x_lite.train.step_costs import StepCosts


def summarise_model(run: Run, state: TrainState, mesh: Mesh, costs: StepCosts) -> Iterator[str]:
    """Yield a line on the model and the devices, and one on each stage.

    Args:
        run: the run.
        state: shapes of its state.
        mesh: the devices.
        costs: costs of its steps.
    """
    spec = run.spec
    device = mesh.devices.flat[0]
    details = ""
    if spec.active_parameters < spec.parameters:
        details += f" ({spec.active_parameters:,} active per token)"
    if not run.config.trainable_split(spec.axes).trains_everything:
        trained = sum(array.size for array in jax.tree.leaves(state.params))
        state_bytes = sum(array.size * array.dtype.itemsize for array in jax.tree.leaves(state.opt_state))
        details += f", of which {trained:,} train (optimizer state {format_si(state_bytes)}B)"
    yield (
        f"model: {spec.parameters:,} parameters{details} on {mesh.size} × {device.device_kind}; MFU against "
        f"{format_si(costs.peak_flops / mesh.size)}FLOP/s a device ({costs.peak_source}), causal attention counted half"
    )
    for stage in run.config.stages:
        if stage.name:
            shape = f"{stage.batch_size:,} sequences of {stage.seq_len:,} tokens"
            yield f"stage {stage.name}: {shape}, from step {stage.first_step + 1:,}"
