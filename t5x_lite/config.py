"""The configuration of a run: all groups of settings together, and the rules between them.

The settings of models, data, training and evaluation are declared in the `config.py` of their package. Nothing here
imports JAX, so that a wrong config is rejected before any device or file is touched.
"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, ClassVar

from t5x_lite import schema
from t5x_lite.adapt import ADAPTATIONS, AdaptationMethod, Full
from t5x_lite.adapt.trainable import TrainableSplit
from t5x_lite.best_metric import check_best_metric
from t5x_lite.checkpoint_config import CheckpointConfig
from t5x_lite.config_files import find_config
from t5x_lite.config_problems import distillation_problems, objective_problems
from t5x_lite.data.config import DataConfig
from t5x_lite.data.stages import Stage, resolve_stages, stage_problems, title
from t5x_lite.data.tokenizer_config import TOKENIZERS, Bytes, TokenizerConfig, TokenizerFile, Unigram
from t5x_lite.derived_settings import add_derived_settings
from t5x_lite.errors import UserError
from t5x_lite.evaluate.config import EvalConfig
from t5x_lite.evaluate.evaluators import Evaluator, Tasks, Validation
from t5x_lite.models.config import ModelConfig
from t5x_lite.models.mesh_sizes import check_mesh_sizes
from t5x_lite.objectives import OBJECTIVES, Causal, Objective, TextToText
from t5x_lite.objectives.distillation import Distillation
from t5x_lite.objectives.policy_optimization import PolicyOptimization
from t5x_lite.objectives.supervised import Supervised
from t5x_lite.parallel.config import MeshConfig
from t5x_lite.planner.config import PlanConfig
from t5x_lite.plugins import load_plugins
from t5x_lite.schema import Config, Int, OneOf, Strings, component_name, setting
from t5x_lite.storage import expand
from t5x_lite.tasks import TaskForm
from t5x_lite.train.config import OptimizerConfig, TrainConfig
from t5x_lite.train.optimizers import OPTIMIZERS
from t5x_lite.trees import flatten_names
from t5x_lite.unused_settings import check_used


class AdaptConfig(Config):
    """Initialisation from the weights of another run."""

    source: str = setting(
        ..., "run directory that provides the newest weights and the tokenizer", alias="from", min_length=1
    )
    method: Annotated[AdaptationMethod, OneOf(ADAPTATIONS)] = setting(
        Full(), "adaptation method: how the first weights are made, and which of them train"
    )
    new_tokenizer: bool = setting(
        False,
        "begin with the tokenizer that `tokenizer` describes, such as one that knows all words of a task; for "
        "model.characters, whose token vectors belong to no ids",
    )


class BranchConfig(Config):
    """Continuation of another run from its checkpoint: weights, optimizer state, step and data order.

    Only the schedule of the remaining steps may differ, such as the decay of a long run with a constant rate (Hägele
    et al. 2024, §3).
    """

    source: str = setting(
        ..., "run directory whose checkpoint is loaded while this run has none", alias="from", min_length=1
    )
    step: Int | None = setting(
        None, "step of the checkpoint; null takes the last of a complete run", unit="steps", ge=1
    )


class RunConfig(Config):
    """A whole run."""

    help_command: ClassVar[str] = "t5x-lite train --help-config"

    run_dir: str | None = setting(
        None,
        "folder of the run's config, metrics and checkpoints, local, gs://BUCKET/… (extra `gcs`) or s3://BUCKET/… "
        "(extra `s3`); null is runs/<name of the config file>",
        min_length=1,
    )
    model: ModelConfig = setting(..., "the Transformer")
    data: DataConfig = setting(DataConfig(), "text and batches")
    tokenizer: Annotated[TokenizerConfig, OneOf(TOKENIZERS)] = setting(Unigram(), "tokenizer that is trained or loaded")
    objective: Annotated[Objective | None, OneOf(OBJECTIVES)] = setting(
        Causal(), "what the model learns to predict; null for imported weights that are not trained"
    )
    tasks: Strings = setting((), "tasks to train and evaluate on, instead of running text: names of configs/tasks")
    task_form: TaskForm = setting(
        "auto", "learn tasks with a head, or as text to text; auto uses a head for encoders and text otherwise"
    )
    optimizer: OptimizerConfig = setting(OptimizerConfig(), "the optimizer")
    mesh: MeshConfig = setting(MeshConfig(), "devices")
    train: TrainConfig = setting(..., "the training loop")
    checkpoint: CheckpointConfig = setting(CheckpointConfig(), "checkpoints")
    eval: EvalConfig = setting(EvalConfig(), "evaluation")
    adapt: AdaptConfig | None = setting(None, "initialise from another run")
    distillation: Distillation | None = setting(None, "learn from the distributions and states of another run")
    branch: BranchConfig | None = setting(None, "continue from a checkpoint of another run")
    plan: PlanConfig = setting(PlanConfig(), "the pod that this config is for")

    def problems(self) -> Iterator[str]:
        """Yield what does not fit together across groups.

        Raises:
            ValueError: the model does not fit the mesh, the adaptation method or the objective.
        """
        yield from self._batch_problems()
        yield from self._stage_problems()
        yield from self._schedule_problems()
        check_mesh_sizes(self.model, self.mesh.expert, self.mesh.tensor, self.mesh.pipeline)
        self.method.check_stages(self.mesh.pipeline)
        if self.model.mup is not None and not self.optimizer.method.supports_mup:
            yield "model.mup is a parametrisation for Adam: it needs optimizer.method=adamw"
        if self.adapt is not None and self.branch is not None:
            yield "give `adapt` (another run's weights) or `branch` (all of its state), not both"
        if self.adapt is not None and self.adapt.new_tokenizer and (not self.model.characters or self.model.outputs):
            yield "adapt.new_tokenizer is for model.characters and a head: other weights belong to the ids of tokens"
        if self.optimizer.master_weights and self.train.param_dtype == "float32":
            yield "optimizer.master_weights is a float32 copy of parameters in bfloat16: set train.param_dtype=bfloat16"
        if self.optimizer.method.averages_weights and self.train.param_dtype != "float32":
            name = component_name(OPTIMIZERS, self.optimizer.method)
            yield f"optimizer.method={name} averages weights in float32: it needs train.param_dtype=float32"
        self.method.check(self.model)
        if self.objective is not None:
            yield from objective_problems(self, self.objective)
        if self.distillation is not None:
            yield from distillation_problems(self)
        yield from self.eval.model_problems(self.model)
        if self.data.holds_tokens and self.adapt is None and not isinstance(self.tokenizer, TokenizerFile | Bytes):
            yield "data.format: files of tokens need the tokenizer that made them; set tokenizer.file.path"
        if self.tasks and not isinstance(self.objective, Supervised | TextToText):
            yield f"tasks are learnt by objectives on records, not by {self.objective}"
        if not self.tasks and self.task_form != "auto":
            yield f"task_form: {self.task_form} is the form of `tasks`, and the run has none"
        for task in sorted({task for task in self.tasks if self.tasks.count(task) > 1}):
            yield f"tasks: {task} is named twice"

    def _batch_problems(self, prefix: str = "train.") -> Iterator[str]:
        train = self.train
        seq_len = f"{prefix}seq_len {train.seq_len}"
        max_length = self.model.max_length
        if max_length is not None and train.seq_len > max_length:
            yield f"{seq_len} is longer than {self.model.positions.max_length_setting} {max_length}"
        if train.batch_size % train.microbatches:
            yield f"{prefix}batch_size {train.batch_size} is not a multiple of train.microbatches {train.microbatches}"
        if train.loss_chunks and train.seq_len % train.loss_chunks:
            yield f"{seq_len} is not a multiple of train.loss_chunks {train.loss_chunks}"

    def _stage_problems(self) -> Iterator[str]:
        """Yield what is wrong with `data.schedule`."""
        if not self.data.schedule:
            return
        if self.tasks:
            yield "data.schedule is for text: it mixes the sources of `data`, and `tasks` have none"
        batch_tokens = self.train.batch_size * self.train.seq_len
        problems = list(stage_problems(self.data, self.stages, self.train.steps, batch_tokens))
        yield from problems
        if not problems:
            for stage in self.stages:
                yield from self.of_stage(stage)._batch_problems(f"{title(stage)}: ")

    def _schedule_problems(self) -> Iterator[str]:
        warmup = self.optimizer.warmup_steps
        steps = self.train.steps
        if warmup > steps:
            yield f"optimizer.warmup_steps {warmup} is more than train.steps {steps}"
        else:
            yield from self.optimizer.schedule.warmup_problems(warmup, steps)

    @property
    def stages(self) -> tuple[Stage, ...]:
        """The stages of the run (`data.schedule`); one if it has no schedule."""
        return resolve_stages(self.data, self.train.steps, self.train.batch_size, self.train.seq_len)

    @property
    def largest_stage(self) -> Stage:
        """The stage that needs most memory: the most tokens in a batch, and of these the longest sequences."""
        return max(self.stages, key=_size_of_stage)

    def of_stage(self, stage: Stage) -> "RunConfig":
        """Return the config with the batches of a stage alone, from which its train step is compiled and planned."""
        train = self.train.model_copy(update={"batch_size": stage.batch_size, "seq_len": stage.seq_len})
        data = self.data.model_copy(update={"schedule": ()})
        return self.model_copy(update={"train": train, "data": data})

    def replace_model(self, **settings: object) -> "RunConfig":
        """Return the config with other settings of the model, which are not validated again."""
        return self.model_copy(update={"model": self.model.model_copy(update=settings)})

    @property
    def method(self) -> AdaptationMethod:
        """The adaptation method. A run that does not adapt another one trains all of its weights."""
        if self.adapt is None:
            return Full()
        return self.adapt.method

    @property
    def scores_left_to_right(self) -> bool:
        """Texts are scored by their tokens given those before them, and not given all others (`eval.likelihood`)."""
        return self.eval.likelihood_of(self.model) == "conditional"

    @property
    def evaluators(self) -> tuple[Evaluator, ...]:
        """Evaluators of the run: the loss on the validation split, the run's own tasks, and `eval.evaluators`.

        One of the first two that `eval.evaluators` names, with settings of its own, runs in that form alone.
        """
        configured = self.eval.evaluators
        implied: list[Evaluator] = []
        if self.objective is None or self.objective.has_validation_loss:
            implied.append(Validation())
        if self.tasks:
            implied.append(Tasks())
        configured_kinds = {type(evaluator) for evaluator in configured}
        return (*(evaluator for evaluator in implied if type(evaluator) not in configured_kinds), *configured)

    def trainable_split(self, tree: Mapping[str, object]) -> TrainableSplit:
        """Return which of the parameters in `tree`, nested dicts whose leaves may be anything, train."""
        return TrainableSplit.of(self.method, self.model, list(flatten_names(tree)))

    @property
    def updates_per_step(self) -> int:
        """The updates in a step."""
        return 1 if self.objective is None else self.objective.updates_per_step

    @property
    def row_objectives(self) -> tuple[Objective, ...]:
        """The distinct objectives of the rows of a batch: the run's, or those of the sources of its mixture."""
        return self.data.objectives(self.require_objective())

    def require_objective(self) -> Objective:
        """Return the objective of a run that is trained or evaluated.

        Raises:
            UserError: the run has none.
        """
        if self.objective is None:
            raise UserError("this run has no objective (objective: null): it can be used, but not trained or evaluated")
        return self.objective

    @property
    def source_runs(self) -> tuple[tuple[str, str], ...]:
        """The other runs that this one reads: for each the setting that names it, and its run directory."""
        sources = []
        if self.adapt is not None:
            sources.append(("adapt.from", self.adapt.source))
        if self.branch is not None:
            sources.append(("branch.from", self.branch.source))
        if self.distillation is not None:
            sources.append(("distillation.teacher", self.distillation.teacher))
        sources += [("adapt.method", source) for source in self.method.sources]
        if self.objective is not None:
            sources += [("objective", source) for source in self.objective.sources]
        return tuple(sources)

    @property
    def policy_objective(self) -> PolicyOptimization | None:
        """The objective if steps sample answers and learn from their rewards; None for any other."""
        return self.objective if isinstance(self.objective, PolicyOptimization) else None

    def require_policy_objective(self) -> PolicyOptimization:
        """Return the objective of a run whose steps sample answers.

        Raises:
            UserError: it has another one.
        """
        if self.policy_objective is None:
            raise UserError("this run samples no answers: that is for the objectives grpo and ppo")
        return self.policy_objective


