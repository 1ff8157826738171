"""RunConfig: a whole run, typed and frozen. Settings, their defaults and meanings stand here and in the `config.py` of
models, data and train, and nowhere else.

No JAX here: a wrong config is refused before any device or file is touched.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import Strict

from t5x_lite import schema
from t5x_lite.adapt import ADAPTATIONS, Full, Method
from t5x_lite.adapt.parts import TrainableSplit
from t5x_lite.data.config import BPE, TOKENIZERS, Bytes, Character, DataConfig, TokenizerFile, Unigram
from t5x_lite.errors import UserError
from t5x_lite.models.components import Learned
from t5x_lite.models.config import ModelConfig
from t5x_lite.objectives import OBJECTIVES, Causal, Objective, TextToText
from t5x_lite.objectives.supervised import Supervised
from t5x_lite.parallel.config import MeshConfig
from t5x_lite.planner.config import PlanConfig
from t5x_lite.schema import Config, Int, OneOf, Strings, setting
from t5x_lite.tasks import TaskForm, objective_settings
from t5x_lite.train.config import AdamW, OptimizerConfig, WarmupStableDecay
from t5x_lite.trees import flatten_names


class TrainConfig(Config):
    """The loop."""

    steps: Int = setting(..., "updates of the parameters", unit="steps", ge=1)
    batch_size: Int = setting(..., "sequences in one update, over all devices", unit="sequences", ge=1)
    seq_len: Int = setting(..., "length of one sequence", unit="tokens", ge=1)
    seed: Int = setting(0, "seed of initialisation, data order and dropout", ge=0)
    microbatches: Int = setting(1, "parts of the batch whose gradients are summed before the update", ge=1)
    z_loss: float = setting(0.0, "weight of log(Z)^2", ge=0, source="PaLM, Chowdhery et al. 2022, §5; T5X used 1e-4")
    label_smoothing: float = setting(0.0, "probability spread over the vocabulary", ge=0, lt=1)
    loss_chunks: Int = setting(
        0, "parts of the sequence whose logits exist at one time; 0 keeps logits under 64 MB a device", ge=0
    )
    log_every_steps: Int = setting(1, "steps between lines of metrics.jsonl", unit="steps", ge=1)
    nonfinite_limit: Int = setting(10, "skipped updates in a row (loss or gradient not finite) that end the run", ge=1)
    spike_factor: float | None = setting(
        None,
        "a loss above this factor of its running mean goes back to the last checkpoint and past the batches since; "
        "null never does",
        gt=1,
        source="PaLM, Chowdhery et al. 2022, §5.1",
    )
    spike_limit: Int = setting(3, "such returns that end the run", ge=1)
    peak_flops: float | None = setting(
        None, "peak of one device for MFU; null looks it up or measures it", unit="FLOP/s"
    )
    health_every_steps: Int = setting(
        100, "steps between checks of the replicas' checksums and of each process's speed", unit="steps", ge=1
    )
    hang_minutes: float | None = setting(
        30, "without a step, end with the stack of every thread; null waits for ever", unit="minutes", gt=0
    )
    profile: Int = setting(0, "steps to write a JAX profile of, after ten; 0 writes none", unit="steps", ge=0)
    allow_changed_config: bool = setting(False, "resume a run directory whose config differs")
    sample_prompt: str = setting("", "text continued and printed at the end; empty prints none")


class CheckpointConfig(Config):
    """What is kept, and for how long."""

    folder: str | None = setting(
        None, "where they lie: a folder, or gs://BUCKET/… (extra `gcs`); null is RUN/checkpoints"
    )
    every_steps: Int = setting(1000, "steps between checkpoints", unit="steps", ge=1)
    every_minutes: float | None = setting(None, "also this often, as temporary checkpoints", unit="minutes", gt=0)
    keep: Int = setting(2, "newest checkpoints kept; older ones are deleted unless another rule keeps them", ge=1)
    keep_every_steps: Int | None = setting(None, "checkpoints kept for ever: multiples of this", unit="steps", ge=1)
    keep_steps: Annotated[tuple[Int, ...], Strict(False)] = setting((), "steps to save, and keep for ever")
    keep_best: Int = setting(1, "best checkpoints kept by `best_metric`; 0 keeps none", ge=0)
    best_metric: str = setting("eval/loss", "evaluation metric that says which is best, such as eval/sst2/accuracy")
    best: Literal["lowest", "highest"] = setting("lowest", "which value of it is best")


class EvalConfig(Config):
    """Evaluation inside and after training."""

    every_steps: Int = setting(1000, "steps between evaluations; the last step is always evaluated", unit="steps", ge=1)
    batches: Int = setting(0, "validation batches at most; 0 takes the whole split", unit="batches", ge=0)
    batch_size: Int | None = setting(None, "sequences a batch; null takes train.batch_size", ge=1)


class AdaptConfig(Config):
    """Beginning from another run instead of from nothing."""

    source: str = setting(..., "run directory whose newest weights, and whose tokenizer, are taken", alias="from")
    method: Annotated[Method, OneOf(ADAPTATIONS)] = setting(Full(), "how they become this run's first weights")


class BranchConfig(Config):
    """Going on from another run's checkpoint as if it were this run's own: weights, optimizer, step and data order.

    Only the schedule of what is left may be another (wsd's decay from one long constant run: Hägele et al. 2024, §3).
    """

    source: str = setting(..., "run directory whose checkpoint is taken while this run has none", alias="from")
    step: Int | None = setting(None, "the checkpoint's step; null takes the newest", unit="steps", ge=1)


class RunConfig(Config):
    """A whole run."""

    run_dir: str | None = setting(None, "where everything of this run lies; null takes runs/<name of the config file>")
    model: ModelConfig = setting(..., "the Transformer")
    data: DataConfig = setting(DataConfig(), "text and batches")
    tokenizer: Annotated[Unigram | BPE | Character | Bytes | TokenizerFile, OneOf(TOKENIZERS)] = setting(
        Unigram(), "text to tokens"
    )
    objective: Annotated[Objective | None, OneOf(OBJECTIVES)] = setting(
        Causal(), "what the model learns to predict; null: weights from elsewhere that are not trained on"
    )
    tasks: Strings = setting((), "tasks to learn, and to evaluate, instead of running text: names of configs/tasks")
    task_form: TaskForm = setting(
        "auto", "whether tasks are learnt by a head or as text to text; auto: by a head in an encoder"
    )
    optimizer: OptimizerConfig = setting(OptimizerConfig(), "the optimizer")
    mesh: MeshConfig = setting(MeshConfig(), "devices")
    train: TrainConfig = setting(..., "the loop")
    checkpoint: CheckpointConfig = setting(CheckpointConfig(), "checkpoints")
    eval: EvalConfig = setting(EvalConfig(), "evaluation")
    adapt: AdaptConfig | None = setting(None, "begin from another run")
    branch: BranchConfig | None = setting(None, "go on from a checkpoint of another run")
    plan: PlanConfig = setting(PlanConfig(), "the pod that this config is for")

    def faults(self) -> Iterator[str]:
        """See `Config`; those of the model alone, of the method and of the objective are raised by them."""
        train, positions, warmup = self.train, self.model.positions, self.optimizer.warmup_steps
        if isinstance(positions, Learned) and train.seq_len > positions.length:
            yield f"train.seq_len {train.seq_len} is longer than model.positions.learned.length {positions.length}"
        if train.batch_size % train.microbatches:
            yield f"train.batch_size {train.batch_size} is not a multiple of train.microbatches {train.microbatches}"
        if train.loss_chunks and train.seq_len % train.loss_chunks:
            yield f"train.seq_len {train.seq_len} is not a multiple of train.loss_chunks {train.loss_chunks}"
        decay = self.optimizer.schedule.decay if isinstance(self.optimizer.schedule, WarmupStableDecay) else 0
        if warmup > train.steps:
            yield f"optimizer.warmup_steps {warmup} is more than train.steps {train.steps}"
        elif warmup > (1 - decay) * train.steps:
            last = f"the last {decay} of train.steps {train.steps} (optimizer.schedule.wsd.decay)"
            yield f"optimizer.warmup_steps {warmup} reach into the decay, {last}"
        self.model.check_mesh(self.mesh.expert, self.mesh.tensor, self.mesh.pipeline)
        if self.model.mup is not None and not isinstance(self.optimizer.method, AdamW):
            yield "model.mup is a parametrisation for Adam: it needs optimizer.method=adamw"
        if self.adapt is not None and self.branch is not None:
            yield "give `adapt` (another run's weights) or `branch` (all of its state), not both"
        self.method.check(self.model)
        if self.objective is not None:
            yield from self._faults_of(self.objective)
        if self.tasks and not isinstance(self.objective, Supervised | TextToText):
            yield f"tasks are learnt by objectives on records, not by {self.objective}"

    def _faults_of(self, objective: Objective) -> Iterator[str]:
        """What does not fit together of model, text and objective."""
        name, families = objective.name, " or ".join(objective.families)
        if self.model.family not in objective.families:
            yield f"objective {name} trains {families}, not a model of family {self.model.family}"
        else:
            objective.check(self.model)
        if self.method.placeholders and not self.tasks:
            yield f"objective {name} has no place for soft tokens (adapt.method) without `tasks`"
        if self.tasks:
            return
        parts, packing = self.data.parts, self.data.packing
        found = f"found packing={packing}, parts={parts}"
        if objective.rows == "sentences" and packing != "sentences":
            needed = "data.packing=sentences and data.parts=line or punctuation"
            yield f"objective {name} is made of sentences: it needs {needed}, {found}"
        if objective.rows == "pairs" and (parts != "fields" or packing not in objective.packings):
            needed = f"data.parts=fields, two names in data.field and data.packing={' or '.join(objective.packings)}"
            yield f"objective {name} is made of pairs of texts: it needs {needed}, {found}"

    @property
    def method(self) -> Method:
        """How another run's weights become this one's; one that begins from nothing trains all of its own."""
        return Full() if self.adapt is None else self.adapt.method

    def parts(self, tree: Any) -> TrainableSplit:
        """Which parameters train, of all that have a name in `tree`."""
        return TrainableSplit.of(self.method, self.model, list(flatten_names(tree)))

    def require_objective(self) -> Objective:
        """The objective of a run that is trained or evaluated.

        Raises:
            UserError: there is none.
        """
        if self.objective is None:
            raise UserError("this run has no objective (objective: null): it can be used, but not trained or evaluated")
        return self.objective


FREE_TO_CHANGE = (
    "run_dir",
    "mesh.",
    "checkpoint.",
    "eval.",
    "plan.",
    "adapt.from",
    "data.cache_dir",
    "data.prepare_processes",
    "data.prefetch",
    "data.workers",
    "model.kernel",
    "model.remat",
    "model.unroll",
    "model.pipeline_microbatches",
    "train.log_every_steps",
    "train.profile",
    "train.peak_flops",
    "train.health_every_steps",
    "train.hang_minutes",
)
"""Settings that may differ when a run is resumed: they do not change what is computed."""


def load(path: str | Path, overrides: Sequence[str] = ()) -> RunConfig:
    """Read, merge, override and check a run's config.

    Raises:
        UserError: one line with every fault, where it was set and the nearest valid spelling.
    """
    sources = schema.read(RunConfig, path, overrides)
    config = schema.validate(RunConfig, schema.Sources(_completed(sources.values), sources.places))
    if config.run_dir is None:
        config = config.model_copy(update={"run_dir": str(Path("runs") / Path(path).stem)})
    return config


def _completed(values: dict[str, Any]) -> dict[str, Any]:
    """What settings follow from others: the model of the run that is adapted, the objective and the head of a task."""
    model, tasks = values.get("model", {}), values.get("tasks", ())
    source = values.get("adapt", {}).get("from") if isinstance(values.get("adapt"), dict) else None
    kept = Path(str(source)) / "config.yaml"
    if not (source or tasks) or not isinstance(model, dict):
        return values  # nothing follows, or the fault is named later
    if source:
        if not kept.is_file():
            raise UserError(f"adapt.from {source}: is not a run directory (no config.yaml)")
        old = yaml.safe_load(kept.read_text(encoding="utf-8"))["model"]
        if old.get("family") == "electra":
            old |= {"family": "encoder", "generator": None}
        model = schema.merge(ModelConfig, old, model)
    if tasks:
        names = (tasks,) if isinstance(tasks, str) else tuple(tasks)
        family = model.get("family", "decoder")
        objective = objective_settings(names, values.get("task_form", "auto"), family)
        if values.get("objective"):
            objective = schema.merge(_OfTask, {"objective": objective}, {"objective": values["objective"]})["objective"]
        own = schema.validate(_OfTask, schema.Sources({"objective": objective}, {})).objective
        values = {**values, "objective": objective}
        if isinstance(own, Supervised):
            plain = ModelConfig.model_construct(family=family)
            model = {**model, "head": own.head(plain).model_dump(mode="json")}
            model |= {"outputs": []} if family == "encoder" else {}
    return {**values, "model": model}


class _OfTask(Config):
    objective: Annotated[Objective, OneOf(OBJECTIVES)]


def dump(config: RunConfig) -> str:
    """The resolved config as YAML: enough to repeat the run."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, allow_unicode=True, width=100)


def changed(old: RunConfig, new: RunConfig) -> dict[str, tuple[Any, Any]]:
    """Settings that decide what is computed and differ: `{dotted key: (old, new)}`."""
    before, after = schema.flatten(old), schema.flatten(new)
    return {
        key: (before.get(key), after.get(key))
        for key in sorted(before.keys() | after.keys())
        if before.get(key) != after.get(key) and not key.startswith(FREE_TO_CHANGE)
    }
