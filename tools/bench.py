"""What things cost, side by side: `python tools/bench.py attention moe decode`.

All cases of a table run in one process, in turn, round after round; a figure is the median of its rounds. Only ratios
are claims: a machine's seconds are its own.
"""

import argparse
import json
import platform
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from rich.console import Console
from rich.progress import track
from rich.table import Table

from t5x_lite.decode.sampling import Sampling
from t5x_lite.models.config import ModelConfig
from t5x_lite.models.feedforward import Perceptron
from t5x_lite.models.kernels import Places, Settings, View, attend
from t5x_lite.models.moe import MixtureOfExperts
from t5x_lite.models.patterns import AttentionKind, Dense, Local

WARM_UP = 2

Case = Callable[[], Any]


def medians(cases: Mapping[str, Case], rounds: int) -> dict[str, float]:
    """Seconds of each case, the median over rounds in which all take turns."""
    times: dict[str, list[float]] = {name: [] for name in cases}
    for case in cases.values():
        for _ in range(WARM_UP):
            jax.block_until_ready(case())
    for _ in track(range(rounds), "measuring", console=Console(stderr=True), transient=True):
        for name, case in cases.items():
            start = time.perf_counter()
            jax.block_until_ready(case())
            times[name].append(time.perf_counter() - start)
    return {name: statistics.median(found) for name, found in times.items()}


def both_passes(function: Callable[..., jax.Array], *arguments: Any) -> Case:
    """Forward and backward, with respect to all arguments."""
    run = jax.jit(jax.grad(lambda given: function(*given).astype(jnp.float32).sum()))
    return lambda: run(arguments)


