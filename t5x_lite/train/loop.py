"""The train loop."""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import replace

import jax
from jax.sharding import Mesh

from t5x_lite.config import RunConfig
from t5x_lite.data.open_data import TextData
from t5x_lite.data.records import TaskData
from t5x_lite.data.training_data import ExampleSequence, TrainingData
from t5x_lite.errors import Diverged, UserError
from t5x_lite.local_copies import local_path, uploading
from t5x_lite.objectives.mixed_rows import largest_lengths
from t5x_lite.objectives.policy_optimization import PolicyOptimization
from t5x_lite.parallel import mesh as meshes
from t5x_lite.parallel.distributed import (
    abort_together,
    check_same_on_all_processes,
    main_process_first,
    stop_requests,
    wait_for_all_processes,
)
from t5x_lite.planner.remat_choice import resolve_remat
from t5x_lite.progress import format_duration, format_si
from t5x_lite.run_data import open_run_data, open_tokenizer
from t5x_lite.run_dir import DIVERGED_FILE, Run, check_run_dir, lock_dir, new_run, with_vocab
from t5x_lite.run_rewards import check_rewards
from t5x_lite.run_teacher import check_teacher
from t5x_lite.storage import delete_file, file_exists, join, write_bytes
from t5x_lite.train.config import STEPS_BEFORE_PROFILE
from t5x_lite.train.device_speed import peak_flops
from t5x_lite.train.display import Display
from t5x_lite.train.forecast import Forecast
from t5x_lite.train.goodput import Goodput
from t5x_lite.train.hooks import Hook, evaluation_hooks
from t5x_lite.train.learning_rates import LearningRates
from t5x_lite.train.metrics import MetricsWriter
from t5x_lite.train.monitor import LossSpike, StepCosts, StepMonitor
from t5x_lite.train.optimization import make_schedule
from t5x_lite.train.replicas import ReplicaCheck
from t5x_lite.train.stage_steps import StageSteps
from t5x_lite.train.state import TrainState
from t5x_lite.train.state_store import Progress, StateStore
from t5x_lite.train.step_flops import step_flops_per_example
from t5x_lite.train.steps import Steps, check_mesh, make_steps
from t5x_lite.train.stragglers import Stragglers
from t5x_lite.train.trackers.open_trackers import open_trackers
from t5x_lite.train.training_model import TrainingModel
from t5x_lite.train.watchdog import Watchdog

MOST_FORECAST_STEPS = 10**7
"""Steps of the longest run whose final loss is forecast, which needs the learning rates of all steps in memory."""


def train(config: RunConfig) -> tuple[Run, bool]:
    """Train a run, or resume it.

    Returns:
        The run, and whether it is complete. It is not if the process was asked to stop; its state is saved then.

    Raises:
        UserError: invalid input, before anything is written; a checkpoint that cannot be saved.
        Diverged: the loss was not finite for too many steps, or rose suddenly too often.
    """
    config = resolve_remat(config)
    mesh = meshes.make_mesh(config.mesh)
    attention_kernels = check_mesh(mesh, config, mesh.devices.flat[0].platform)
    changed_settings = check_run_dir(config)
    if not config.tasks and not config.data.holds_out_text:
        raise UserError("no text is held out: raise data.validation_fraction, or name data.validation_files")
    with main_process_first():
        tokenizer = open_tokenizer(config)
        data = open_run_data(with_vocab(config, tokenizer), tokenizer)
    check_same_on_all_processes(
        f"{tokenizer.fingerprint} {sorted(data.hashes.items())}",
        "data.files or the tokenizer: the content differs between machines; give all of them the same files",
    )
    # Whatever evaluation needs is checked now and not at the first evaluation.
    examples = [data.rows(stage) for stage in range(len(config.stages))]
    data.validation()
    check_rewards(config, tokenizer)
    check_teacher(config, tokenizer)
    for evaluator in config.evaluators:
        evaluator.prepare(config.model)
    for tracker in config.train.trackers:
        tracker.check()
    locked_message = "another process trains this run; wait for it or give another run_dir"
    with (
        lock_dir(local_path(str(config.run_dir)), locked_message, "run_dir"),
        jax.set_mesh(mesh),
        stop_requests() as stop,
    ):
        run = new_run(config, tokenizer)
        with uploading(), Display(config.train.steps, enabled=jax.process_index() == 0) as display:
            kernels = "; ".join(f"{kind} by {kernel}" for kind, kernel in attention_kernels.items())
            if kernels:
                display.print(f"attention: {kernels}")
            if changed_settings:
                display.print(f"continuing with changed settings: {changed_settings}")
            meshes.check_sharded(mesh, run.spec.axes, run.spec.shapes)
            if isinstance(data, TextData) and jax.process_index() == 0:
                data.write_mixture(run.folder)
            trainer = Trainer(run, data, examples, mesh, make_steps(run.config, run.spec, mesh), display)
            # Closing the checkpoints waits for a save, and so for a process that may be lost: it is inside.
            with closing(run.checkpoints) as checkpoints, abort_together():
                store = StateStore(run, mesh, trainer.steps, checkpoints, data.hashes, display.print)
                with _record_divergence(run):
                    return run, trainer.run(store, stop)


