"""Train a run: the order of this file is the order of events.

Restoring: (1) a run directory that holds checkpoints goes on from the newest whole one; (2) otherwise a config with
`branch` goes on from a checkpoint of the run that it names, one with `adapt` begins from the run that it names; (3)
otherwise the weights are fresh, a function of the seed.
"""

import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from t5x_lite import config as configuration
from t5x_lite.adapt.initial_weights import BaseCheckpoint, initial_weights, source_run
from t5x_lite.checkpoint import Checkpoints
from t5x_lite.config import RunConfig
from t5x_lite.data.pipeline import training_batches
from t5x_lite.data.records import TaskData
from t5x_lite.data.training_data import ExampleSequence, TrainingData
from t5x_lite.data.vocabulary import load_or_train_tokenizer
from t5x_lite.errors import Diverged
from t5x_lite.evaluate.curves import read_metrics
from t5x_lite.evaluate.tasks import TaskEvaluation
from t5x_lite.laws.forecast import forecast_loss
from t5x_lite.parallel import mesh as meshes
from t5x_lite.parallel.distributed import abort_together, main_process_first, stop_requests
from t5x_lite.run_dir import Run, check_run_dir, create_run_dir, lock_dir, with_vocab
from t5x_lite.train import optimizer as optimizers
from t5x_lite.train.branch import restore_branch
from t5x_lite.train.goodput import Goodput
from t5x_lite.train.health import ReplicaCheck, Stragglers, Watchdog, check_sharded
from t5x_lite.train.metrics import Display, MetricsWriter, flops_per_row, format_duration, format_si, peak_flops
from t5x_lite.train.setup import Steps, check_mesh, evaluate_split, make_steps, open_run_data
from t5x_lite.train.state import TrainState
from t5x_lite.train.step import Sums
from t5x_lite.train.watch import LossSpike, RunningLoss, StepCost, StepMonitor

DEVICE_BATCHES = 2
"""Batches sent to the devices ahead of the step that takes them."""
PROFILE_AFTER = 10
"""Steps before a profile begins, so that it shows the steady state."""


def train(config: RunConfig) -> tuple[Run, bool]:
    """Pretrain, or resume. Returns the run, and whether it is complete (False: asked to stop, and saved).

    Raises:
        UserError: input that cannot serve, before anything is written; a checkpoint that cannot be saved.
        Diverged: the loss is not finite for too many steps, or keeps jumping.
    """
    mesh = meshes.make_mesh(config.mesh)
    attention = check_mesh(mesh, config, mesh.devices.flat[0].platform)
    check_run_dir(config)
    with main_process_first():
        if config.adapt is None:
            tokenizer = load_or_train_tokenizer(config.tokenizer, config.data)
        else:
            tokenizer = source_run(config).tokenizer
        data = open_run_data(with_vocab(config, tokenizer), tokenizer)
    rows, _ = data.rows(), data.validation()  # both can be had, or nothing is begun
    locked_message = "another process trains this run; wait for it or give another run_dir"
    with lock_dir(Path(str(config.run_dir)), locked_message, "run_dir"), jax.set_mesh(mesh), stop_requests() as stop:
        run = create_run_dir(config, tokenizer)
        with Display(config.train.steps, enabled=jax.process_index() == 0) as display:
            display.say("attention: " + "; ".join(f"{kind} by {kernel}" for kind, kernel in attention.items()))
            check_sharded(run.spec, mesh)
            steps = make_steps(run.config, run.spec, mesh)
            tasks = None
            if isinstance(data, TaskData):
                tasks = TaskEvaluation(data, run.config.model, run.spec, steps.whole_shapes, tokenizer, mesh)
                for line in data.skipped():
                    display.say(line)
            trainer = Trainer(run, data, rows, tasks, mesh, steps, display)
            # The inner one: closing waits for a save, in which a lost process would be waited for too.
            with closing(run.checkpoints) as checkpoints, abort_together():
                return run, trainer.run(checkpoints, stop)


@dataclass
class TrainerProgress:
    """Where a run stands: updates done, batches passed over after loss spikes, and the loss to expect."""

    step: int = 0
    skipped_batches: int = 0
    spikes: int = 0
    running: RunningLoss = field(default_factory=RunningLoss)


