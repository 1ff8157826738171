"""Adapt a run to a task by several methods, three seeds each, and print the table that README shows.

python tools/finetune_table.py RUN TRAIN.tsv DEV.tsv [--task sst2] [--columns sentence,label] [--to FOLDER]
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np

from t5x_lite.parallel.mesh import make_mesh
from t5x_lite.run_dir import open_run
from t5x_lite.train.setup import make_steps

CONFIGS = Path(__file__).resolve().parents[1] / "configs" / "finetune"
RATES = {"scratch": 2e-4, "full": 2e-4, "head": 5e-3, "bitfit": 3e-3, "houlsby": 3e-3, "lora": 3e-3}
METHODS = {
    "head": "head",
    "bitfit": "bitfit",
    "houlsby": '{"houlsby": {"width": 16}}',
    "lora": r'{"lora": {"rank": 8, "targets": "(query|key|value|out|up|down)$"}}',
    "full": "full",
}


def main() -> None:
    """Train what is missing, then print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path)
    parser.add_argument("train", type=Path)
    parser.add_argument("dev", type=Path)
    parser.add_argument("--task", default="sst2")
    parser.add_argument("--columns", default="sentence,label")
    parser.add_argument("--to", type=Path, default=Path("runs/finetune"))
    options = parser.parse_args()
    rows = []
    for method, rate in RATES.items():
        folders = [options.to / f"{method}-{seed}" for seed in range(3)]
        for seed, folder in enumerate(folders):
            begin = (
                [str(CONFIGS / "quickstart_scratch.yaml"), f"tokenizer.file.path={options.run / 'tokenizer.model'}"]
                if method == "scratch"
                else [str(CONFIGS / "quickstart.yaml"), f"adapt.from={options.run}", f"adapt.method={METHODS[method]}"]
            )
            command = [sys.executable, "-m", "t5x_lite", "train", *begin, f"run_dir={folder}", f"tasks={options.task}"]
            command += [f"data.files={options.train}", f"data.validation_files={options.dev}", f"train.seed={seed}"]
            command += [f"data.columns=[{options.columns}]", f"optimizer.learning_rate={rate}"]
            # [CLS] has learnt nothing without sentences that follow each other.
            command += ["objective.classify.pool=mean"]
            subprocess.run(command, check=True)
        rows.append(row(method, folders, f"eval/{options.task}/accuracy"))
    head = ("method", "seeds 0, 1, 2", "mean", "spread", "parameters that train", "of all", "optimizer kB")
    table = [head, *rows]
    widths = [max(len(line[n]) for line in table) for n in range(len(head))]
    for number, line in enumerate(table):
        print("| " + " | ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) + " |")
        if not number:
            print("| " + " | ".join("-" * width for width in widths) + " |")


def row(method: str, folders: list[Path], metric: str) -> tuple[str, ...]:
    """One line of the table: the accuracy after the last step of each seed, and what trains."""
    last = [json.loads((folder / "metrics.jsonl").read_text().splitlines()[-1])[metric] for folder in folders]
    run = open_run(folders[0])
    state = make_steps(run.config, run.spec, make_mesh(run.config.mesh)).state
    trained = sum(leaf.size for leaf in jax.tree.leaves(state.params))
    size = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(state.opt_state))
    share = trained / run.spec.parameters
    scores = " ".join(f"{score:.1%}" for score in last)
    spread = f"{max(last) - min(last):.1%}"
    return method, scores, f"{np.mean(last):.1%}", spread, f"{trained:,}", f"{share:.2%}", f"{size / 1e3:,.0f}"


if __name__ == "__main__":
    main()
