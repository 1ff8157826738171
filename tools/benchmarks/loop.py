"""The whole `train` command against its bare jitted step, and the time to its first step: nanoGPT's CPU shape."""

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

from benchmarks.step import CONFIGS, example_batch, ours
from t5x_lite import config as configuration

SETTLED = 20
"""Steps of the command that are not counted: its first."""


def table(rounds: int, quick: bool) -> list[dict[str, Any]]:
    """Tokens a second of both, the gap, seconds to the first step beside compilation, which a warm cache shortens."""
    path, steps = CONFIGS / "nanogpt/shakespeare_char_cpu.yaml", 200 if quick else 500
    command_rate, bare_rate, starts = [], [], []
    with tempfile.TemporaryDirectory() as folder:
        text = Path(folder, "text.txt")
        letters = np.random.default_rng(0).choice(list(string.printable[:60]), 10**6)
        text.write_text("".join(letters), encoding="utf-8")
        overrides = [f"data.files={text}", f"data.cache_dir={folder}/cache", f"train.steps={steps}"]
        overrides += [f"eval.every_steps={steps}", "eval.batches=1", f"checkpoint.every_steps={steps}"]
        config = configuration.load(path, [*overrides, "model.vocab=65", "tokenizer=character"])
        bare, tokens = ours(config, example_batch(config)), config.train.batch_size * config.train.seq_len
        for number in range(2 if quick else 3):
            run = Path(folder, f"run{number}")
            command = [sys.executable, "-m", "t5x_lite", "train", str(path), f"run_dir={run}", *overrides]
            # No compiled program of an earlier start in the first, that of the first in the others.
            environment = {**os.environ, "JAX_COMPILATION_CACHE_DIR": f"{folder}/compiled"}
            subprocess.run(command, check=True, capture_output=True, env=environment)
            records = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
            settled = [record["seconds_per_step"] for record in records if record["step"] > SETTLED]
            command_rate.append(tokens / mean(settled))
            spent = records[-1]
            starts.append((spent["goodput/restart_seconds"], spent["goodput/compile_seconds"]))
            begun = time.perf_counter()
            for _ in range(steps):
                loss = bare()
            jax.block_until_ready(loss)
            bare_rate.append(steps * tokens / (time.perf_counter() - begun))
    own, other = median(command_rate), median(bare_rate)
    return [
        {
            "loop": f"{steps} steps",
            "command, tokens/s": own,
            "bare step, tokens/s": other,
            "gap": f"{1 - own / other:.1%}",
            "start, s": median(start for start, _ in starts),
            "compilation, s": starts[0][1],
            "with a warm cache, s": starts[-1][1],
        }
    ]
