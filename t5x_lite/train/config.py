"""Settings of training: the loop, the optimizer and the learning-rate schedule. Nothing here imports JAX."""

from collections.abc import Iterator
from typing import Annotated, Literal

from pydantic import Strict

from t5x_lite.schema import Config, Int, OneOf, setting
from t5x_lite.train.optimizers import OPTIMIZERS, AdamW, OptimizerMethod
from t5x_lite.train.schedules import SCHEDULES, Cosine, Schedule
from t5x_lite.train.trackers import TRACKERS, TensorBoard, Tracker

STEPS_BEFORE_PROFILE = 10
"""Steps before a profile begins, so that it shows the steady state."""


class OptimizerConfig(Config):
    """Settings of the optimizer: its algorithm, learning rate and weight decay."""

    method: Annotated[OptimizerMethod, OneOf(OPTIMIZERS)] = setting(AdamW(), "the algorithm")
    learning_rate: float = setting(6e-4, "peak rate", gt=0)
    warmup_steps: Int = setting(0, "steps of linear warm-up from zero", unit="steps", ge=0)
    schedule: Annotated[Schedule, OneOf(SCHEDULES)] = setting(Cosine(), "the rate after the warm-up")
    weight_decay: float = setting(0.1, "decoupled decay of matrices; norms and biases are not decayed", ge=0)
    decay_embeddings: bool = setting(True, "decay embeddings too, as GPT-2 and GPT-3 did")
    moment_dtype: Literal["float32", "bfloat16"] = setting(
        "float32",
        "type in which moments are stored; bfloat16 halves their memory, and is rounded stochastically",
        source="Gupta et al. 2015, §3",
    )
    master_weights: bool = setting(
        False, "keep a float32 copy of parameters in bfloat16 (train.param_dtype), instead of stochastic rounding"
    )
    clip_norm: float | None = setting(1.0, "largest global norm of the gradient; null does not clip", gt=0)


class TrainConfig(Config):
    """The training loop."""

    steps: Int = setting(..., "optimizer updates", unit="steps", ge=1)
    batch_size: Int = setting(..., "sequences per update, over all devices", unit="sequences", ge=1)
    seq_len: Int = setting(..., "length of a sequence", unit="tokens", ge=1)
    seed: Int = setting(0, "seed of initialisation, data order and dropout", ge=0)
    microbatches: Int = setting(1, "parts of the batch whose gradients are summed before the update", ge=1)
    gradient_dtype: Literal["float32", "bfloat16"] = setting(
        "float32", "type of the sum of the gradients of microbatches"
    )
    reduction_dtype: Literal["compute", "float32"] = setting(
        "compute",
        "type in which devices sum the gradients of matrices, but those of experts and recurrences: that of the "
        "activations (model.compute), or float32 with twice the bytes of bfloat16 on the network",
    )
    data_reduction: Literal["microbatch", "step"] = setting(
        "microbatch",
        "when the replicas along mesh.data sum their gradients: after each microbatch, or once in a step, after "
        "microbatches that each replica has of its own",
    )
    param_dtype: Literal["float32", "bfloat16"] = setting(
        "float32",
        "type in which matrices and embeddings that train are stored; updates of those in bfloat16 are rounded "
        "stochastically, or go to a float32 copy (optimizer.master_weights)",
        source="Gupta et al. 2015, §3",
    )
    z_loss: float = setting(0.0, "weight of log(Z)^2", ge=0, source="PaLM, Chowdhery et al. 2022, §5; T5X used 1e-4")
    label_smoothing: float = setting(0.0, "probability spread evenly over the vocabulary", ge=0, lt=1)
    quantization: Literal["int8", "fp8"] | None = setting(
        None,
        "type of the matrix products of attention and feed-forward layers in training, forward and backward; null is "
        "`model.compute`. Needs the extra `quantization`",
        source="fp8: Micikevicius et al. 2022, §3: E4M3 for values, E5M2 for gradients",
    )
    loss_chunks: Int = setting(
        0,
        "parts of the sequence whose logits are computed one after the other; 0 chooses as many as keep the logits "
        "under 64 MiB per device (8 GiB on a GPU)",
        ge=0,
    )
    log_every_steps: Int = setting(1, "steps between lines of metrics.jsonl", unit="steps", ge=1)
    trackers: Annotated[tuple[Annotated[Tracker, OneOf(TRACKERS)], ...], Strict(False)] = setting(
        (TensorBoard(),),
        "what shows the metrics beside metrics.jsonl, such as [tensorboard, {wandb: {project: study}}]; a tracker that "
        "fails is reported once and never stops training",
    )
    nonfinite_limit: Int = setting(
        10, "consecutive updates skipped because the loss or gradient is not finite that end the run", ge=1
    )
    spike_factor: float | None = setting(
        None,
        "a loss above this factor of its running mean restores the last checkpoint and skips the batches since; null "
        "never does",
        gt=1,
        source="PaLM, Chowdhery et al. 2022, §5.1",
    )
    spike_limit: Int = setting(3, "loss spikes that a run recovers from; one more ends it", ge=1)
    peak_flops: float | None = setting(
        None, "peak of one device for MFU; null looks it up or measures it", unit="FLOP/s", gt=0
    )
    compiler_options: dict[str, bool | int | float | str] | None = setting(
        None,
        "options of XLA's compiler for the train step, such as {xla_tpu_scoped_vmem_limit_kib: 65536}; null has those "
        "that overlap collectives with computation on a TPU, and none elsewhere; {} has none",
    )
    health_every_steps: Int = setting(
        100, "steps between comparisons of the replicas' checksums and of the processes' speeds", unit="steps", ge=1
    )
    hang_minutes: float | None = setting(
        30,
        "time without a step after which the job prints the stack of every thread and ends; null waits forever",
        unit="minutes",
        gt=0,
        le=1e6,
    )
    profile: Int = setting(
        0,
        f"steps to record in a JAX profile, after the first {STEPS_BEFORE_PROFILE}; 0 records none",
        unit="steps",
        ge=0,
    )
    allow_changed_config: bool = setting(False, "resume a run directory whose config differs")
    sample_prompt: str = setting("", "text to continue and print at the end of training; empty prints none")

    def problems(self) -> Iterator[str]:
        """Yield an error for a tracker named twice, gradients in 8 bits and float32 at once, or no step to profile."""
        if self.profile and self.steps <= STEPS_BEFORE_PROFILE:
            yield f"train.profile begins after step {STEPS_BEFORE_PROFILE}, and train.steps is {self.steps}"
        if self.quantization is not None and self.reduction_dtype == "float32":
            yield "train.reduction_dtype=float32 is for products that are not quantized (train.quantization)"
        kinds = [type(tracker) for tracker in self.trackers]
        if len(set(kinds)) < len(kinds):
            yield "train.trackers names a tracker twice"