def _size_of_stage(stage: Stage) -> tuple[int, int]:
    return stage.batch_tokens, stage.seq_len


CHANGEABLE_ON_RESUME = (
    "run_dir",
    "mesh.",
    "checkpoint.",
    "eval.",
    "plan.",
    "adapt.from",
    "branch.from",
    "distillation.teacher",
    "data.cache_dir",
    "data.prepare_processes",
    "data.prefetch",
    "data.workers",
    "model.kernel",
    "model.remat",
    "model.unroll",
    "model.pipeline_microbatches",
    "train.log_every_steps",
    "train.trackers",
    "train.profile",
    "train.sample_prompt",
    "train.peak_flops",
    "train.compiler_options",
    "train.health_every_steps",
    "train.hang_minutes",
)
"""Prefixes of settings that may differ when a run is resumed. They do not change the numbers that are computed, but for
rounding, the dropout of another `mesh.data` with `train.data_reduction=step`, and that of sorted experts on any other
mesh."""


def load(path: str | Path, overrides: Sequence[str] = ()) -> RunConfig:
    """Read, merge, override and validate the config of a run.

    Args:
        path: a file, or the name of a shipped config, such as `quickstart`.
        overrides: settings, `dotted.key=value`, that replace those of the file.

    Raises:
        UserError: one line with every problem, where it was set, and the nearest valid spelling; settings that have
            no effect; a best metric that nothing reports; a plugin that cannot be loaded.
    """
    load_plugins()
    path = find_config(path)
    sources = schema.read(RunConfig, path, overrides)
    _check_tokenizer(sources)
    completed = schema.Sources(add_derived_settings(sources.values), sources.locations)
    config = schema.validate(RunConfig, completed)
    check_used(config, sources)
    check_best_metric(config, sources)
    run_dir = expand(config.run_dir or str(Path("runs") / path.stem))
    for key, source in config.source_runs:
        if Path(expand(source)).absolute() == Path(run_dir).absolute():
            raise UserError(f"{key}: {source} is the run_dir of this run; choose another run_dir")
    return config.model_copy(update={"run_dir": run_dir})


