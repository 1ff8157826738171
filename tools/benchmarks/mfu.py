"""Model FLOPs utilisation of training steps on one GPU or TPU, bfloat16; GPT-2 beside PyTorch on the same card.

MFU as Chowdhery et al. 2022, appendix B, count it: 6 FLOPs a parameter and token, the whole square of attention, over
the data sheet's peak. `causal half` counts the half of a causal square that is computed.
"""

from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import jax

from benchmarks.step import BERT, CONFIGS, example_batch, gpt2, ours, theirs
from benchmarks.timing import Case, Side, raced
from t5x_lite import config as configuration
from t5x_lite.config import RunConfig
from t5x_lite.models.transformer import model_spec
from t5x_lite.planner.example import example_context
from t5x_lite.train.metrics import flops_per_row, peak_flops

PLAIN = ("model.compute=bfloat16", "model.dropout=0", "train.z_loss=0", "model.remat=dots")
DENSE = ("model.pattern=[{attention: dense}]", "train.seq_len=2048", "data.separate_documents=false")
"""GPT-3 attends over the borders of documents (Brown et al. 2020, appendix B)."""
EXPERTS = "model.feedforward={moe: {experts: 8, router: switch, dispatch: {capacity: {factor: 1.25}}}}"


@dataclass(frozen=True)
class Shape:
    """A config, the rows of its batch, and overrides; `beside` is the case whose FLOP rate it is compared with."""

    config: str
    rows: int
    overrides: tuple[str, ...] = ()
    beside: str | None = None


GPT2 = "GPT-2 124M"
SHAPES = {
    GPT2: Shape("gpt2/117m.yaml", 16, (*DENSE, "model.positions.learned.length=2048", "model.unroll=0")),
    "GPT-3 350M": Shape("gpt3/350m.yaml", 8, (*DENSE, "model.unroll=6")),
    "GPT-3 1.3B": Shape("gpt3/1.3b.yaml", 8, (*DENSE, "model.unroll=0")),
    "T5-large": Shape("t5/large.yaml", 64, ("train.seq_len=512", "model.unroll=4")),
    "BERT-large": Shape("bert/large.yaml", 32, (*BERT, "train.seq_len=512", "model.unroll=0")),
    "MoE 8 × 350M": Shape("gpt3/350m.yaml", 8, (*DENSE, EXPERTS, "model.unroll=6"), beside="GPT-3 350M"),
}


def table(rounds: int, quick: bool) -> list[dict[str, Any]]:
    """MFU of every shape, if `quick` of the first three, and the ratio to PyTorch or to the dense model."""
    if jax.default_backend() == "cpu":
        return [{"mfu": "no accelerator is here: the step table has what a CPU does"}]
    lines, rates = [], dict[str, float]()
    peak, _ = peak_flops(jax.devices()[0], None)
    for name in list(SHAPES)[: 3 if quick else None]:
        with ExitStack() as stack:
            sides = {"ours": stack.enter_context(Side({}, _ours, name))}
            if name == GPT2:
                sides |= {way: stack.enter_context(Side({}, _theirs, name, way)) for way in ("eager", "compiled")}
            seconds = raced({who: side.seconds for who, side in sides.items()}, rounds)
        own, beside = seconds.pop("ours"), SHAPES[name].beside
        tokens, half, full = counts(loaded(name))
        rates[name] = half / own
        lines.append(
            {
                "mfu": name,
                "ms": 1000 * own,
                "tokens/s": tokens / own,
                "MFU": f"{full / own / peak:.1%}",
                "causal half": f"{half / own / peak:.1%}",
                "of best PyTorch": min(seconds.values()) / own if seconds else None,
                "of the dense FLOP rate": rates[name] / rates[beside] if beside else None,
            }
        )
    return lines


def counts(config: RunConfig) -> tuple[int, float, float]:
    """Tokens of a step, and its FLOPs with causal attention half and full."""
    structure, lengths = (
        model_spec(config.model),
        config.require_objective().lengths(example_context(config.model, config.train.seq_len)),
    )
    half, full = (flops_per_row(config.model, structure, lengths, causal_half=half) for half in (True, False))
    rows = config.train.batch_size
    return rows * config.train.seq_len, rows * half, rows * full


def loaded(name: str) -> RunConfig:
    """The config of a shape."""
    shape = SHAPES[name]
    return configuration.load(CONFIGS / shape.config, [*PLAIN, *shape.overrides, f"train.batch_size={shape.rows}"])


def _ours(name: str) -> Case:
    config = loaded(name)
    return ours(config, example_batch(config))


def _theirs(name: str, way: str) -> Case:
    config = loaded(name)
    return theirs(*gpt2(config, example_batch(config)), config, compiled=way == "compiled")
