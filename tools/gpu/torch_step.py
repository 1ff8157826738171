"""The PyTorch step of a shape of `benchmarks/mfu.py` on this accelerator, beside which `gpu/step.py` stands.

    python tools/gpu/torch_step.py NAME [--tiny]

Prints a JSON object for the eager step, and one for that by `torch.compile`.
"""

import argparse
import json
import time

import numpy as np
import torch
from benchmarks import mfu
from benchmarks.step import build_torch_step, random_batch
from gpu.shapes import load_config

WARM_UP_STEPS = 3
STEPS = 10
ROUNDS = 3


def measure_torch_step(name: str, *, is_tiny: bool, is_compiled: bool) -> dict[str, object]:
    """Return time and memory of the PyTorch step of a shape. The loss that a step returns waits for the device."""
    config = load_config(name, (), is_tiny)
    torch_model = mfu.SHAPES[name].torch_model
    assert torch_model is not None
    model, inputs = torch_model(config, random_batch(config))
    step = build_torch_step(model, inputs, config, is_compiled=is_compiled)
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    for _ in range(WARM_UP_STEPS):
        step()
    times = []
    for _ in range(ROUNDS):
        start = time.perf_counter()
        for _ in range(STEPS):
            step()
        times.append((time.perf_counter() - start) / STEPS)
    seconds = float(np.median(times))
    return {
        "shape": name,
        "torch": torch.__version__,
        "mode": "compiled" if is_compiled else "eager",
        "ms": round(1000 * seconds, 2),
        "tokens_per_second": round(config.train.batch_size * config.train.seq_len / seconds),
        "peak_gb": round(torch.cuda.max_memory_allocated() / 1e9, 2) if torch.cuda.is_available() else 0.0,
    }


def main() -> None:
    """Measure the step that the command line names."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", choices=[name for name, shape in mfu.SHAPES.items() if shape.torch_model])
    parser.add_argument("--tiny", action="store_true", help="a tiny model, which is not compiled")
    options = parser.parse_args()
    for is_compiled in (False,) if options.tiny else (False, True):
        figures = measure_torch_step(options.name, is_tiny=options.tiny, is_compiled=is_compiled)
        print(json.dumps(figures), flush=True)


if __name__ == "__main__":
    main()
