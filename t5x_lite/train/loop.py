"""The train loop: open everything, load the state, then train, evaluate and save step by step."""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager

import jax
from jax.sharding import Mesh

from t5x_lite.config import RunConfig
from t5x_lite.data.training_data import ExampleSequence, TrainingData
from t5x_lite.local_copies import uploading
from t5x_lite.locked_folder import lock_dir
from t5x_lite.parallel import mesh as meshes
from t5x_lite.parallel.distributed import abort_together, stop_requests
from t5x_lite.progress import format_duration
from t5x_lite.run_dir import Run, new_run
from t5x_lite.train.display import Display
from t5x_lite.train.divergence import recorded_divergence
from t5x_lite.train.goodput import Goodput
from t5x_lite.train.hooks import HookRunner, hooks_of_run
from t5x_lite.train.job import Job, open_job
from t5x_lite.train.learning_rates import LearningRates
from t5x_lite.train.model_summary import summarise_model
from t5x_lite.train.monitor import LossSpike, StepMonitor
from t5x_lite.train.optimization import make_schedule
from t5x_lite.train.profiler import Profiler
from t5x_lite.train.replicas import ReplicaCheck
from t5x_lite.train.stage_steps import StageSteps
from t5x_lite.train.state import TrainState
from t5x_lite.train.state_store import Progress, StateStore
from t5x_lite.train.step_costs import costs_of_run
from t5x_lite.train.steps import Steps, make_steps
from t5x_lite.train.stragglers import Stragglers
from t5x_lite.train.trackers.open_trackers import open_metrics
from t5x_lite.train.training_model import TrainingModel
from t5x_lite.train.watchdog import Watchdog


def train(config: RunConfig) -> tuple[Run, bool]:
    """Train a run, or resume it.

    Returns:
        The run, and whether it is complete. It is not if the process was asked to stop; its state is saved then.

    Raises:
        UserError: invalid input, before anything is written; a checkpoint that cannot be saved.
        Diverged: the loss was not finite for too many steps, or rose suddenly too often.
    """
    locked_message = "another process trains this run; wait for it or give another run_dir"
    # Before the data, whose preparation may take hours: another start in the meantime must know of this one.
    with lock_dir(str(config.run_dir), locked_message, "run_dir"):
        job = open_job(config)
        with jax.set_mesh(job.mesh), stop_requests() as stop:
            return _train_job(job, stop)


def _train_job(job: Job, stop: Callable[[], bool]) -> tuple[Run, bool]:
    run = new_run(job.config, job.tokenizer)
    with uploading(), Display(job.config.train.steps, enabled=jax.process_index() == 0) as display:
        for notice in job.notices(run.folder):
            display.print(notice)
        meshes.check_sharded(job.mesh, run.spec.axes, run.spec.shapes)
        steps = make_steps(run.config, run.spec, job.mesh)
        trainer = Trainer(run, job.data, job.examples, job.mesh, steps, display)
        # Closing the checkpoints waits for a save, and so for a process that may be lost: it is inside.
        with closing(run.checkpoints) as checkpoints, abort_together(), recorded_divergence(str(job.config.run_dir)):
            store = StateStore(run, job.mesh, steps, checkpoints, job.data.hashes, display.print)
            return run, trainer.run(store, stop)


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
        config = run.config
        self._run = run
        self.config = config
        self.mesh = mesh
        self.display = display
        self.goodput = Goodput(run.folder, writes=jax.process_index() == 0)
        self.watchdog = Watchdog(config.train.hang_minutes)
        self.profiler = Profiler(run.folder, str(config.run_dir), config.train.profile, display.print)
        self.stragglers = Stragglers()
        self.replicas = ReplicaCheck(mesh, jax.tree.map(lambda array: array.sharding, steps.state.params))
        self.model = TrainingModel(run, data, mesh, steps, self.watchdog)
        self.stage_steps = StageSteps(self.model, examples, steps)
        schedule = make_schedule(config.optimizer, config.train.steps)
        self.learning_rates = LearningRates(schedule, config.train.steps, config.updates_per_step)
        self.hooks = hooks_of_run(config, self.goodput, self.stragglers, self.learning_rates)
        self.hook_runner = HookRunner(self.model, self.watchdog, self.goodput, display)
        self.step_costs = costs_of_run(run, data.context, mesh)
        for line in summarise_model(run, steps.state, mesh, self.step_costs):
            display.print(line)

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
        if store.rewards is not None:
            self.model.rewards = store.rewards
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
                    self.display.print(str(spike))
            self.model.release()
            progress, state = store.skip_spike(progress, monitor.last_step)

    @contextmanager
    def _monitoring(self, progress: Progress) -> Iterator[StepMonitor]:
        """Open the metrics at a step; lines of later steps are removed."""
        settings = self.config.train
        writer = open_metrics(self.config, self._run.folder, progress.step, self.display.print)
        if writer:
            self.goodput.add_lost(writer.lost_seconds * settings.log_every_steps)
        self.display.start(progress.step)
        rates = self.learning_rates
        try:
            yield StepMonitor(settings, self.step_costs, rates, self.display, writer, progress.running, self.goodput)
        finally:
            self.watchdog.stop()
            self.profiler.stop()
            if writer:
                writer.close()

    def _train_steps(
        self, progress: Progress, state: TrainState, monitor: StepMonitor, store: StateStore, stop: Callable[[], bool]
    ) -> bool:
        """Train, evaluate and save until the last step, or until the process is asked to stop.

        Returns:
            Whether the last step was reached.
        """
        settings = self.config.train
        first_batch = progress.step + progress.skipped_batches
        with self.goodput.measure("compile"):
            seconds = self.stage_steps.compile(first_batch)
        self.goodput.start_steps(seconds)
        self.display.print(f"compiled the train step in {format_duration(seconds)}")
        batches = self.stage_steps.batches(first_batch, settings.steps + progress.skipped_batches)
        first_step = progress.step + 1
        for step in range(first_step, settings.steps + 1):
            progress.step = step
            self.watchdog.reset()
            self.profiler.before_step(step - first_step)
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
            is_reported = bool(hooks) or is_saved or is_saved_locally
            if is_reported or step % settings.health_every_steps == 0:
                monitor.read()
                if self.mesh.size > 1:
                    self.replicas.check(step, state.params)
            hook_metrics = self.hook_runner.run(hooks, step, state)
            # All processes report at the same steps, since a spike of the loss makes all of them go back.
            if is_reported:
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
            if not is_reported:
                host_seconds += time.perf_counter() - step_ended
            self.stragglers.add(host_seconds)
        with self.goodput.measure("checkpoint"):
            store.checkpoints.wait()
        if progress.step < settings.steps:
            self.display.print(f"stopped and saved at step {progress.step}; run the same command to go on")
        return progress.step == settings.steps