@contextmanager
def _record_divergence(run: Run) -> Iterator[None]:
    """Write the reason into the run directory if the run diverges: sweeps on clusters see no exit codes.

    A file of an earlier start is deleted.
    """
    path = join(str(run.config.run_dir), DIVERGED_FILE)
    is_first_process = jax.process_index() == 0
    if is_first_process and file_exists(path):
        delete_file(path)
    try:
        yield
    except Diverged as error:
        if is_first_process:
            write_bytes(path, f"{error}\n")
        raise


class Trainer:
    """Trains a run from the state that its store holds to its last step.

    Args:
        run: the run.
        data: its opened data.
        examples: its training examples in the order of each stage.
        mesh: its devices.
        steps: its compiled steps.
        display: shows the progress.
    """

    def __init__(
        self,
        run: Run,
        data: TrainingData,
        examples: Sequence[ExampleSequence],
        mesh: Mesh,
        steps: Steps,
        display: Display,
    ) -> None:
        self._run = run
        self.folder = run.folder
        self.config = run.config
        self.mesh = mesh
        self.steps = steps
        self.display = display
        self.goodput = Goodput(run.folder, writes=jax.process_index() == 0)
        self.watchdog = Watchdog(run.config.train.hang_minutes)
        self.stragglers = Stragglers()
        self.replicas = ReplicaCheck(mesh, jax.tree.map(lambda array: array.sharding, steps.state.params))
        self.model = TrainingModel(run, data, mesh, steps, self.watchdog)
        rewards = None
        if isinstance(run.config.objective, PolicyOptimization):
            rewards = self.model.rewards
        self.stage_steps = StageSteps(run, examples, mesh, steps, rewards)
        if isinstance(data, TaskData):
            _ = self.model.task_evaluation  # checks the metrics of the tasks
            for message in (*data.skipped(), *data.truncated()):
                display.print(message)
        num_steps = run.config.train.steps
        schedule = make_schedule(run.config.optimizer, num_steps)
        self.learning_rates = LearningRates(schedule, num_steps, run.config.updates_per_step)
        self.hooks = self._make_hooks()
        self._is_profiling = False
        peak, peak_source = peak_flops(mesh.devices.flat[0], run.config.train.peak_flops)
        self._print_model(run, peak, peak_source)
        self.step_costs = StepCosts(run.config.stages, self._flops_of_stages(run, data), peak * mesh.size)

    def _make_hooks(self) -> list[Hook]:
        """Return the evaluators of the run, and what the loop itself reports."""
        hooks = [*evaluation_hooks(self.config), Hook(self.goodput, self.config.eval.every_steps)]
        # The law of the forecast is that of one mixture.
        is_alike = len(self.config.stages) == 1
        if self.config.adapt is None and is_alike and len(self.learning_rates) <= MOST_FORECAST_STEPS:
            forecast = Forecast(self.learning_rates.all())
            hooks.append(Hook(forecast, forecast.every_steps, on_last_step=False))
        if jax.process_count() > 1:
            hooks.append(Hook(self.stragglers, self.config.train.health_every_steps, on_last_step=False))
        return hooks

    def _print_model(self, run: Run, peak: float, peak_source: str) -> None:
        """Print the size of the model, the peak of the devices, and the stages."""
        device = self.mesh.devices.flat[0]
        split = self.config.trainable_split(run.spec.axes)
        details = ""
        if run.spec.active_parameters < run.spec.parameters:
            details += f" ({run.spec.active_parameters:,} active per token)"
        if not split.trains_everything:
            trained = sum(array.size for array in jax.tree.leaves(self.steps.state.params))
            state_bytes = sum(
                array.size * array.dtype.itemsize for array in jax.tree.leaves(self.steps.state.opt_state)
            )
            details += f", of which {trained:,} train (optimizer state {format_si(state_bytes)}B)"
        self.display.print(
            f"model: {run.spec.parameters:,} parameters{details} on {self.mesh.size} × {device.device_kind}; MFU "
            f"against {format_si(peak)}FLOP/s a device ({peak_source}), causal attention counted half"
        )
        for stage in self.config.stages:
            if stage.name:
                shape = f"{stage.batch_size:,} sequences of {stage.seq_len:,} tokens"
                self.display.print(f"stage {stage.name}: {shape}, from step {stage.first_step + 1:,}")

    def _flops_of_stages(self, run: Run, data: TrainingData) -> list[float]:
        """Return the FLOPs of a step in each stage."""
        split = self.config.trainable_split(run.spec.axes)
        flops = []
        for stage in self.config.stages:
            lengths = largest_lengths(self.config.row_objectives, replace(data.context, seq_len=stage.seq_len))
            example_flops = step_flops_per_example(self.config, run.spec, lengths, split=split)
            flops.append(stage.batch_size * example_flops)
        return flops

    def run(self, store: StateStore, stop: Callable[[], bool]) -> bool:
        """Train to the last step.

        Args:
            store: loads and saves the state.
            stop: returns whether the process was asked to stop; all processes call it at the same step.

        Returns:
            Whether the last step was reached.
        """
        store.checkpoints.clean()
        progress, state = store.load()
        # Only now: a checkpoint that does not fit the config must not lose its own.
        self._run.save()
        if progress.step >= self.config.train.steps and progress.step:
            self.display.print(f"complete: step {progress.step} of {self.config.train.steps}, in {self.config.run_dir}")
            return True
        while True:
            with self._monitoring(progress) as monitor:
                try:
                    is_complete = self._train_steps(progress, state, monitor, store, stop)
                    store.delete_local_states()  # the state is in a checkpoint
                    self.goodput.save()
                    self.display.print(self.goodput.summary())
                    return is_complete
                except LossSpike as spike:
                    spike_step = monitor.last_step
                    self.display.print(str(spike))
            progress, state = self._rewind(store, progress, spike_step)

    def _rewind(self, store: StateStore, progress: Progress, spike_step: int) -> tuple[Progress, TrainState]:
        """Go back to the last checkpoint, and skip the batches from there to the spike (PaLM, §5.1)."""
        store.checkpoints.wait()
        wait_for_all_processes("checkpoint is complete")  # the first one completes it: all must see the same newest one
        spikes = progress.spikes + 1
        spike_limit = self.config.train.spike_limit
        if spikes > spike_limit:
            raise Diverged(f"step {spike_step}: more than {spike_limit} loss spikes (train.spike_limit)")
        store.delete_local_states()
        self.model.update(0, self.steps.state)  # shapes alone: the memory of the old state is free for the restored one
        restored_progress, state = store.load()
        skipped_batches = spike_step - restored_progress.step
        restored_progress.skipped_batches = progress.skipped_batches + skipped_batches
        restored_progress.spikes = spikes
        self.display.print(f"passing over {skipped_batches} batches")
        return restored_progress, state

    @contextmanager
    def _monitoring(self, progress: Progress) -> Iterator[StepMonitor]:
        """Open the metrics at a step; lines of later steps are removed."""
        writer = None
        if jax.process_index() == 0:
            trackers = open_trackers(self.config, self.folder, progress.step, self.display.print)
            writer = MetricsWriter(self.folder, progress.step, trackers)
            self.goodput.add_lost(writer.lost_seconds * self.config.train.log_every_steps)
        self.display.start(progress.step)
        try:
            yield StepMonitor(
                self.config.train,
                self.step_costs,
                self.learning_rates,
                self.display,
                writer,
                progress.running,
                self.goodput,
            )
        finally:
            self.watchdog.stop()
            self._stop_profile()
            if writer:
                writer.close()

    def _train_steps(
        self,
        progress: Progress,
        state: TrainState,
        monitor: StepMonitor,
        store: StateStore,
        stop: Callable[[], bool],
    ) -> bool:
        """Train, evaluate and save until the last step, or until the process is asked to stop.

        Returns:
            Whether the last step was reached.
        """
        settings = self.config.train
        first_batch = progress.step + progress.skipped_batches
        self._compile_train_steps(first_batch)
        batches = self.stage_steps.batches(first_batch, settings.steps + progress.skipped_batches)
        first_step = progress.step + 1
        for step in range(first_step, settings.steps + 1):
            progress.step = step
            self.watchdog.reset()
            self._profile(step - first_step)
            started = time.perf_counter()
            train_step, batch = next(batches)
            data_seconds = time.perf_counter() - started
            state, metrics = train_step(state, batch)
            monitor.add_step(step, step - 1 + progress.skipped_batches, metrics, started, data_seconds)
            step_ended = time.perf_counter()
            store.checkpoints.check()

            is_stopping = stop()
            is_saved = is_stopping or step == settings.steps or store.checkpoints.due(step)
            is_saved_locally = not is_saved and store.local_save_due(step)
            hooks = [hook for hook in self.hooks if hook.is_due(step, settings.steps)]
            if hooks or is_saved or is_saved_locally or step % settings.health_every_steps == 0:
                monitor.read()
                if self.mesh.size > 1:
                    self.replicas.check(step, state.params)
            hook_metrics = self._run_hooks(hooks, step, state)
            # All processes report at the same steps, since a spike of the loss makes all of them go back.
            if hooks or is_saved or is_saved_locally:
                monitor.report(hook_metrics)
            if is_saved:
                with self.goodput.measure("checkpoint"):
                    store.save(progress, state, hook_metrics)
            if is_saved_locally:
                with self.goodput.measure("checkpoint"):
                    store.save_locally(progress, state)
            if is_stopping and step < settings.steps:
                break
            host_seconds = data_seconds
            if not (hooks or is_saved or is_saved_locally):
                host_seconds += time.perf_counter() - step_ended
            self.stragglers.add(host_seconds)
        with self.goodput.measure("checkpoint"):
            store.checkpoints.wait()
        if progress.step < settings.steps:
            self.display.print(f"stopped and saved at step {progress.step}; run the same command to go on")
        return progress.step == settings.steps

    def _run_hooks(self, hooks: list[Hook], step: int, state: TrainState) -> dict[str, float]:
        """Run hooks on the weights of a step, and return their metrics."""
        metrics: dict[str, float] = {}
        self.model.update(step, state)
        for hook in hooks:
            # Only the batches of the validation split reset the watchdog: other evaluators may take any time.
            self.watchdog.stop()
            with self.goodput.measure("evaluation"):
                evaluation = hook.evaluator.run(self.model)
            metrics.update(evaluation.metrics)
            self.display.set_status(hook, evaluation.status)
            if evaluation.summary:
                self.display.print(f"step {step}: {evaluation.summary}")
        self.watchdog.reset()
        return metrics

    def _compile_train_steps(self, first_batch: int) -> None:
        """Compile the train steps before the first step, whose time then does not include it."""
        with self.goodput.measure("compile"):
            seconds = self.stage_steps.compile(first_batch)
        self.goodput.start_steps(seconds)
        self.display.print(f"compiled the train step in {format_duration(seconds)}")

    def _profile(self, steps_done: int) -> None:
        """Write a JAX profile of `train.profile` steps, for TensorBoard or Perfetto."""
        profiled_steps = self.config.train.profile
        if not profiled_steps:
            return
        if steps_done == STEPS_BEFORE_PROFILE:
            jax.profiler.start_trace(str(self.folder / "profile"))
            self._is_profiling = True
        if steps_done == STEPS_BEFORE_PROFILE + profiled_steps:
            self._stop_profile()

    def _stop_profile(self) -> None:
        """Write the profile that has begun, also if fewer steps follow than it should have."""
        if self._is_profiling:
            self._is_profiling = False
            jax.profiler.stop_trace()
            self.display.print(f"profile in {join(str(self.config.run_dir), 'profile')}")
