"""A training step against PyTorch's, the same shapes, float32, AdamW, clipping, no dropout, random tokens.

The peer is Transformers' model with fused AdamW, eager and by `torch.compile`; a ratio is to the faster of the two.
"""

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np

from benchmarks.timing import OURS, THEIRS, Case, Side, raced
from t5x_lite import config as configuration
from t5x_lite.config import RunConfig
from t5x_lite.models.transformer import model_spec
from t5x_lite.objectives.objective import TokenRow
from t5x_lite.parallel import mesh as meshes
from t5x_lite.planner.example import example_context
from t5x_lite.train.setup import make_steps

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


@dataclass(frozen=True)
class Shape:
    """One model in both libraries; `theirs` makes it from the features of a batch, with what it is given.

    `rows` is how many a batch has, and how many if quick.
    """

    config: str
    rows: tuple[int, int]
    overrides: tuple[str, ...]
    theirs: Callable[[RunConfig, dict[str, np.ndarray]], tuple[Any, dict[str, Any]]]


def gpt2(config: RunConfig, batch: dict[str, np.ndarray]) -> tuple[Any, dict[str, Any]]:
    """Transformers' GPT-2 of a config's sizes, and what it is given of a batch."""
    import transformers

    model, length = config.model, config.train.seq_len
    dropout = dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), 0)
    sizes = {"n_layer": model.layers, "n_embd": model.embed, "n_head": model.heads, "n_positions": length}
    special = {"bos_token_id": None, "eos_token_id": None}
    peer = transformers.GPT2LMHeadModel(transformers.GPT2Config(vocab_size=model.vocab, **sizes, **dropout, **special))
    return peer, {"input_ids": batch["tokens"], "labels": batch["tokens"], "use_cache": False}


def _t5(config: RunConfig, batch: dict[str, np.ndarray]) -> tuple[Any, dict[str, Any]]:
    import transformers

    peer = transformers.T5ForConditionalGeneration(transformers.T5Config(dropout_rate=0, decoder_start_token_id=0))
    return peer, {"input_ids": batch["tokens"], "labels": batch["targets"], "use_cache": False}


def _bert(config: RunConfig, batch: dict[str, np.ndarray]) -> tuple[Any, dict[str, Any]]:
    import transformers

    dropout = {"hidden_dropout_prob": 0, "attention_probs_dropout_prob": 0}
    peer = transformers.BertForMaskedLM(transformers.BertConfig(num_hidden_layers=config.model.layers, **dropout))
    labels = np.full_like(batch["tokens"], -100)
    rows, places = np.nonzero(batch["loss_weights"])
    labels[rows, batch["target_positions"][rows, places]] = batch["targets"][rows, places]
    return peer, {"input_ids": batch["tokens"], "labels": labels, "attention_mask": np.ones_like(labels)}


BERT = ("model.outputs=[tokens]", "objective.masked.sentences=none", "data.packing=documents", "data.parts=none")
"""Masked language modelling alone, as the peer has it."""
SHAPES = {
    "GPT-2 4×128": Shape(
        "gpt2/117m.yaml",
        (12, 12),
        (
            *("model.vocab=65", "train.seq_len=64", "model.positions.learned.length=64"),
            *("model.layers=4", "model.embed=128", "model.heads=4"),
        ),
        gpt2,
    ),
    "GPT-2 6×384": Shape(
        "gpt2/117m.yaml",
        (64, 8),
        (
            *("model.vocab=65", "train.seq_len=256", "model.positions.learned.length=256"),
            *("model.layers=6", "model.embed=384", "model.heads=6", "train.microbatches=4"),
        ),
        gpt2,
    ),
    "T5-small, short": Shape("t5/small.yaml", (8, 4), ("model.feedforward.mlp.dropout=0", "train.seq_len=128"), _t5),
    "T5-small, long": Shape("t5/small.yaml", (8, 2), ("model.feedforward.mlp.dropout=0", "train.seq_len=512"), _t5),
    "BERT 4×768": Shape(
        "bert/base.yaml",
        (8, 4),
        (*BERT, "model.layers=4", "train.seq_len=128"),
        _bert,
    ),
}


