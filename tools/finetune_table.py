"""Adapt a run to a task by several methods, with three seeds each, and print the table of docs/results/quality.md.

python tools/finetune_table.py RUN TRAIN.tsv DEV.tsv [--task sst2] [--columns sentence,label] [--to FOLDER]
"""

import argparse
import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import jax
import numpy as np
from markdown_table import print_markdown

from t5x_lite.parallel.mesh import make_mesh
from t5x_lite.run_dir import open_run
from t5x_lite.train.steps import make_steps

CONFIGS = Path(__file__).resolve().parents[1] / "configs" / "finetune"
LEARNING_RATES = {"scratch": 2e-4, "full": 2e-4, "head": 5e-3, "bitfit": 3e-3, "houlsby": 3e-3, "lora": 3e-3}
"""By method; `scratch` trains a model without pretraining."""
ADAPT_METHODS = {
    "head": "head",
    "bitfit": "bitfit",
    "houlsby": '{"houlsby": {"width": 16}}',
    "lora": r'{"lora": {"rank": 8, "targets": "(query|key|value|out|up|down)$"}}',
    "full": "full",
}
SEEDS = (0, 1, 2)
HEADER = ("method", "seeds 0, 1, 2", "mean", "spread", "parameters that train", "of all", "optimizer kB")


def main() -> None:
    """Train the runs that are missing, then print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path)
    parser.add_argument("train", type=Path)
    parser.add_argument("dev", type=Path)
    parser.add_argument("--task", default="sst2")
    parser.add_argument("--columns", default="sentence,label")
    parser.add_argument("--to", type=Path, default=Path("runs/finetune"))
    options = parser.parse_args()
    rows: list[tuple[str, ...]] = [HEADER]
    for method in LEARNING_RATES:
        run_dirs = []
        for seed in SEEDS:
            run_dir = options.to / f"{method}-{seed}"
            subprocess.run(train_command(options, method, seed, run_dir), check=True)
            run_dirs.append(run_dir)
        rows.append(table_row(method, run_dirs, f"eval/{options.task}/accuracy"))
    print_markdown(rows)


def train_command(options: argparse.Namespace, method: str, seed: int, run_dir: Path) -> list[str]:
    """Return the command that trains one run; a run that is complete ends at once."""
    if method == "scratch":
        initialisation = [
            str(CONFIGS / "quickstart_scratch.yaml"),
            f"tokenizer.file.path={options.run / 'tokenizer.model'}",
        ]
    else:
        initialisation = [
            str(CONFIGS / "quickstart.yaml"),
            f"adapt.from={options.run}",
            f"adapt.method={ADAPT_METHODS[method]}",
        ]
    return [
        sys.executable,
        "-m",
        "t5x_lite",
        "train",
        *initialisation,
        f"run_dir={run_dir}",
        f"tasks={options.task}",
        f"checkpoint.best_metric=eval/{options.task}/accuracy",
        f"data.files={options.train}",
        f"data.validation_files={options.dev}",
        f"train.seed={seed}",
        f"data.columns=[{options.columns}]",
        f"optimizer.learning_rate={LEARNING_RATES[method]}",
        # The pretraining had no next-sentence prediction, so [CLS] has learnt nothing.
        "objective.classify.pool=mean",
    ]


def table_row(method: str, run_dirs: Sequence[Path], metric: str) -> tuple[str, ...]:
    """Return the accuracy of each seed after the last step, and the size of what trains."""
    scores = [last_value(run_dir, metric) for run_dir in run_dirs]
    run = open_run(run_dirs[0])
    state = make_steps(run.config, run.spec, make_mesh(run.config.mesh)).state
    trained_parameters = sum(leaf.size for leaf in jax.tree.leaves(state.params))
    optimizer_bytes = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(state.opt_state))
    return (
        method,
        " ".join(f"{score:.1%}" for score in scores),
        f"{np.mean(scores):.1%}",
        f"{max(scores) - min(scores):.1%}",
        f"{trained_parameters:,}",
        f"{trained_parameters / run.spec.parameters:.2%}",
        f"{optimizer_bytes / 1e3:,.0f}",
    )


def last_value(run_dir: Path, metric: str) -> float:
    """Return a metric from the last line of a run's metrics."""
    lines = (run_dir / "metrics.jsonl").read_text().splitlines()
    return json.loads(lines[-1])[metric]


if __name__ == "__main__":
    main()
