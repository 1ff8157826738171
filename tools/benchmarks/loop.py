"""The `train` command compared with its bare jitted step, and the time to its first step: nanoGPT's CPU shape."""

import json
import os
import string
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import mean, median
from typing import Any

import jax
import numpy as np

from benchmarks.step import CONFIGS, build_train_step, random_batch
from benchmarks.timing import Case
from t5x_lite import config as configuration

CONFIG = CONFIGS / "nanogpt/shakespeare_char_cpu.yaml"
STEPS = 500
STEPS_IF_QUICK = 200
RUNS = 3
RUNS_IF_QUICK = 2
UNCOUNTED_STEPS = 20
"""First steps of the command, which are slower."""


def measure(rounds: int, quick: bool) -> list[dict[str, Any]]:
    """Measure tokens per second of both and the seconds before the first step, with an empty and with a full cache."""
    steps = STEPS_IF_QUICK if quick else STEPS
    command_rates = []
    step_rates = []
    start_seconds = []
    compile_seconds = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        overrides = [
            f"data.files={_write_random_text(folder / 'text.txt')}",
            f"data.cache_dir={folder}/cache",
            f"train.steps={steps}",
            f"eval.every_steps={steps}",
            "eval.batches=1",
            f"checkpoint.every_steps={steps}",
        ]
        config = configuration.load(CONFIG, [*overrides, "model.vocab=65", "tokenizer=character"])
        tokens_per_step = config.train.batch_size * config.train.seq_len
        train_step = build_train_step(config, random_batch(config))
        for number in range(RUNS_IF_QUICK if quick else RUNS):
            # The first run compiles; the others read its programs from the cache.
            records = _train(folder / f"run{number}", folder / "compiled", overrides)
            counted = [record["seconds_per_step"] for record in records if record["step"] > UNCOUNTED_STEPS]
            command_rates.append(tokens_per_step / mean(counted))
            start_seconds.append(records[-1]["goodput/restart_seconds"])
            compile_seconds.append(records[-1]["goodput/compile_seconds"])
            step_rates.append(tokens_per_step * steps / _measure_steps(train_step, steps))
    command_rate = median(command_rates)
    step_rate = median(step_rates)
    return [
        {
            "loop": f"{steps} steps",
            "command, tokens/s": command_rate,
            "bare step, tokens/s": step_rate,
            "gap": f"{1 - command_rate / step_rate:.1%}",
            "start, s": median(start_seconds),
            "compilation, s": compile_seconds[0],
            "with a warm cache, s": compile_seconds[-1],
        }
    ]


def _write_random_text(path: Path) -> Path:
    letters = np.random.default_rng(0).choice(list(string.printable[:60]), 10**6)
    path.write_text("".join(letters), encoding="utf-8")
    return path


def _train(run_dir: Path, compilation_cache: Path, overrides: list[str]) -> list[dict[str, Any]]:
    """Run the command and return its records of metrics.jsonl."""
    command = [sys.executable, "-m", "t5x_lite", "train", str(CONFIG), f"run_dir={run_dir}", *overrides]
    environment = {**os.environ, "JAX_COMPILATION_CACHE_DIR": str(compilation_cache)}
    subprocess.run(command, check=True, capture_output=True, env=environment)
    return [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]


def _measure_steps(train_step: Case, steps: int) -> float:
    start = time.perf_counter()
    for _ in range(steps):
        loss = train_step()
    jax.block_until_ready(loss)
    return time.perf_counter() - start