def table(rounds: int, quick: bool) -> list[dict[str, Any]]:
    """Tokens a second of ours and theirs, and the ratio to the faster of theirs; if `quick`, to theirs uncompiled."""
    lines = []
    for name in SHAPES:
        with ExitStack() as stack:
            sides = {"ours": stack.enter_context(Side(OURS, _ours, name, quick))}
            for way in ("eager",) if quick else ("eager", "compiled"):
                sides[way] = stack.enter_context(Side(THEIRS, _theirs, name, quick, way == "compiled"))
            seconds = raced({who: side.seconds for who, side in sides.items()}, rounds)
        config, batch = _example(name, quick)
        rows, length = batch["tokens"].shape
        targets = batch["targets"].shape[1] if config.model.family == "encoder_decoder" else 0
        tokens = rows * (length + targets)
        lines.append(
            {"step": name, "rows": f"{rows} × ({length} + {targets})" if targets else f"{rows} × {length}"}
            | {f"{who}, tokens/s": tokens / value for who, value in seconds.items()}
            | {"ours / best of theirs": min(value for who, value in seconds.items() if who != "ours") / seconds["ours"]}
        )
    return lines


def _example(name: str, quick: bool) -> tuple[RunConfig, dict[str, np.ndarray]]:
    shape = SHAPES[name]
    config = configuration.load(
        CONFIGS / shape.config, [*PLAIN, *shape.overrides, f"train.batch_size={shape.rows[quick]}"]
    )
    return config, example_batch(config)


def _ours(name: str, quick: bool) -> Case:
    return ours(*_example(name, quick))


def _theirs(name: str, quick: bool, compiled: bool) -> Case:
    config, batch = _example(name, quick)
    return theirs(*SHAPES[name].theirs(config, batch), config, compiled=compiled)


def example_batch(config: RunConfig) -> dict[str, np.ndarray]:
    """Features of rows of random tokens, each of one document."""
    task, rng = example_context(config.model, config.train.seq_len), np.random.default_rng(0)
    length = config.require_objective().row_length(task)

    def row() -> TokenRow:
        tokens = rng.integers(12, task.vocabulary.size // 2, length)
        return TokenRow(tokens.astype(np.int32), np.ones(length, np.int32), np.zeros(length, np.int32))

    rows = [config.require_objective().example(row(), task, rng) for _ in range(config.train.batch_size)]
    return {name: np.stack([features[name] for features in rows]) for name in rows[0]}


def ours(config: RunConfig, batch: dict[str, np.ndarray]) -> Case:
    """The jitted train step, its state given from step to step."""
    mesh, structure = meshes.make_mesh(config.mesh), model_spec(config.model)
    with jax.set_mesh(mesh):
        steps = make_steps(config, structure, mesh)
        state = steps.fresh()
        placed = {name: jax.device_put(value, meshes.batch_sharding(mesh)) for name, value in batch.items()}

    def step() -> Any:
        nonlocal state
        with jax.set_mesh(mesh):
            state, metrics = steps.train(state, placed)
        return metrics["loss"]

    return step


def theirs(peer: Any, inputs: dict[str, Any], config: RunConfig, *, compiled: bool) -> Case:
    """Transformers' model in PyTorch, where it is on a GPU, float32 weights in the type that ours computes in.

    Raises:
        ValueError: it has not the parameters that ours has.
    """
    import torch

    own, other = model_spec(config.model).parameters, sum(p.numel() for p in peer.parameters())
    if abs(own - other) > 0.01 * own:
        raise ValueError(f"the models differ: {own:,} parameters here, {other:,} there")
    device = "cuda" if torch.cuda.is_available() else "cpu"
    peer.to(device).train()
    optimizer = torch.optim.AdamW(peer.parameters(), lr=1e-3, betas=(0.9, 0.95), weight_decay=0.1, fused=True)
    function = torch.compile(peer) if compiled else peer
    given = {k: torch.from_numpy(v).long().to(device) if isinstance(v, np.ndarray) else v for k, v in inputs.items()}

    def step() -> float:
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast(device, torch.bfloat16, enabled=config.model.compute == "bfloat16"):
            loss = function(**given).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(peer.parameters(), 1.0)
        optimizer.step()
        return loss.item()

    return step
