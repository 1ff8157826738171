"""The state of a run on disk: saved with its progress, and found again when the run starts."""

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace

import jax
from jax.sharding import Mesh

from t5x_lite import config as configuration
from t5x_lite import storage
from t5x_lite.checkpoint import Checkpoints, JsonObject
from t5x_lite.data.mixture import MIXTURE_VERSION
from t5x_lite.data.row_rule import PLAN_VERSION
from t5x_lite.errors import Diverged, UserError, join_first, suggest
from t5x_lite.local_checkpoint import LocalCheckpoints, open_local_checkpoints
from t5x_lite.parallel.distributed import wait_for_all_processes
from t5x_lite.run_dir import Run
from t5x_lite.run_rewards import RewardSource, open_rewards
from t5x_lite.run_teacher import load_teacher
from t5x_lite.run_weights import BaseCheckpoint, initial_weights
from t5x_lite.train.branch import restore_branch
from t5x_lite.train.monitor import RunningLoss
from t5x_lite.train.rewind import rewind
from t5x_lite.train.state import TrainState
from t5x_lite.train.steps import Steps

LISTED_METRICS = 8
"""Metrics of an evaluation that a warning lists."""


@dataclass
class Progress:
    """The position of a run.

    Attributes:
        step: updates so far.
        skipped_batches: batches that were passed over after loss spikes.
        spikes: loss spikes so far.
        running: the running mean of the loss.
    """

    step: int = 0
    skipped_batches: int = 0
    spikes: int = 0
    running: RunningLoss = field(default_factory=RunningLoss)

    @classmethod
    def from_metadata(cls, metadata: JsonObject) -> "Progress":
        """Read the progress from the metadata of a checkpoint."""
        position = metadata["position"]
        return cls(
            step=position["step"],
            skipped_batches=position["skipped_batches"],
            spikes=position["spikes"],
            running=RunningLoss(**position["running"]),
        )


