"""Adapt a small decoder to SST-2 by every method and seed, and print what each learns and forgets.

The table is that of docs/results/quality.md. Runs that are complete are not trained again.

python tools/forgetting_table.py BASE TRAIN.tsv DEV.tsv [--methods full,lora] [--seeds 0,1,2] [--to FOLDER]
"""

import argparse
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from t5x_lite.cli import main as run_command
from t5x_lite.evaluate.forgetting import RUN, SOURCE, ComparedScore, compare_runs

CONFIG = Path(__file__).resolve().parents[1] / "configs" / "finetune" / "quickstart.yaml"
HUB_ADAPTER = {"width": 8, "original_ln_before": True}
HUB_FUSION = {"kind": HUB_ADAPTER, "query_before_ln": False, "residual_before": False, "query_key_bias": True}
FUSED = "pfeiffer_hub"
"""The method whose runs the fusion combines."""
METHODS: dict[str, tuple[dict[str, Mapping[str, object]], float]] = {
    "full": ({"full": {}}, 1e-3),
    "head": ({"head": {}}, 1e-2),
    "features": ({"features": {"layers": 2}}, 1e-2),
    "top": ({"top": {"layers": 1}}, 1e-3),
    "bitfit": ({"bitfit": {}}, 5e-3),
    "houlsby": ({"houlsby": {"width": 8}}, 5e-3),
    "pfeiffer": ({"pfeiffer": {"width": 8}}, 5e-3),
    FUSED: ({"pfeiffer": HUB_ADAPTER}, 5e-3),
    "fusion": ({"fusion": HUB_FUSION}, 1e-3),
    "lora": ({"lora": {"rank": 4, "targets": "(query|key|value|out|up|down|gate)$"}}, 5e-3),
    "ia3": ({"ia3": {}}, 1e-2),
    "prompt": ({"prompt": {"length": 8}}, 1e-2),
    "prefix": ({"prefix": {"length": 8}}, 1e-2),
    "unfreeze": ({"unfreeze": {}}, 1e-3),
}
"""Settings and learning rate by the name of a row."""
ACCURACY = "eval/sst2/accuracy"
PERPLEXITY = "eval/perplexity"


def main() -> None:
    """Train the runs that are missing, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("base", type=Path)
    parser.add_argument("train", type=Path)
    parser.add_argument("dev", type=Path)
    parser.add_argument("--methods", type=_words, default=tuple(METHODS))
    parser.add_argument("--seeds", type=_words, default=("0", "1", "2"))
    parser.add_argument("--to", type=Path, default=Path("runs/adaptation"))
    options = parser.parse_args()
    print("| method | accuracy before | after, by seed | mean | perplexity before | after, by seed | mean |")
    print("|---|---|---|---|---|---|---|")
    for method in options.methods:
        runs = []
        for seed in options.seeds:
            runs.append(options.to / f"{method}-{seed}")
            exit_code = run_command(train_words(options, method, seed))
            if exit_code:
                raise SystemExit(exit_code)
        print(table_row(method, compare_runs(runs)), flush=True)


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split(","))


def train_words(options: argparse.Namespace, method: str, seed: str) -> list[str]:
    """Return the words of the command that trains one run."""
    settings, learning_rate = METHODS[method]
    if method == "fusion":
        adapters = [str(options.to / f"{FUSED}-{other_seed}") for other_seed in options.seeds]
        settings = {"fusion": {**HUB_FUSION, "adapters": adapters}}
    return [
        "train",
        str(CONFIG),
        f"run_dir={options.to / f'{method}-{seed}'}",
        f"adapt.from={options.base}",
        f"adapt.method={json.dumps(settings)}",
        "task_form=head",
        f"data.files={options.train}",
        f"data.validation_files={options.dev}",
        "data.columns=[sentence,label]",
        "model.dropout=0.1",
        "objective.classify.pool=mean",
        "train.steps=432",
        "train.seq_len=48",
        "optimizer.warmup_steps=40",
        "eval.every_steps=432",
        "checkpoint.every_steps=432",
        f"optimizer.learning_rate={learning_rate}",
        f"train.seed={seed}",
    ]


def table_row(method: str, scores: Sequence[ComparedScore]) -> str:
    """Return a line of the table: accuracy on the task, perplexity on the text of the base."""
    cells = [method]
    for evaluation, metric in ((RUN, ACCURACY), (SOURCE, PERPLEXITY)):
        matching = [score for score in scores if (score.evaluation, score.metric) == (evaluation, metric)]
        after = [score.after for score in matching]
        cells.append(_format(metric, float(np.mean([score.before for score in matching]))))
        cells.append(", ".join(_formatted(metric, after)))
        cells.append(_format(metric, float(np.mean(after))))
    return "| " + " | ".join(cells) + " |"


def _formatted(metric: str, values: Sequence[float]) -> Iterator[str]:
    for value in values:
        yield _format(metric, value)


def _format(metric: str, value: float) -> str:
    return f"{value:.1%}" if metric == ACCURACY else f"{value:.2f}"


if __name__ == "__main__":
    main()
