"""A training step compared with PyTorch's: the same shapes, float32, AdamW, clipping, no dropout, random tokens.

The PyTorch side is Transformers' model with fused AdamW, eager and by `torch.compile`; ratios are to the faster one.
"""

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import jax
import numpy as np
from jaxtyping import Array, Float, Shaped

from benchmarks.timing import OUR_ENVIRONMENT, TORCH_ENVIRONMENT, Case, CaseProcess, median_of_turns
from t5x_lite import config as configuration
from t5x_lite.config import RunConfig
from t5x_lite.models.spec import model_spec
from t5x_lite.objectives.objective import ExampleContext, TokenRow
from t5x_lite.parallel import mesh as meshes
from t5x_lite.planner.example import example_context
from t5x_lite.train.steps import make_steps

if TYPE_CHECKING:
    import torch

Batch: TypeAlias = dict[str, Shaped[np.ndarray, "batch ..."]]
TorchInputs: TypeAlias = dict[str, Any]
"""Keyword arguments of a Transformers model; NumPy arrays become tensors."""

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
PLAIN = (
    "model.compute=float32",
    "model.remat=none",
    "model.dropout=0",
    "model.unroll=0",
    "optimizer.method.adamw.b2=0.95",
    "optimizer.learning_rate=0.001",
    "optimizer.clip_norm=1.0",
    "train.z_loss=0",
)
MASKED_TOKENS_ONLY = (
    "model.outputs=[tokens]",
    "objective.masked.sentences=none",
    "data.packing=documents",
    "data.parts=none",
)
"""Masked language modelling without sentence prediction, as Transformers' `BertForMaskedLM` has it."""
IGNORED_LABEL = -100
"""Transformers computes no loss where a label has this value."""


def torch_gpt2(config: RunConfig, batch: Batch) -> "tuple[torch.nn.Module, TorchInputs]":
    """Return Transformers' GPT-2 of a config's sizes, and its inputs of a batch."""
    import transformers

    model = config.model
    assert model.vocab is not None
    assert model.max_length is not None
    settings = transformers.GPT2Config(
        vocab_size=model.vocab,
        n_layer=model.layers,
        n_embd=model.embed,
        n_head=model.heads,
        n_inner=model.mlp,
        n_positions=model.max_length,
        resid_pdrop=0,
        embd_pdrop=0,
        attn_pdrop=0,
        bos_token_id=None,
        eos_token_id=None,
    )
    inputs = {"input_ids": batch["tokens"], "labels": batch["tokens"], "use_cache": False}
    return transformers.GPT2LMHeadModel(settings), inputs


def torch_t5(config: RunConfig, batch: Batch) -> "tuple[torch.nn.Module, TorchInputs]":
    """Return Transformers' T5 of a config's sizes, and its inputs of a batch."""
    import transformers

    model = config.model
    assert model.vocab is not None
    settings = transformers.T5Config(
        vocab_size=model.vocab,
        num_layers=model.layers,
        num_decoder_layers=model.decoder_layers,
        d_model=model.embed,
        d_ff=model.mlp,
        num_heads=model.heads,
        d_kv=model.head_dim,
        dropout_rate=0,
    )
    settings.decoder_start_token_id = 0
    inputs = {"input_ids": batch["tokens"], "labels": batch["targets"], "use_cache": False}
    return transformers.T5ForConditionalGeneration(settings), inputs


def torch_bert(config: RunConfig, batch: Batch) -> "tuple[torch.nn.Module, TorchInputs]":
    """Return Transformers' BERT of a config's sizes, and its inputs of a batch."""
    import transformers

    model = config.model
    assert model.vocab is not None
    settings = transformers.BertConfig(
        vocab_size=model.vocab,
        num_hidden_layers=model.layers,
        hidden_size=model.embed,
        intermediate_size=model.mlp,
        num_attention_heads=model.heads,
        hidden_dropout_prob=0,
        attention_probs_dropout_prob=0,
    )
    labels = np.full_like(batch["tokens"], IGNORED_LABEL)
    rows, slots = np.nonzero(batch["loss_weights"])
    labels[rows, batch["target_positions"][rows, slots]] = batch["targets"][rows, slots]
    inputs = {"input_ids": batch["tokens"], "labels": labels, "attention_mask": np.ones_like(labels)}
    return transformers.BertForMaskedLM(settings), inputs


@dataclass(frozen=True)
class Shape:
    """One model in both libraries.

    Attributes:
        config: our config, a file in `configs`.
        batch_size: rows of a batch.
        quick_batch_size: rows of a batch with `--quick`.
        overrides: settings of the config.
        torch_model: returns Transformers' model, and its inputs of a batch.
    """

    config: str
    batch_size: int
    quick_batch_size: int
    overrides: tuple[str, ...]
    torch_model: "Callable[[RunConfig, Batch], tuple[torch.nn.Module, TorchInputs]]"


SHAPES = {
    "GPT-2 4×128": Shape(
        "gpt2/117m.yaml",
        12,
        12,
        (
            "model.vocab=65",
            "train.seq_len=64",
            "model.positions.learned.length=64",
            "model.layers=4",
            "model.embed=128",
            "model.heads=4",
        ),
        torch_gpt2,
    ),
    "GPT-2 6×384": Shape(
        "gpt2/117m.yaml",
        64,
        8,
        (
            "model.vocab=65",
            "train.seq_len=256",
            "model.positions.learned.length=256",
            "model.layers=6",
            "model.embed=384",
            "model.heads=6",
            "train.microbatches=4",
        ),
        torch_gpt2,
    ),
    "T5-small, short": Shape("t5/small.yaml", 8, 4, ("model.feedforward.mlp.dropout=0", "train.seq_len=128"), torch_t5),
    "T5-small, long": Shape("t5/small.yaml", 8, 2, ("model.feedforward.mlp.dropout=0", "train.seq_len=512"), torch_t5),
    "BERT 4×768": Shape(
        "bert/base.yaml", 8, 4, (*MASKED_TOKENS_ONLY, "model.layers=4", "train.seq_len=128"), torch_bert
    ),
}