class StateStore:
    """Loads and saves the state of a run.

    Weights that an adaptation method freezes are not saved. They are loaded from the run that is adapted, and those of
    a teacher or of a reward model from its run.

    Args:
        run: the run.
        mesh: its devices.
        steps: its compiled steps.
        checkpoints: its checkpoints.
        data_hashes: hashes of its data; see `data.training_data.TrainingData.hashes`.
        show: prints a message.
    """

    def __init__(
        self,
        run: Run,
        mesh: Mesh,
        steps: Steps,
        checkpoints: Checkpoints,
        data_hashes: Mapping[str, str],
        show: Callable[[str], None],
    ) -> None:
        self.checkpoints = checkpoints
        self._run = run
        self._config = run.config
        self._mesh = mesh
        self._steps = steps
        self._data_hashes = data_hashes
        self._show = show
        self._has_warned = False
        self._base: BaseCheckpoint | None = None
        self._teacher: BaseCheckpoint | None = None
        self.rewards: RewardSource | None = None
        """The source of rewards of a run that samples answers, from `load` on."""
        self._local: LocalCheckpoints | None = None
        if run.config.checkpoint.local is not None:
            run_dir = str(run.config.run_dir)
            self._local = open_local_checkpoints(run.config.checkpoint.local, run_dir, run.folder)

    def load(self) -> tuple[Progress, TrainState]:
        """Return the progress and the state to start from.

        1. The newest intact checkpoint of the run, or a newer state that all machines have (`checkpoint.local`).
        2. Without any, the checkpoint that `branch` names, or the weights of the run that `adapt` names.
        3. Without those, fresh weights, a function of the seed.
        """
        state_shapes = self._steps.state.saved()
        source = self._config.checkpoint.folder or str(self._config.run_dir)
        restored = self._restore_local(state_shapes)
        if restored is not None and self._local is not None:
            source = str(self._local.folder)
        else:
            restored = self.checkpoints.restore(state_shapes)
        if self._local is not None:
            self._local.delete_after(0 if restored is None else restored[0])
        if restored is None and self._config.branch is not None:
            restored = restore_branch(self._config, self._config.branch, state_shapes)
            source = self._config.branch.source
        if restored is None:
            progress, state = self._first_state()
            self._open_rewards({})
            return progress, self._with_teacher(state, {})
        step, state, metadata = restored
        if step < self._config.train.steps:
            self._check_rows(metadata, source)
            self._check_data(metadata, source)
        if jax.tree.leaves(self._steps.state.frozen):
            state = self._add_frozen(state, metadata)
        self._show(f"resumed from step {step} in {source}")
        self._open_rewards(metadata)
        return Progress.from_metadata(metadata), self._with_teacher(state, metadata)

    def save(self, progress: Progress, state: TrainState, metrics: Mapping[str, float]) -> None:
        """Start to save a checkpoint. `metrics` rank it among the others."""
        best_metric = self._config.checkpoint.best_metric
        if metrics and best_metric not in metrics and not self._has_warned and self._config.checkpoint.keep_best:
            self._has_warned = True
            names = [name for name in metrics if name.startswith("eval/")]
            remedy = suggest(best_metric, names) or f"; set it to one of {join_first(names, LISTED_METRICS)}"
            self._show(
                f"checkpoint.best_metric: the evaluation of step {progress.step} has no {best_metric}, by which the "
                f"best checkpoint is kept{remedy}"
            )
        self.checkpoints.save(progress.step, state.saved(), self._metadata(progress), metrics)

    def local_save_due(self, step: int) -> bool:
        """Return whether the machines save the state after a step on their disks (`checkpoint.local`)."""
        return self._local is not None and self._local.due(step)

    def save_locally(self, progress: Progress, state: TrainState) -> None:
        """Start to write the state to the disks of the machines."""
        assert self._local is not None
        self._local.save(progress.step, state.saved(), self._metadata(progress))

    def delete_local_states(self) -> None:
        """Delete the states on the disks of the machines, because the run goes back behind them or is complete."""
        if self._local is not None:
            self._local.clear()

    def skip_spike(self, progress: Progress, spike_step: int) -> tuple[Progress, TrainState]:
        """Go back to the newest checkpoint, and pass over the batches from there to a loss spike (PaLM, §5.1).

        Raises:
            Diverged: the run has had more spikes than `train.spike_limit`.
        """
        self.checkpoints.wait()
        wait_for_all_processes("checkpoint is complete")  # the first one completes it: all must see the same newest one
        spikes = progress.spikes + 1
        limit = self._config.train.spike_limit
        if spikes > limit:
            raise Diverged(f"step {spike_step}: more than {limit} loss spikes (train.spike_limit)")
        self.delete_local_states()
        restored_progress, state = self.load()
        skipped_batches = spike_step - restored_progress.step
        restored_progress.skipped_batches = progress.skipped_batches + skipped_batches
        restored_progress.spikes = spikes
        self._show(f"passing over {skipped_batches} batches")
        return restored_progress, state

    def _restore_local(self, state_shapes: TrainState) -> tuple[int, TrainState, JsonObject] | None:
        if self._local is None:
            return None
        newest_saved = max(self.checkpoints.steps(), default=0)
        return self._local.restore(state_shapes, newest_saved)

    def _metadata(self, progress: Progress) -> JsonObject:
        return {
            "position": asdict(progress),
            "config": configuration.dump(self._config),
            "run_dir": storage.absolute(str(self._config.run_dir)),
            "base": _as_json(self._base),
            "teacher": _as_json(self._teacher),
            "reward": None if self.rewards is None else _as_json(self.rewards.checkpoint),
            "plan_version": PLAN_VERSION,
            "mixture_version": MIXTURE_VERSION,
            "data_hashes": dict(self._data_hashes),
        }

    def _check_rows(self, metadata: JsonObject, source: str) -> None:
        """Refuse to continue with other rows than the run began with.

        Raises:
            UserError: a version of the package that packs documents or mixes sources in another way has saved the
                checkpoint.
        """
        config = self._config
        packings = {config.data.of_source(source).packing for source in config.data.sources}
        is_packed = "documents" in packings and not config.tasks
        is_mixed = len(config.tasks or config.data.sources) > 1
        # Checkpoints without a version are from before documents were packed by best fit.
        if is_packed and metadata.get("plan_version", 1) != PLAN_VERSION:
            change = "packs documents into other rows (data.packing=documents)"
        elif is_mixed and metadata.get("mixture_version", 1) != MIXTURE_VERSION:
            change = "interleaves the sources or tasks in another order"
        else:
            return
        if not config.train.allow_changed_config:
            raise UserError(
                f"{source}: its checkpoint is of a version that {change}, so that its next batches cannot be built; "
                "finish the run with that version, or set train.allow_changed_config=true to continue with new rows"
            )

    def _check_data(self, metadata: JsonObject, source: str) -> None:
        """Refuse to continue on another text than the run began with.

        Raises:
            UserError: the files of a source or task have another content than when the checkpoint was saved.
        """
        # Checkpoints and corpora of older versions have no hashes.
        saved_hashes = metadata.get("data_hashes", {})
        changed = []
        for name, data_hash in self._data_hashes.items():
            if saved_hashes.get(name, data_hash) != data_hash:
                changed.append(name)
        if not changed:
            return
        if not self._config.train.allow_changed_config:
            raise UserError(
                f"{source}: was trained on other data than the files hold now: {', '.join(changed)}; restore the "
                "files, choose another run_dir, or set train.allow_changed_config=true to continue on the new data"
            )
        self._show(f"continuing on changed data: {', '.join(changed)}")

    def _first_state(self) -> tuple[Progress, TrainState]:
        if self._config.method.rewinds:
            return self._rewound_state()
        return Progress(), self._fresh_state()

    def _rewound_state(self) -> tuple[Progress, TrainState]:
        assert self._config.adapt is not None
        source = self._config.adapt.source
        rewound = rewind(self._config, self._mesh, self._steps)
        self._base = rewound.base
        self._show(f"pruned {source}: {rewound.remaining:.2%} of the matrices' weights are left")
        if rewound.metadata is None:
            return Progress(), rewound.state
        self._check_rows(rewound.metadata, source)
        self._check_data(rewound.metadata, source)
        return Progress.from_metadata(rewound.metadata), rewound.state

    def _fresh_state(self) -> TrainState:
        if self._config.adapt is None:
            self._show(f"fresh weights from seed {self._config.train.seed}")
            return self._steps.create_state()
        params, self._base = initial_weights(self._config, self._run.spec, self._mesh)
        self._show(f"first weights from {self._config.adapt.source}, step {self._base.step}")
        return self._steps.create_state_from(params)

    def _add_frozen(self, state: TrainState, metadata: JsonObject) -> TrainState:
        self._base = BaseCheckpoint.from_metadata(metadata)
        params, _ = initial_weights(self._config, self._run.spec, self._mesh, self._base)
        split = self._config.trainable_split(self._run.spec.axes)
        return replace(state, frozen=split.frozen(params))

    def _open_rewards(self, metadata: JsonObject) -> None:
        """Open the source of rewards of a run that samples answers: the one of a checkpoint if that names any."""
        if self._config.policy_objective is not None and self.rewards is None:
            expected = BaseCheckpoint.from_metadata(metadata, "reward")
            self.rewards = open_rewards(self._config, self._run.tokenizer, self._mesh, expected)

    def _with_teacher(self, state: TrainState, metadata: JsonObject) -> TrainState:
        """Return the state with the weights of the run's teacher, the one of a checkpoint if that names any."""
        expected = BaseCheckpoint.from_metadata(metadata, "teacher")
        teacher, self._teacher = load_teacher(self._config, self._mesh, expected)
        return replace(state, teacher=teacher)


def _as_json(checkpoint: BaseCheckpoint | None) -> JsonObject | None:
    return None if checkpoint is None else asdict(checkpoint)