def _check_tokenizer(sources: schema.Sources) -> None:
    """Refuse a tokenizer on the command line of a run that has that of another run. Its base configs may name one.

    Raises:
        UserError: with the key that sets it.
    """
    adapt = sources.values.get("adapt")
    if not isinstance(adapt, dict) or not adapt.get("from") or adapt.get("new_tokenizer"):
        return
    for key, location in sources.locations.items():
        if key.partition(".")[0] == "tokenizer" and location == schema.COMMAND_LINE:
            raise UserError(f"command line: `{key}`: the run has the tokenizer of adapt.from; remove the setting")


def dump(config: RunConfig) -> str:
    """Return the resolved config as YAML, which is enough to repeat the run."""
    return schema.dump(config.model_dump(mode="json"))


def changed(old: RunConfig, new: RunConfig) -> dict[str, tuple[object, object]]:
    """Return the settings that differ and affect what is computed, as `{dotted key: (old, new)}`."""
    differences = schema.differences(old, new)
    return {key: values for key, values in differences.items() if not key.startswith(CHANGEABLE_ON_RESUME)}


def describe_differences(source: RunConfig, config: RunConfig, ignored: tuple[str, ...]) -> str:
    """Return the settings that differ between the run that a config names and its own, each with both values.

    Args:
        source: the config of the run that is named.
        config: the config that names it. A `model.vocab` that it leaves out will be the tokenizer's, and is equal.
        ignored: prefixes of settings that may differ.
    """
    differences = []
    for key, (source_value, value) in changed(source, config).items():
        is_left_out = key == "model.vocab" and value is None
        if not key.startswith(ignored) and not is_left_out:
            differences.append(f"{key} is {source_value!r} there, {value!r} here")
    return "; ".join(differences)