class Trainer:
    """What stays the same while a run trains; its methods move a position and a state forward."""

    def __init__(
        self,
        run: Run,
        data: TrainingData,
        rows: ExampleSequence,
        tasks: TaskEvaluation | None,
        mesh: Mesh,
        steps: Steps,
        display: Display,
    ) -> None:
        self.folder, self.config, self.blueprint = run.folder, run.config, run.spec
        self.data, self.rows, self.tasks = data, rows, tasks
        self.mesh, self.steps, self.display = mesh, steps, display
        self.goodput = Goodput(run.folder, writes=jax.process_index() == 0)
        self.watchdog, self.stragglers = Watchdog(self.config.train.hang_minutes), Stragglers()
        self.replicas = ReplicaCheck(mesh, jax.tree.map(lambda leaf: leaf.sharding, steps.state.params))
        self.batch_size = self.config.train.batch_size
        self.base: BaseCheckpoint | None = None
        peak, how = peak_flops(mesh.devices.flat[0], self.config.train.peak_flops)
        tokens = self.batch_size * self.config.train.seq_len
        parts = self.config.trainable_split(self.blueprint.axes)
        per_row = flops_per_row(
            self.config.model, self.blueprint, self.config.require_objective().lengths(data.context), parts=parts
        )
        self.rates = StepCost(tokens, self.batch_size * per_row, peak * mesh.size)
        count = self.config.train.steps
        self.learning_rates = np.asarray(optimizers.schedule(self.config.optimizer, count)(np.arange(count)))
        few = self.blueprint.active_parameters
        active = f", of which a token passes {few:,}," if few < self.blueprint.parameters else ""
        if not parts.trains_everything:
            trained = sum(leaf.size for leaf in jax.tree.leaves(steps.state.params))
            state = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(steps.state.opt_state))
            active += f", of which {trained:,} train (optimizer state {format_si(state)}B)"
        display.say(
            f"model: {self.blueprint.parameters:,} parameters{active} on {mesh.size} × "
            f"{mesh.devices.flat[0].device_kind}; MFU against {format_si(peak)}FLOP/s a device ({how}), causal "
            "attention counted half"
        )

    def run(self, checkpoints: Checkpoints, stop: Callable[[int], bool]) -> bool:
        """From wherever the run stands to its last step; False if it was asked to stop before."""
        checkpoints.clean()
        at, state = self.restore(checkpoints)
        if at.step >= self.config.train.steps and at.step:
            self.display.say(f"complete: step {at.step} of {self.config.train.steps}, in {self.folder}")
            return True
        while True:
            with self.watching(at) as watch:
                try:
                    complete = self.advance(at, state, watch, checkpoints, stop)
                    self.display.say(self.goodput.line())
                    return complete
                except LossSpike as spike:
                    reached = watch.last_step
                    self.display.say(str(spike))
            at, state = self.go_back(checkpoints, at, reached)

    def restore(self, checkpoints: Checkpoints) -> tuple[TrainerProgress, TrainState]:
        """The newest whole checkpoint, or fresh weights."""
        shapes, origin = replace(self.steps.state, frozen={}), str(self.folder)
        found = checkpoints.restore(shapes)
        if found is None and self.config.branch is not None:
            found, origin = restore_branch(self.config, shapes), self.config.branch.source
        if found is None and self.config.adapt is not None:
            params, self.base = initial_weights(self.config, self.blueprint, self.mesh)
            self.display.say(f"first weights from {self.config.adapt.source}, step {self.base.step}")
            return TrainerProgress(), self.steps.begun(params)
        if found is None:
            self.display.say(f"fresh weights from seed {self.config.train.seed}")
            return TrainerProgress(), self.steps.fresh()
        step, state, meta = found
        if jax.tree.leaves(self.steps.state.frozen):
            self.base = BaseCheckpoint.from_metadata(meta)
            params, _ = initial_weights(self.config, self.blueprint, self.mesh, self.base)
            state = replace(state, frozen=self.config.trainable_split(self.blueprint.axes).frozen(params))
        self.display.say(f"resumed from step {step} in {origin}")
        position = meta["position"]
        return TrainerProgress(**{**position, "running": RunningLoss(**position["running"])}), state

    def go_back(
        self, checkpoints: Checkpoints, at: TrainerProgress, reached: int
    ) -> tuple[TrainerProgress, TrainState]:
        """The last checkpoint again, and past the batches that led from it to the spike (PaLM, §5.1)."""
        checkpoints.wait()
        spikes = at.spikes + 1
        if spikes > self.config.train.spike_limit:
            raise Diverged(f"step {reached}: more than {self.config.train.spike_limit} loss spikes (train.spike_limit)")
        before, state = self.restore(checkpoints)
        before.skipped_batches = at.skipped_batches + reached - before.step
        before.spikes = spikes
        self.display.say(f"passing over {reached - before.step} batches")
        return before, state

    @contextmanager
    def watching(self, at: TrainerProgress) -> Iterator[StepMonitor]:
        """Metrics from here on; lines of lost steps are cut off."""
        config = self.config
        writer = MetricsWriter(self.folder, at.step) if jax.process_index() == 0 else None
        self.goodput.lose(writer.lost_seconds * config.train.log_every_steps if writer else 0.0)
        self.display.start(at.step)
        try:
            yield StepMonitor(
                config.train, self.rates, self.learning_rates, self.display, writer, at.running, self.goodput
            )
        finally:
            self.watchdog.rest()
            if writer:
                writer.close()

    def advance(
        self,
        at: TrainerProgress,
        state: TrainState,
        watch: StepMonitor,
        checkpoints: Checkpoints,
        stop: Callable[[int], bool],
    ) -> bool:
        """Step, evaluate, save, until the last step (True) or a request to stop (False)."""
        train = self.config.train
        batches = self.batches(at.step + at.skipped_batches, train.steps + at.skipped_batches)
        first = at.step + 1
        step_function = self.compiled()
        for at.step in range(first, train.steps + 1):
            self.watchdog.moved()
            self.profile(at.step - first)
            started = time.perf_counter()
            batch = next(batches)
            waited = time.perf_counter() - started
            state, metrics = step_function(state, batch)
            watch.begun(at.step, metrics, started, waited)
            read = time.perf_counter()
            checkpoints.check()

            last, asked = at.step == train.steps, stop(at.step)
            save = last or asked or checkpoints.due(at.step)
            evaluate = at.step % self.config.eval.every_steps == 0 or last
            scores: dict[str, float] = {}
            if evaluate or save or at.step % train.health_every_steps == 0:
                watch.read()
                scores = self.healthy(at.step, state)
            if evaluate:
                with self.goodput.measure("evaluation"):
                    scores |= {f"eval/{name}": value for name, value in self.evaluate(at.step, state).items()}
                    scores |= self.foretold(at.step)
                scores |= self.goodput.metrics()
            if scores or save:
                watch.settle(scores)
            if save:
                with self.goodput.measure("checkpoint"):
                    checkpoints.save(at.step, replace(state, frozen={}), self.meta(at), scores)
            if asked and not last:
                break
            self.stragglers.add(waited + (0.0 if scores or save else time.perf_counter() - read))
        with self.goodput.measure("checkpoint"):
            checkpoints.wait()
        if at.step < train.steps:
            self.display.say(f"stopped and saved at step {at.step}; run the same command to go on")
        return at.step == train.steps

    def healthy(self, step: int, state: TrainState) -> dict[str, float]:
        """Compare replicas and processes, where there are several; metrics of the latter.

        Raises:
            Corrupt: replicas differ. Nothing has been saved since they did.
        """
        if self.mesh.size > 1:
            self.replicas.check(step, state.params)
        if jax.process_count() == 1 or step % self.config.train.health_every_steps:
            return {}
        return self.stragglers.scores()

    def batches(self, start: int, stop: int) -> Iterator[Any]:
        """Global batches on the devices, some ahead of their turn."""
        local = meshes.local_rows(self.mesh, self.batch_size)
        made = training_batches(self.rows, self.batch_size, local, start, stop, self.config.data)
        waiting: deque[Any] = deque()
        for batch in made:
            waiting.append(meshes.to_global(self.mesh, batch, self.batch_size))
            if len(waiting) > DEVICE_BATCHES:
                yield waiting.popleft()
        yield from waiting

    def compiled(self) -> Any:
        """The compiled train step; how long that took is said, and is part of no step's time."""
        started = time.perf_counter()
        shapes = meshes.batch_shapes(self.mesh, self.rows[0], self.batch_size)
        with self.goodput.measure("compile"):
            step = self.steps.train.lower(self.steps.state, shapes).compile()  # type: ignore[attr-defined]
        seconds = time.perf_counter() - started
        self.goodput.begin(compiling=seconds)
        self.display.say(f"compiled the train step in {format_duration(seconds)}")
        return step

    def evaluate(self, step: int, state: TrainState) -> dict[str, float]:
        """Loss on the validation split."""

        def watched(params: Any, batch: Any) -> Sums:
            self.watchdog.moved()
            return self.steps.evaluate(params, batch)

        found = evaluate_split(watched, (state.params, state.frozen), self.data, self.mesh)
        if self.tasks is not None:
            params = self.steps.whole(state.params, state.frozen)
            found |= self.tasks.scores(params, self.folder / "eval" / str(step))
        self.display.evaluated(step, found)
        return found

    def foretold(self, step: int) -> dict[str, float]:
        """Where the training loss will end, by its curve so far, once enough is seen; the first process says."""
        if jax.process_index() or step >= self.config.train.steps:
            return {}
        found = forecast_loss(read_metrics(self.folder, empty=True), self.learning_rates)
        self.display.foretold(found)
        return found

    def meta(self, at: TrainerProgress) -> dict[str, Any]:
        """What a checkpoint says beside its arrays."""
        base = None if self.base is None else asdict(self.base)
        return {"position": asdict(at), "config": configuration.dump(self.config), "base": base}

    def profile(self, done: int) -> None:
        """A JAX profile of `train.profile` steps, for TensorBoard or Perfetto."""
        count = self.config.train.profile
        if count and done == PROFILE_AFTER:
            jax.profiler.start_trace(str(self.folder / "profile"))
        if count and done == PROFILE_AFTER + count:
            jax.profiler.stop_trace()
            self.display.say(f"profile of {count} steps in {self.folder / 'profile'}")
