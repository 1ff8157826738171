"""Which losses are spikes, what follows one, and which steps are written."""

from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jax.numpy as jnp
import pytest

from t5x_lite import config as configuration
from t5x_lite.config import RunConfig
from t5x_lite.errors import Diverged
from t5x_lite.train.display import Display
from t5x_lite.train.goodput import Goodput
from t5x_lite.train.learning_rates import LearningRates
from t5x_lite.train.monitor import LossSpike, RunningLoss, StepMonitor
from t5x_lite.train.optimization import make_schedule
from t5x_lite.train.state_store import Progress, StateStore
from t5x_lite.train.step_costs import StepCosts


def open_monitor(
    config: RunConfig, folder: Path, running: RunningLoss, writer: Any = None, flops: Sequence[float] = (1.0,)
) -> StepMonitor:
    rates = LearningRates(make_schedule(config.optimizer, config.train.steps), config.train.steps)
    display = Display(config.train.steps, enabled=False)
    goodput = Goodput(folder, writes=False)
    return StepMonitor(
        config.train, StepCosts(config.stages, flops, 1.0, "a test"), rates, display, writer, running, goodput
    )


def test_a_loss_that_is_not_finite_is_no_spike(tiny_config: Path, tmp_path: Path) -> None:
    """Its update was skipped, so that there is nothing to go back for. 4 is 2 × the running mean, and 4.1 is above."""
    config = configuration.load(tiny_config, ["train.spike_factor=2.0"])
    running = RunningLoss(loss=2.0, steps=100)
    monitor = open_monitor(config, tmp_path, running)

    def report(step: int, loss: float, skipped: int) -> None:
        metrics = {"loss": jnp.array(loss), "skipped_in_a_row": jnp.array(skipped)}
        monitor.add_step(step, step - 1, metrics, started=0.0, data_seconds=0.0)
        monitor.report()

    for step, loss in enumerate((float("nan"), float("inf")), start=1):
        report(step, loss, skipped=step)
    assert running == RunningLoss(loss=2.0, steps=100)
    report(3, 4.0, skipped=0)
    assert running.steps == 101
    with pytest.raises(LossSpike, match="step 4: loss"):
        report(4, 4.1, skipped=0)


def test_metrics_are_written_every_so_many_steps_at_evaluations_and_at_the_last_step(
    tiny_config: Path, tmp_path: Path
) -> None:
    written = []
    writer = SimpleNamespace(write=lambda step, metrics: written.append((step, metrics.get("eval/loss"))))
    config = configuration.load(tiny_config, ["train.steps=11", "train.log_every_steps=4"])
    monitor = open_monitor(config, tmp_path, RunningLoss(), writer)
    for step in range(1, 12):
        metrics = {"loss": jnp.array(2.0), "skipped_in_a_row": jnp.array(0)}
        monitor.add_step(step, step - 1, metrics, started=0.0, data_seconds=0.0)
        monitor.report({"eval/loss": 3.0} if step == 6 else None)
    assert written == [(4, None), (6, 3.0), (8, None), (11, None)]


def test_a_run_goes_back_after_a_spike_until_it_has_had_too_many(tiny_config: Path) -> None:
    """The spike of step 15 is 7 batches after the checkpoint of step 8; 3 batches were skipped before."""
    store: Any = SimpleNamespace(
        _config=configuration.load(tiny_config, ["train.spike_factor=2.0", "train.spike_limit=2"]),
        _show=lambda message: None,
        checkpoints=SimpleNamespace(wait=lambda: None),
        delete_local_states=lambda: None,
        load=lambda: (Progress(step=8, skipped_batches=1), "restored state"),
    )
    progress, state = StateStore.skip_spike(store, Progress(step=15, skipped_batches=3, spikes=1), spike_step=15)
    assert state == "restored state"
    assert (progress.step, progress.skipped_batches, progress.spikes) == (8, 10, 2)
    with pytest.raises(Diverged, match=r"step 15: more than 2 loss spikes \(train.spike_limit\)"):
        StateStore.skip_spike(store, Progress(step=15, spikes=2), spike_step=15)


def test_a_best_metric_that_an_evaluation_lacks_is_named_once(tiny_config: Path) -> None:
    config = configuration.load(tiny_config)
    checkpoint = config.checkpoint.model_copy(update={"best_metric": "eval/sst2/acuracy"})
    config = config.model_copy(update={"checkpoint": checkpoint})
    shown: list[str] = []
    store: Any = SimpleNamespace(
        _config=config,
        _show=shown.append,
        _has_warned=False,
        _metadata=lambda progress: {},
        checkpoints=SimpleNamespace(save=lambda *arguments: None),
    )
    state: Any = SimpleNamespace(saved=lambda: None)
    StateStore.save(store, Progress(step=5), state, {})
    assert not shown
    for step in (10, 15):
        StateStore.save(store, Progress(step=step), state, {"eval/loss": 2.0, "eval/sst2/accuracy": 0.5})
    assert shown == [
        "checkpoint.best_metric: the evaluation of step 10 has no eval/sst2/acuracy, by which the best checkpoint is "
        "kept; did you mean eval/sst2/accuracy?"
    ]


def test_the_stage_of_a_step_is_that_of_its_batch(tiny_config: Path, tmp_path: Path) -> None:
    """Ten batches were passed over after a spike, so that step 5 has batch 14, of the second stage."""
    stages = "data.schedule=[{name: a}, {name: b, after_steps: 12, batch_size: 1}]"
    config = configuration.load(tiny_config, ["train.steps=20", "train.log_every_steps=1", stages])
    written = []
    writer = SimpleNamespace(write=lambda step, metrics: written.append(metrics))
    monitor = open_monitor(config, tmp_path, RunningLoss(), writer, flops=(1.0, 3.0))
    monitor.add_step(5, 14, {"loss": jnp.array(2.0), "skipped_in_a_row": jnp.array(0)}, 0.0, 0.0)
    monitor.report()
    assert written[0]["mfu"] * written[0]["seconds_per_step"] == pytest.approx(3)


def test_the_speed_is_the_mean_of_ten_steps(tiny_config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The host stands still for 9 seconds in step 10, and the device computes step 11 meanwhile."""
    ends = [*range(1, 10), 19, 19, 20]
    clock = iter(ends)
    monkeypatch.setattr("t5x_lite.train.monitor.time", SimpleNamespace(perf_counter=lambda: next(clock)))
    written = []
    writer = SimpleNamespace(write=lambda step, metrics: written.append(metrics))
    config = configuration.load(tiny_config, ["train.steps=12", "train.log_every_steps=1"])
    monitor = open_monitor(config, tmp_path, RunningLoss(), writer)
    for step, started in enumerate([0, *ends[:-1]], start=1):
        metrics = {"loss": jnp.array(2.0), "skipped_in_a_row": jnp.array(0)}
        monitor.add_step(step, step - 1, metrics, started, data_seconds=0.5)
        monitor.report()
    assert [metrics["seconds_per_step"] for metrics in written] == [1.0] * 9 + [1.9, 1.8, 1.8]
    assert written[-1]["data_wait_fraction"] == pytest.approx(0.5 / 1.8)
    # One FLOP a step at a peak of one FLOP/s, and the tokens of a batch.
    assert written[-1]["mfu"] == pytest.approx(1 / 1.8)
    assert written[-1]["tokens_per_second"] == pytest.approx(config.stages[0].batch_tokens / 1.8)