def measure(rounds: int, quick: bool) -> list[dict[str, Any]]:
    """Measure tokens per second of both libraries, and the ratio to the faster PyTorch; `quick` does not compile it."""
    return [_measure_shape(name, rounds, quick) for name in SHAPES]


def _measure_shape(name: str, rounds: int, quick: bool) -> dict[str, Any]:
    torch_modes = ["eager"] if quick else ["eager", "compiled"]
    with ExitStack() as stack:
        processes = {"ours": stack.enter_context(CaseProcess(OUR_ENVIRONMENT, _build_our_case, name, quick))}
        for mode in torch_modes:
            process = CaseProcess(TORCH_ENVIRONMENT, _build_torch_case, name, quick, mode == "compiled")
            processes[mode] = stack.enter_context(process)
        seconds = median_of_turns({side: process.seconds for side, process in processes.items()}, rounds)
    config, batch = _load_example(name, quick)
    rows, length = batch["tokens"].shape
    targets = batch["targets"].shape[1] if config.model.family == "encoder_decoder" else 0
    tokens_per_step = rows * (length + targets)
    row_shape = f"({length} + {targets})" if targets else str(length)
    table_row: dict[str, Any] = {"step": name, "rows": f"{rows} × {row_shape}"}
    for side, value in seconds.items():
        table_row[f"{side}, tokens/s"] = tokens_per_step / value
    table_row["ours / best of theirs"] = min(seconds[mode] for mode in torch_modes) / seconds["ours"]
    return table_row


def _load_example(name: str, quick: bool) -> tuple[RunConfig, Batch]:
    shape = SHAPES[name]
    batch_size = shape.quick_batch_size if quick else shape.batch_size
    overrides = [*PLAIN, *shape.overrides, f"train.batch_size={batch_size}"]
    config = configuration.load(CONFIGS / shape.config, overrides)
    return config, random_batch(config)


def _build_our_case(name: str, quick: bool) -> Case:
    config, batch = _load_example(name, quick)
    return build_train_step(config, batch)


def _build_torch_case(name: str, quick: bool, is_compiled: bool) -> Case:
    config, batch = _load_example(name, quick)
    model, inputs = SHAPES[name].torch_model(config, batch)
    step = build_torch_step(model, inputs, config, is_compiled=is_compiled)
    return lambda: step().item()


def random_batch(config: RunConfig) -> Batch:
    """Return the features of rows of random tokens, each row of one document."""
    context = example_context(config.model, config.train.seq_len)
    rng = np.random.default_rng(0)
    examples = [_random_example(config, context, rng) for _ in range(config.train.batch_size)]
    return {name: np.stack([example[name] for example in examples]) for name in examples[0]}


def _random_example(config: RunConfig, context: ExampleContext, rng: np.random.Generator) -> Batch:
    objective = config.require_objective()
    length = objective.row_length(context)
    tokens = rng.integers(12, context.vocabulary.size // 2, length).astype(np.int32)
    row = TokenRow(tokens, np.ones(length, np.int32), np.zeros(length, np.int32))
    return dict(objective.example(row, context, rng))


def build_train_step(config: RunConfig, batch: Batch) -> Case:
    """Return the jitted train step on one batch; each call updates the state of the call before."""
    mesh = meshes.make_mesh(config.mesh)
    with jax.set_mesh(mesh):
        steps = make_steps(config, model_spec(config.model), mesh)
        state = steps.create_state()
        batch_on_devices = jax.device_put(batch, meshes.batch_sharding(mesh))

    def step() -> Float[Array, ""]:
        nonlocal state
        with jax.set_mesh(mesh):
            state, metrics = steps.train(state, batch_on_devices)
        return metrics["loss"]

    return step


def build_torch_step(
    model: "torch.nn.Module", inputs: TorchInputs, config: RunConfig, *, is_compiled: bool
) -> "Callable[[], torch.Tensor]":
    """Return the train step of a Transformers model, with float32 weights and activations of `model.compute`.

    It returns the loss, which the device may still compute.

    Raises:
        ValueError: the numbers of parameters of the two models differ.
    """
    import torch

    our_parameters = model_spec(config.model).parameters
    torch_parameters = sum(parameter.numel() for parameter in model.parameters())
    if abs(our_parameters - torch_parameters) > 0.01 * our_parameters:
        raise ValueError(f"the models differ: {our_parameters:,} parameters in ours, {torch_parameters:,} in PyTorch's")
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model.to(device).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, betas=(0.9, 0.95), weight_decay=0.1, fused=True)
    function = torch.compile(model) if is_compiled else model
    arguments = {}
    for name, value in inputs.items():
        arguments[name] = torch.from_numpy(value).long().to(device) if isinstance(value, np.ndarray) else value

    def step() -> torch.Tensor:
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast(device, torch.bfloat16, enabled=config.model.compute == "bfloat16"):
            loss = function(**arguments).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        return loss.detach()

    return step