def attention(rounds: int, dtype: Any, scale: int) -> list[dict[str, Any]]:
    """A band of 256 and the whole square, causal, by length; 4 heads of 64."""
    window, rng = 256, np.random.default_rng(0)

    def case(pattern: AttentionKind, length: int) -> Case:
        q, k, v = (jnp.asarray(rng.normal(size=(scale, length, 4, 64)), dtype) for _ in range(3))
        places = Places(jnp.arange(length), jnp.ones((scale, length), jnp.int32))
        view = View(places, places, causal=True)
        return both_passes(lambda q, k, v: attend(q, k, v, pattern, view, Settings()), q, k, v)

    lengths = (2048, 4096, 8192, 16384, 32768)
    bands = medians({str(length): case(Local(window=window), length) for length in lengths}, rounds)
    squares = medians({str(length): case(Dense(), length) for length in (2048, 4096, 8192)}, max(rounds // 2, 3))
    lines, before = [], None
    for length, seconds in bands.items():
        square = squares.get(length)
        lines.append(
            {
                "length": int(length),
                f"band of {window}, ms": 1e3 * seconds,
                "of half the length": None if before is None else seconds / before,
                "square, ms": None if square is None else 1e3 * square,
                "square / band": None if square is None else square / seconds,
            }
        )
        before = seconds
    return lines


def moe(rounds: int, dtype: Any, scale: int) -> list[dict[str, Any]]:
    """A layer of 8 experts against a dense layer of the same active size: width 256, inner width 1024, 4096 tokens."""
    sizes = {"layers": 2, "embed": 256, "heads": 4, "vocab": 8, "compute": str(jnp.dtype(dtype))}
    x = jnp.asarray(np.random.default_rng(0).normal(size=(8 * scale, 512, 256)), dtype)
    real = jnp.ones(x.shape[:2], bool)
    # A training key without jitter or dropout: capacity is the training one, the arithmetic is the same every time.
    kinds: dict[str, Any] = {
        "dense": None,
        "top-1, capacity 1.0": {"router": {"switch": {"jitter": 0.0}}, "dispatch": {"capacity": {"factor": 1.0}}},
        "top-1, capacity 1.25": {"router": {"switch": {"jitter": 0.0}}},
        "top-1, dropless": {"router": {"switch": {"jitter": 0.0}}, "dispatch": "dropless"},
        "top-1, ragged_dot": {
            "router": {"switch": {"jitter": 0.0}},
            "dispatch": {"dropless": {"kernel": "ragged"}},
        },
    }
    cases = {}
    for name, settings in kinds.items():
        feedforward = {"mlp": {}} if settings is None else {"moe": {"experts": 8, **settings}}
        config = ModelConfig.model_validate({**sizes, "feedforward": feedforward})
        rngs = nnx.Rngs(params=0)
        layer: Any
        if settings is None:
            layer = Perceptron(config, config.dense_feedforward, config.width_of_mlp, rngs=rngs)
        else:
            layer = MixtureOfExperts(config, config.mixtures[0], rngs=rngs)
        graph, params = nnx.split(layer)

        def run(params: Any, x: jax.Array, graph: Any = graph, dense: bool = settings is None) -> jax.Array:
            module = nnx.merge(graph, params)
            return module(x, None) if dense else module(x, real, jax.random.key(0))

        cases[name] = both_passes(run, params, x)
    seconds = medians(cases, rounds)
    return [
        {"layer": name, "ms": 1e3 * value, "of the dense layer": value / seconds["dense"]}
        for name, value in seconds.items()
    ]


def decode(rounds: int, dtype: Any, scale: int) -> list[dict[str, Any]]:
    """Greedy generation of GPT-2's and T5-small's shapes with random weights, against Transformers' `generate`.

    Prefill is what a first token takes after prompts of 256 tokens; decode what each of 32 more takes. Both read the
    same prompts of equal length, in the same dtype, with a cache, and end nowhere.
    """
    import torch
    import transformers

    from t5x_lite.api import load
    from t5x_lite.convert.huggingface import import_hf

    batch, length, count = 4 * scale, 256, 32
    device, floats = ("cpu", torch.float32) if scale == 1 else ("cuda", torch.bfloat16)
    shapes = {
        "GPT-2": (transformers.GPT2LMHeadModel, transformers.GPT2Config()),
        "T5-small": (transformers.T5ForConditionalGeneration, transformers.T5Config(decoder_start_token_id=0)),
    }
    lines = []
    for name, (kind, sizes) in shapes.items():
        theirs = kind(sizes).eval()
        with tempfile.TemporaryDirectory() as folder:
            theirs.save_pretrained(f"{folder}/theirs")
            import_hf(Path(folder, "theirs"), Path(folder, "run"), lambda *_: None)
            generator = load(f"{folder}/run", overrides=[f"model.compute={jnp.dtype(dtype)}"]).generator
        theirs.to(device, floats).generation_config.eos_token_id = None
        prompts = np.random.default_rng(0).integers(5, 30000, (batch, length), np.int32)

        def own(tokens: int, prompts: np.ndarray = prompts, generator: Any = generator) -> Any:
            *_, made = generator.tokens(list(prompts), Sampling(tokens, temperature=0))
            return made

        def other(tokens: int, prompts: np.ndarray = prompts, theirs: Any = theirs) -> Any:
            ids = torch.tensor(prompts, dtype=torch.long, device=device)
            given = {"attention_mask": torch.ones_like(ids), "pad_token_id": 0, "do_sample": False}
            return theirs.generate(ids, max_new_tokens=tokens, **given).cpu().numpy()[:, -tokens:]

        if scale == 1:
            np.testing.assert_array_equal(own(count), other(count))
        makers = {"t5x_lite": own, "Transformers": other}
        cases = {f"{who} {n}": partial(make, n) for n in (1, 1 + count) for who, make in makers.items()}
        seconds = medians(cases, rounds)
        for who in makers:
            first, all_ = seconds[f"{who} 1"], seconds[f"{who} {1 + count}"]
            prefill, steps = batch * length / first, batch * count / (all_ - first)
            lines.append({"shape": name, "by": who, "prefill, tokens/s": prefill, "decode, tokens/s": steps})
    return lines


TABLES: dict[str, Callable[[int, Any, int], list[dict[str, Any]]]] = {
    "attention": attention,
    "moe": moe,
    "decode": decode,
}


def show(name: str, lines: Sequence[Mapping[str, Any]]) -> None:
    """One table."""
    table = Table(title=name, title_justify="left")
    for column in lines[0]:
        table.add_column(column, justify="right")
    for line in lines:
        table.add_row(*("" if v is None else f"{v:.2f}" if isinstance(v, float) else str(v) for v in line.values()))
    Console().print(table)


def main() -> None:
    """Measure what is asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tables", nargs="+", choices=TABLES)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--json", action="store_true", help="one JSON object instead of tables")
    given = parser.parse_args()
    device = jax.devices()[0]
    on_cpu = device.platform == "cpu"
    found: dict[str, Any] = {
        "device": device.device_kind if not on_cpu else f"{platform.machine()}, {jax.device_count()} device",
        "jax": jax.__version__,
    }
    for name in given.tables:
        found[name] = TABLES[name](given.rounds, jnp.float32 if on_cpu else jnp.bfloat16, 1 if on_cpu else 8)
        if not given.json:
            what = "" if name == "decode" else ", forward and backward"
            show(f"{name} on {found['device']}, jax {found['jax']}{what}", found[name])
    if given.json:
        print(json.dumps(found))


if __name__ == "__main__":
    main()
