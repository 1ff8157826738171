"""Model FLOPs utilisation (MFU) of training steps on one GPU or TPU, bfloat16; also in PyTorch on the same card.

MFU is counted as in Chowdhery et al. 2022, appendix B: 6 FLOPs per parameter and token, all of the attention matrix,
over the peak of the data sheet. `causal half` counts the half of a causal attention matrix that is computed.
"""

import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import jax

from benchmarks.step import (
    CONFIGS,
    MASKED_TOKENS_ONLY,
    Batch,
    TorchInputs,
    build_torch_step,
    build_train_step,
    random_batch,
    torch_bert,
    torch_gpt2,
    torch_t5,
)
from benchmarks.timing import Case, CaseProcess, median_of_turns
from t5x_lite import config as configuration
from t5x_lite.config import RunConfig
from t5x_lite.errors import one_line
from t5x_lite.models.spec import model_spec
from t5x_lite.planner.example import example_context
from t5x_lite.train.device_speed import peak_flops
from t5x_lite.train.flops import flops_per_example

if TYPE_CHECKING:
    import torch

PLAIN = ("model.compute=bfloat16", "model.dropout=0", "train.z_loss=0", "model.remat=dots")
DENSE = ("model.pattern=[{attention: dense}]", "train.seq_len=2048", "data.separate_documents=false")
"""GPT-3 attends across the borders of documents (Brown et al. 2020, appendix B)."""
EXPERTS = "model.feedforward={moe: {experts: 8, router: switch, dispatch: {capacity: {factor: 1.25}}}}"


@dataclass(frozen=True)
class Shape:
    """A model and its batch.

    Attributes:
        config: a file in `configs`.
        batch_size: rows of a batch.
        overrides: settings of the config.
        dense_shape: the shape of the dense model whose FLOP rate a model with experts is compared with.
        torch_model: returns Transformers' model of these sizes, and its inputs of a batch.
    """

    config: str
    batch_size: int
    overrides: tuple[str, ...] = ()
    dense_shape: str | None = None
    torch_model: "Callable[[RunConfig, Batch], tuple[torch.nn.Module, TorchInputs]] | None" = None


SHAPES = {
    "GPT-2 124M": Shape(
        "gpt2/117m.yaml",
        16,
        (*DENSE, "model.positions.learned.length=2048", "model.unroll=0"),
        torch_model=torch_gpt2,
    ),
    "GPT-3 350M": Shape("gpt3/350m.yaml", 8, (*DENSE, "model.unroll=0"), torch_model=torch_gpt2),
    "GPT-3 1.3B": Shape("gpt3/1.3b.yaml", 8, (*DENSE, "model.unroll=0"), torch_model=torch_gpt2),
    "T5-large": Shape(
        "t5/large.yaml",
        64,
        ("train.seq_len=512", "model.unroll=0", "model.feedforward.mlp.dropout=0"),
        torch_model=torch_t5,
    ),
    "BERT-large": Shape(
        "bert/large.yaml",
        32,
        (*MASKED_TOKENS_ONLY, "train.seq_len=512", "model.unroll=0"),
        torch_model=torch_bert,
    ),
    "MoE 8 × 350M": Shape("gpt3/350m.yaml", 8, (*DENSE, EXPERTS, "model.unroll=0"), dense_shape="GPT-3 350M"),
}
SHAPES_IF_QUICK = 3
TINY = (
    "model.layers=2",
    "model.embed=32",
    "model.heads=2",
    "model.head_dim=16",
    "model.mlp=64",
    "train.seq_len=64",
    "model.vocab=512",
    "train.batch_size=2",
)
"""A model that a CPU trains in seconds."""


@dataclass(frozen=True)
class StepCosts:
    """Tokens of one training step, and its FLOPs with causal attention counted half and in full."""

    tokens: int
    flops_causal_half: float
    flops_causal_full: float


def measure(rounds: int, quick: bool) -> list[dict[str, Any]]:
    """Measure the MFU of every shape, and the ratio to PyTorch or to the dense model; the first three if `quick`."""
    # This process computes nothing, and leaves the memory to those that do.
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    if jax.default_backend() == "cpu":
        return [{"mfu": "no accelerator is here: the table `step` measures CPUs"}]
    names = list(SHAPES)[:SHAPES_IF_QUICK] if quick else list(SHAPES)
    peak, _ = peak_flops(jax.devices()[0], None)
    flop_rates: dict[str, float] = {}
    rows = []
    for name in names:
        seconds = _measure_seconds(name, rounds)
        our_seconds = seconds.pop("ours")
        costs = count_costs(load_shape(name))
        flop_rates[name] = costs.flops_causal_half / our_seconds
        row = {
            "mfu": name,
            "ms": 1000 * our_seconds,
            "tokens/s": costs.tokens / our_seconds,
            "MFU": f"{costs.flops_causal_full / our_seconds / peak:.1%}",
            "causal half": f"{costs.flops_causal_half / our_seconds / peak:.1%}",
            "of best PyTorch": None,
            "of the dense FLOP rate": None,
        }
        if seconds:
            row["of best PyTorch"] = min(seconds.values()) / our_seconds
        dense_shape = SHAPES[name].dense_shape
        if dense_shape is not None:
            row["of the dense FLOP rate"] = flop_rates[name] / flop_rates[dense_shape]
        rows.append(row)
    return rows


def _measure_seconds(name: str, rounds: int) -> dict[str, float]:
    """Return the median time of our step, and of PyTorch's steps where Transformers has the model."""
    builders: dict[str, Callable[..., Case]] = {"ours": partial(_build_our_case, name)}
    if SHAPES[name].torch_model is not None:
        builders["eager"] = partial(_build_torch_case, name, is_compiled=False)
        builders["compiled"] = partial(_build_torch_case, name, is_compiled=True)
    seconds: dict[str, float] = {}
    for side, build in builders.items():
        # One after the other: the memory of a device holds one of the larger models, not three.
        try:
            with CaseProcess({}, build) as process:
                seconds |= median_of_turns({side: process.seconds}, rounds)
        except RuntimeError as error:
            if side == "ours":
                raise
            print(f"{name}, PyTorch, {side}: {one_line(error)}", file=sys.stderr)  # such as too little memory
    return seconds


def count_costs(config: RunConfig) -> StepCosts:
    """Count tokens and FLOPs of one training step."""
    spec = model_spec(config.model)
    lengths = config.require_objective().example_lengths(example_context(config.model, config.train.seq_len))
    rows = config.train.batch_size
    return StepCosts(
        tokens=rows * config.train.seq_len,
        flops_causal_half=rows * flops_per_example(config.model, spec, lengths),
        flops_causal_full=rows * flops_per_example(config.model, spec, lengths, causal_half=False),
    )


def load_shape(name: str, overrides: Sequence[str] = ()) -> RunConfig:
    """Load the config of a shape, such as a tiny model of its kind with the overrides `TINY`."""
    shape = SHAPES[name]
    settings = [*PLAIN, *shape.overrides, f"train.batch_size={shape.batch_size}"]
    return configuration.load(CONFIGS / shape.config, [*settings, *overrides])


def _build_our_case(name: str) -> Case:
    config = load_shape(name)
    return build_train_step(config, random_batch(config))


def _build_torch_case(name: str, *, is_compiled: bool) -> Case:
    torch_model = SHAPES[name].torch_model
    assert torch_model is not None
    config = load_shape(name)
    model, inputs = torch_model(config, random_batch(config))
    step = build_torch_step(model, inputs, config, is_compiled=is_compiled)
    return lambda: step().item()
