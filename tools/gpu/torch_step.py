"""The PyTorch step of a shape of `benchmarks/mfu.py` on this accelerator, beside which `gpu/step.py` stands.

    PYTHONPATH=tools:. python tools/gpu/torch_step.py NAME [--tiny]

Prints a JSON object for the eager step, and one for that by `torch.compile`.
"""

import argparse
import json
import time
from collections.abc import Callable

import numpy as np
import torch
from benchmarks import mfu
from benchmarks.step import build_torch_step, random_batch

from t5x_lite.config import RunConfig

WARM_UP_STEPS = 3
STEPS = 10
ROUNDS = 3


def seconds_per_step(step: Callable[[], torch.Tensor], steps: int) -> float:
    """Return the time of one of several steps; the last loss waits for all of them."""
    start = time.perf_counter()
    for _ in range(steps):
        loss = step()
    loss.item()
    return (time.perf_counter() - start) / steps


def measure_torch_step(step: Callable[[], torch.Tensor], config: RunConfig) -> dict[str, object]:
    """Return time and memory of a step."""
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    seconds_per_step(step, WARM_UP_STEPS)
    seconds = float(np.median([seconds_per_step(step, STEPS) for _ in range(ROUNDS)]))
    return {
        "torch": torch.__version__,
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
    config = mfu.load_shape(options.name, mfu.TINY if options.tiny else ())
    torch_model = mfu.SHAPES[options.name].torch_model
    assert torch_model is not None
    batch = random_batch(config)
    with torch.device("cuda" if torch.cuda.is_available() else "cpu"):
        model, inputs = torch_model(config, batch)
    for mode in ("eager",) if options.tiny else ("eager", "compiled"):
        step = build_torch_step(model, inputs, config, is_compiled=mode == "compiled")
        line = {"shape": options.name, "mode": mode}
        print(json.dumps(line | measure_torch_step(step, config)), flush=True)


if __name__ == "__main__":
    main()
