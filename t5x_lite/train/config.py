"""Settings of training: the loop, the optimizer and the learning-rate schedule. Nothing here imports JAX."""

from typing import Annotated, Literal

from t5x_lite.schema import Config, Int, OneOf, setting


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


class TrainConfig(Config):
    """The training loop."""

    steps: Int = setting(..., "optimizer updates", unit="steps", ge=1)
    batch_size: Int = setting(..., "sequences per update, over all devices", unit="sequences", ge=1)
    seq_len: Int = setting(..., "length of a sequence", unit="tokens", ge=1)
    seed: Int = setting(0, "seed of initialisation, data order and dropout", ge=0)
    microbatches: Int = setting(1, "parts of the batch whose gradients are summed before the update", ge=1)
    z_loss: float = setting(0.0, "weight of log(Z)^2", ge=0, source="PaLM, Chowdhery et al. 2022, §5; T5X used 1e-4")
    label_smoothing: float = setting(0.0, "probability spread evenly over the vocabulary", ge=0, lt=1)
    loss_chunks: Int = setting(
        0,
        "parts of the sequence whose logits are computed one after the other; 0 chooses as many as keep the logits "
        "under 64 MiB per device (8 GiB on a GPU)",
        ge=0,
    )
    log_every_steps: Int = setting(1, "steps between lines of metrics.jsonl", unit="steps", ge=1)
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
        None, "peak of one device for MFU; null looks it up or measures it", unit="FLOP/s"
    )
    health_every_steps: Int = setting(
        100, "steps between comparisons of the replicas' checksums and of the processes' speeds", unit="steps", ge=1
    )
    hang_minutes: float | None = setting(
        30,
        "time without a step after which the job prints the stack of every thread and ends; null waits forever",
        unit="minutes",
        gt=0,
    )
    profile: Int = setting(
        0, "steps to record in a JAX profile, after the first ten; 0 records none", unit="steps", ge=0
    )
    allow_changed_config: bool = setting(False, "resume a run directory whose config differs")
    sample_prompt: str = setting("", "text to continue and print at the end of training; empty prints none")
