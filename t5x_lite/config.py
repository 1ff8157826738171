"""RunConfig: a whole run, typed and frozen. The only place where a setting, its default and its meaning are written.

No JAX here: a wrong config is refused before any device or file is touched.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import Strict, model_validator

from t5x_lite import schema
from t5x_lite.adapt import ADAPTATIONS, Full, Method
from t5x_lite.adapt.parts import Parts, named
from t5x_lite.errors import UserError
from t5x_lite.models.config import Learned, ModelConfig
from t5x_lite.objectives import OBJECTIVES, Causal, Objective, TextToText
from t5x_lite.objectives.supervised import Supervised
from t5x_lite.schema import Config, Int, OneOf, Strings, setting
from t5x_lite.task import Form, settings_of

Format = Literal["auto", "text", "jsonl", "parquet", "tfds", "parallel"]
STANDARD_LIBRARY = "python:standard_library"
"""In `data.files`: the source and the documentation of the running Python, text that every machine has."""


class SourceConfig(Config):
    """Where documents come from."""

    files: Strings = setting(
        (),
        "glob or list of globs; for `tfds` the builder's directory or `name/config:version`; "
        f"`{STANDARD_LIBRARY}` is the source and the documentation of the running Python",
    )
    format: Format = setting(
        "auto",
        "kind of file; `auto` goes by the ending: .jsonl, .parquet, else text; each also with .gz or .zst; `parallel` "
        "is one text file a field, {} in its name for the field, line n of each belonging together",
    )
    field: Strings = setting(("text",), "column of JSONL, Parquet or TFDS that holds the text; several make `fields`")
    document: Literal["file", "line", "paragraph"] = setting("file", "what one document of a text file is")
    split: str = setting("train", "TFDS split")


class MixedSource(SourceConfig):
    """One source of a mixture."""

    name: str = setting(..., "name in logs and metrics")
    weight: float | None = setting(None, "share of examples, relative to the other sources; null goes by size", gt=0)


class DataConfig(SourceConfig):
    """Text, its token corpus and how rows are cut from it."""

    mixture: Annotated[tuple[MixedSource, ...], Strict(False)] = setting((), "several sources instead of `files`")
    mixture_alpha: float = setting(
        1.0,
        "sources without a weight get n^alpha, n their tokens (tasks: their examples): 1 by size, 0 equal; 1/T is T5's "
        "temperature T",
        ge=0,
        le=1,
        source="mT5, Xue et al. 2021, §3.1",
    )
    mixture_limit: Int | None = setting(
        None, "a task counts as this many examples at most", ge=1, source="Raffel et al. 2020, §3.5.2: K"
    )
    columns: Strings = setting((), "of tasks: names of the columns of TSV or CSV files that have no header")
    validation_fraction: float = setting(0.01, "share of documents (or of the tail) kept for validation", ge=0, lt=1)
    validation_by: Literal["hash", "position"] = setting(
        "hash", "validation documents by a hash of their text, or the tail of each file by position"
    )
    validation_files: Strings = setting((), "separate validation text, same format; then nothing is split off")
    validation_split: str = setting("", "TFDS split for validation; then nothing is split off")
    end_of_document: bool = setting(True, "append the tokenizer's EOS to every document")
    parts: Literal["none", "line", "punctuation", "fields"] = setting(
        "none",
        "what the parts of a document are, for objectives on sentences and on pairs: its lines, what ends with . ! or "
        "?, or its fields (inputs and targets)",
    )
    packing: Literal["stream", "documents", "sentences", "none"] = setting(
        "stream",
        "rows are windows of the token stream; whole documents, or whole sentences, side by side; or one document a "
        "row",
    )
    separate_documents: bool = setting(True, "documents of one row do not see each other (segment_ids)")
    cache_dir: str = setting("cache", "folder of token corpora and trained tokenizers, shared by runs")
    prepare_processes: Int = setting(0, "processes that tokenise; 0 takes every core", ge=0)
    workers: Int = setting(0, "processes that make batches; 0 makes them in a thread of this one", ge=0)
    prefetch: Int = setting(4, "batches made ahead", unit="batches", ge=1)

    @model_validator(mode="after")
    def _check(self) -> "DataConfig":
        if self.files and self.mixture:
            raise ValueError("give `files` or `mixture`, not both")
        for source in self.sources:
            if (len(source.field) > 1) != (self.parts == "fields"):
                raise ValueError(
                    f"several fields need parts=fields, and it needs several; found parts={self.parts} and field "
                    f"{list(source.field)}"
                )
        if self.packing == "sentences" and self.parts not in {"line", "punctuation"}:
            raise ValueError(f"packing=sentences needs parts=line or parts=punctuation, found parts={self.parts}")
        if self.parts == "fields" and self.validation_by == "position":
            raise ValueError("validation_by=position would cut a document in two, which parts=fields cannot be")
        names = [source.name for source in self.mixture]
        if len(set(names)) < len(names):
            raise ValueError(f"mixture names must differ, found {', '.join(names)}")
        return self

    @property
    def sources(self) -> tuple[MixedSource, ...]:
        """The mixture; a single source is a mixture of one, named `text`."""
        own = {name: getattr(self, name) for name in SourceConfig.model_fields}
        return self.mixture or (MixedSource(name="text", **own),)


Normalization = Literal["identity", "nmt_nfkc", "nfkc", "nmt_nfkc_cf", "nfkc_cf"]


class _Trained(Config):
    vocab: Int = setting(8192, "pieces, special ones and extra_ids included", unit="tokens", ge=8)
    normalization: Normalization = setting("identity", "SentencePiece normalisation rule; T5 used nmt_nfkc")
    byte_fallback: bool = setting(True, "characters outside the vocabulary become bytes, never <unk>")
    symbols: Strings = setting((), "user symbols: strings that are always one token")
    controls: Strings = setting((), "special tokens that text cannot spell, such as [CLS] [SEP] [MASK]")
    extra_ids: Int = setting(0, "T5's sentinels <extra_id_0> …, at the end of the vocabulary", ge=0)
    sample_megabytes: float = setting(32.0, "text that the vocabulary is trained on", unit="MB", gt=0)


class Unigram(_Trained):
    """SentencePiece unigram language model (Kudo 2018)."""


class BPE(_Trained):
    """SentencePiece byte-pair encoding (Sennrich et al. 2016)."""


class Character(Config):
    """Every character of the text is a token."""

    symbols: Strings = setting((), "user symbols: strings that are always one token")
    controls: Strings = setting((), "special tokens that text cannot spell, such as [CLS] [SEP] [MASK]")
    extra_ids: Int = setting(0, "T5's sentinels, at the end of the vocabulary", ge=0)


class Bytes(Config):
    """UTF-8 bytes after pad, EOS and unk; the last hundred byte ids are the sentinels too (ByT5: Xue et al. 2022)."""


class TokenizerFile(Config):
    """A tokenizer that exists: SentencePiece `.model`, Hugging Face `tokenizer.json`, `vocab.json`, `vocab.txt`."""

    path: str = setting(..., "the file; merges.txt is looked for beside vocab.json")
    merges: str = setting("", "merges of a byte-level BPE, when they are not beside it as merges.txt")
    lowercase: bool = setting(True, "for a WordPiece vocab.txt: lower-case and strip accents first, as BERT uncased")
    extra_ids: Int = setting(0, "T5's sentinels to append to a SentencePiece model", ge=0)


TOKENIZERS: dict[str, type[Config]] = {
    "unigram": Unigram,
    "bpe": BPE,
    "character": Character,
    "bytes": Bytes,
    "file": TokenizerFile,
}


class Constant(Config):
    """The peak rate after the warm-up."""


class Cosine(Config):
    """Half a cosine from the peak to `final` of it at the last step (Loshchilov & Hutter 2017)."""

    final: float = setting(0.1, "last rate as a share of the peak", ge=0, le=1, source="GPT-3, Brown et al. 2020, B")


class Linear(Config):
    """A straight line from the peak to `final` of it at the last step (BERT)."""

    final: float = setting(0.0, "last rate as a share of the peak", ge=0, le=1)


class InverseSquareRoot(Config):
    """peak · sqrt(warmup / step) after the warm-up (T5: Raffel et al. 2020, §3.1.2)."""


class WarmupStableDecay(Config):
    """Constant, then a decay over the last share of steps (Hu et al. 2024, §4.2; Hägele et al. 2024, §3)."""

    decay: float = setting(0.2, "share of all steps in the decay", gt=0, le=1)
    shape: Literal["linear", "sqrt"] = setting(
        "linear", "1-x, or 1-sqrt(x), x from 0 to 1", source="Hägele et al. 2024"
    )
    final: float = setting(0.0, "last rate as a share of the peak", ge=0, le=1)


SCHEDULES: dict[str, type[Config]] = {
    "constant": Constant,
    "cosine": Cosine,
    "linear": Linear,
    "rsqrt": InverseSquareRoot,
    "wsd": WarmupStableDecay,
}


class AdamW(Config):
    """Adam with decoupled weight decay (Loshchilov & Hutter 2019)."""

    b1: float = setting(0.9, "decay of the first moment", ge=0, lt=1)
    b2: float = setting(0.95, "decay of the second moment", ge=0, lt=1, source="GPT-3, Brown et al. 2020, B")
    epsilon: float = setting(1e-8, "added to the root of the second moment", gt=0)


class Adafactor(Config):
    """Factored second moments, updates clipped and scaled by the parameter (Shazeer & Stern 2018), as T5."""

    decay: float = setting(0.8, "exponent of the second moment's decay, 1 - step^-decay", gt=0)
    scale_by_parameter: bool = setting(True, "multiply the rate by the parameter's root mean square")
    clip_update: float = setting(1.0, "largest root mean square of an update", gt=0)
    momentum: float | None = setting(None, "decay of a first moment; null keeps none", ge=0, lt=1)


class Lamb(Config):
    """Adam with a trust ratio per matrix, for large batches (You et al. 2020)."""

    b1: float = setting(0.9, "decay of the first moment", ge=0, lt=1)
    b2: float = setting(0.999, "decay of the second moment", ge=0, lt=1)
    epsilon: float = setting(1e-6, "added to the root of the second moment", gt=0)


class Muon(Config):
    """Momentum orthogonalised by Newton-Schulz for hidden matrices (Jordan et al. 2024); AdamW for the rest."""

    momentum: float = setting(0.95, "decay of the momentum", ge=0, lt=1)
    iterations: Int = setting(5, "Newton-Schulz iterations", ge=1)
    scale: float = setting(
        0.2, "update's root mean square, so that AdamW's rate serves both", gt=0, source="Liu et al. 2025, §2.2"
    )
    b1: float = setting(0.9, "AdamW's decay of the first moment", ge=0, lt=1)
    b2: float = setting(0.95, "AdamW's decay of the second moment", ge=0, lt=1)
    epsilon: float = setting(1e-8, "AdamW's epsilon", gt=0)


METHODS: dict[str, type[Config]] = {"adamw": AdamW, "adafactor": Adafactor, "lamb": Lamb, "muon": Muon}


class OptimizerConfig(Config):
    """How gradients become updates."""

    method: Annotated[AdamW | Adafactor | Lamb | Muon, OneOf(METHODS)] = setting(AdamW(), "the algorithm")
    learning_rate: float = setting(6e-4, "peak rate", gt=0)
    warmup_steps: Int = setting(0, "steps of linear warm-up from zero", unit="steps", ge=0)
    schedule: Annotated[Constant | Cosine | Linear | InverseSquareRoot | WarmupStableDecay, OneOf(SCHEDULES)] = setting(
        Cosine(), "the rate after the warm-up"
    )
    weight_decay: float = setting(0.1, "decoupled decay of matrices; norms and biases are not decayed", ge=0)
    decay_embeddings: bool = setting(True, "decay embeddings too, as GPT-2 and GPT-3 did")
    clip_norm: float | None = setting(1.0, "largest global norm of the gradient; null does not clip", gt=0)


class MeshConfig(Config):
    """How many devices each kind of parallelism takes; one axis may be -1: what is left."""

    data: Int = setting(-1, "copies of the model, each with its share of the batch", unit="devices", ge=-1)
    fsdp: Int = setting(1, "shards of parameters and optimizer state that also split the batch", unit="devices", ge=-1)
    tensor: Int = setting(1, "shards of heads, feed-forward and vocabulary", unit="devices", ge=-1)
    expert: Int = setting(1, "shards of the experts", unit="devices", ge=-1)
    context: Int = setting(1, "shards of the sequence", unit="devices", ge=-1)
    pipeline: Int = setting(1, "stages of layers", unit="devices", ge=-1)

    @model_validator(mode="after")
    def _check(self) -> "MeshConfig":
        sizes = {name: getattr(self, name) for name in type(self).model_fields}
        if 0 in sizes.values() or list(sizes.values()).count(-1) > 1:
            raise ValueError(f"axes are ≥ 1, and one at most is -1, found {sizes}")
        return self


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


GPUS = {"a100": "NVIDIA A100", "h100": "NVIDIA H100", "h200": "NVIDIA H200", "b200": "NVIDIA B200"}
"""Names of GPUs in a topology such as h100:64, and the beginnings of their names in JAX."""


class PlanConfig(Config):
    """The pod that a config is for: what `t5x-lite plan` compiles it for if not told another."""

    topology: str | None = setting(None, "chips and their shape, such as v5p:8x8x16, as libtpu names them")
    slices: Int = setting(1, "pods of that shape, joined by the data centre's network", ge=1)


class RunConfig(Config):
    """A whole run."""

    run_dir: str | None = setting(None, "where everything of this run lies; null takes runs/<name of the config file>")
    model: ModelConfig = setting(..., "the Transformer")
    data: DataConfig = setting(DataConfig(), "text and batches")
    tokenizer: Annotated[Unigram | BPE | Character | Bytes | TokenizerFile, OneOf(TOKENIZERS)] = setting(
        Unigram(), "text to tokens"
    )
    objective: Annotated[Objective | None, OneOf(OBJECTIVES, optional=True)] = setting(
        Causal(), "what the model learns to predict; null: weights from elsewhere that are not trained on"
    )
    tasks: Strings = setting((), "tasks to learn, and to evaluate, instead of running text: names of configs/tasks")
    task_form: Form = setting(
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

    @model_validator(mode="after")
    def _check(self) -> "RunConfig":
        train, positions = self.train, self.model.positions
        if isinstance(positions, Learned) and train.seq_len > positions.length:
            raise ValueError(
                f"train.seq_len {train.seq_len} is longer than model.positions.learned.length {positions.length}"
            )
        if train.batch_size % train.microbatches:
            raise ValueError(
                f"train.batch_size {train.batch_size} is not a multiple of train.microbatches {train.microbatches}"
            )
        if train.loss_chunks and train.seq_len % train.loss_chunks:
            raise ValueError(
                f"train.seq_len {train.seq_len} is not a multiple of train.loss_chunks {train.loss_chunks}"
            )
        if self.optimizer.warmup_steps > train.steps > 0:
            raise ValueError(
                f"optimizer.warmup_steps {self.optimizer.warmup_steps} is more than train.steps {train.steps}"
            )
        decay = self.optimizer.schedule.decay if isinstance(self.optimizer.schedule, WarmupStableDecay) else 0
        if self.optimizer.warmup_steps > (1 - decay) * train.steps and decay:
            raise ValueError(
                f"optimizer.warmup_steps {self.optimizer.warmup_steps} reach into the decay, the last {decay} of "
                f"train.steps {train.steps} (optimizer.schedule.wsd.decay)"
            )
        self.model.check_mesh(self.mesh.expert, self.mesh.tensor, self.mesh.pipeline)
        if self.model.mup is not None and not isinstance(self.optimizer.method, AdamW):
            raise ValueError("model.mup is a parametrisation for Adam: it needs optimizer.method=adamw")
        if self.adapt is not None:
            if self.branch is not None:
                raise ValueError("give `adapt` (another run's weights) or `branch` (all of its state), not both")
            self.adapt.method.check(self.model)
        if self.objective is not None:
            self._check_objective(self.objective)
        if self.tasks and not isinstance(self.objective, Supervised | TextToText):
            raise ValueError(f"tasks are learnt by objectives on records, not by {self.objective}")
        return self

    def _check_objective(self, objective: Objective) -> None:
        """Whether model, text and objective fit together."""
        if self.model.family not in objective.families:
            raise ValueError(
                f"objective {objective.name} trains {' or '.join(objective.families)}, "
                f"not a model of family {self.model.family}"
            )
        objective.check(self.model)
        if self.tasks:
            return
        parts, packing = self.data.parts, self.data.packing
        if objective.rows == "sentences" and packing != "sentences":
            raise ValueError(
                f"objective {objective.name} is made of sentences: it needs data.packing=sentences and "
                f"data.parts=line or punctuation, found packing={packing}, parts={parts}"
            )
        if objective.rows == "pairs" and (parts != "fields" or packing not in objective.packings):
            raise ValueError(
                f"objective {objective.name} is made of pairs of texts: it needs data.parts=fields, two names in "
                f"data.field and data.packing={' or '.join(objective.packings)}, found parts={parts}, "
                f"packing={packing}"
            )

    @property
    def method(self) -> Method | None:
        """How another run's weights become this one's; None for a run that begins from nothing."""
        return None if self.adapt is None else self.adapt.method

    @property
    def surgery(self) -> Callable[[Any], None] | None:
        """What that adds to the model."""
        return None if self.adapt is None else self.adapt.method.surgery

    def parts(self, tree: Any) -> Parts:
        """Which parameters train, of all that have a name in `tree`."""
        return Parts.of(self.method, self.model, list(named(tree)))

    @property
    def task(self) -> Objective:
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
        objective = settings_of(names, values.get("task_form", "auto"), family)
        if values.get("objective"):
            objective = schema.merge(_OfTask, {"objective": objective}, {"objective": values["objective"]})["objective"]
        own = schema.validate(_OfTask, schema.Sources({"objective": objective}, {})).objective
        values = {**values, "objective": objective}
        if isinstance(own, Supervised):
            plain = ModelConfig.model_construct(family=family)
            head = own.head(plain)
            model = {**model, "head": None if head is None else head.model_dump(mode="json")}
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
