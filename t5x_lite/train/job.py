"""A job: the config, devices and data of a run, opened and checked before anything is written."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import jax
from jax.sharding import Mesh

from t5x_lite.best_metric import best_checkpoint_notice
from t5x_lite.config import RunConfig
from t5x_lite.data.tokenizer import Tokenizer
from t5x_lite.data.training_data import ExampleSequence, TrainingData
from t5x_lite.errors import UserError
from t5x_lite.evaluate.tasks import check_task_metrics
from t5x_lite.parallel.distributed import check_same_on_all_processes, main_process_first
from t5x_lite.parallel.mesh import make_mesh
from t5x_lite.run_data import open_run_data, open_tokenizer
from t5x_lite.run_dir import check_run_dir, has_begun, with_absolute_paths, with_vocab
from t5x_lite.run_rewards import check_rewards
from t5x_lite.run_teacher import check_teacher
from t5x_lite.run_weights import check_source_model, source_run
from t5x_lite.train.branch import check_branch
from t5x_lite.train.mesh_checks import check_mesh
from t5x_lite.train.rewind import check_rewind


@dataclass(frozen=True)
class Job:
    """A run on the devices of all processes.

    Attributes:
        config: the run.
        mesh: the devices.
        tokenizer: the tokenizer.
        data: the opened data.
        examples: training examples in the order of each stage.
        attention_kernels: the kernel of each kind of attention, and why it was chosen.
        changed_settings: settings that differ from those that the run was started with; empty if none do.
    """

    config: RunConfig
    mesh: Mesh
    tokenizer: Tokenizer
    data: TrainingData
    examples: Sequence[ExampleSequence]
    attention_kernels: Mapping[str, str]
    changed_settings: str

    def notices(self, run_dir: Path) -> list[str]:
        """Return what people should know before the first step. The first process notes the data in the run directory.

        Args:
            run_dir: the run directory, or its local copy.
        """
        if jax.process_index() > 0:
            return []
        notices = []
        if self.attention_kernels:
            kernels = "; ".join(f"{kind} by {kernel}" for kind, kernel in self.attention_kernels.items())
            notices.append(f"attention: {kernels}")
        notice = best_checkpoint_notice(self.config)
        if notice is not None:
            notices.append(notice)
        if self.changed_settings:
            notices.append(f"continuing with changed settings: {self.changed_settings}")
        return notices + self.data.describe(run_dir)


def open_job(config: RunConfig) -> Job:
    """Open and check the devices, the data and the models that a run needs, and whatever its evaluations need.

    Raises:
        UserError: invalid input. Nothing of the run has been written.
    """
    mesh = make_mesh(config.mesh)
    attention_kernels = check_mesh(mesh, config, mesh.devices.flat[0].platform)
    changed_settings = check_run_dir(config)
    if jax.process_index() == 0 and not has_begun(config):
        _check_first_state(with_absolute_paths(config))
    if not config.tasks and not config.data.holds_out_text:
        raise UserError("no text is held out: raise data.validation_fraction, or name data.validation_files")
    # Before the tokenizer and the corpus, which may take long.
    for evaluator in config.evaluators:
        evaluator.prepare(config.model)
    for tracker in config.train.trackers:
        tracker.check()
    with main_process_first():
        tokenizer = open_tokenizer(config)
        data = open_run_data(with_vocab(config, tokenizer), tokenizer)
    check_same_on_all_processes(
        f"{tokenizer.fingerprint} {sorted(data.hashes.items())}",
        "data.files or the tokenizer: the content differs between machines; give all of them the same files",
    )
    examples = [data.rows(stage) for stage in range(len(config.stages))]
    data.validation()
    check_task_metrics(data)
    check_rewards(config, tokenizer)
    check_teacher(config, tokenizer)
    return Job(config, mesh, tokenizer, data, examples, attention_kernels, changed_settings)


def _check_first_state(config: RunConfig) -> None:
    """Refuse a run that cannot begin with the state or the weights of the run that it names.

    Raises:
        UserError: with the settings that differ.
    """
    if config.branch is not None:
        check_branch(config, config.branch)
    if config.method.rewinds:
        check_rewind(config)
    elif config.adapt is not None:
        check_source_model(config)
        source_run(config).check_checkpoint("adapt.from")
