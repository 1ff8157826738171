"""The script that measures a GPU, with tiny models on a CPU: every step of it runs and writes its figures."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import REPOSITORY

MEASURED = {
    "kernels": {"case", "kernel", "ms"},
    "torch": {"shape", "mode", "ms", "tokens_per_second"},
    "train": {"step", "loss"},
}
"""Keys of the records of steps that measure no step of a model."""


@pytest.mark.parametrize(
    "steps",
    [
        ("gpt2",),
        ("torch",),
        pytest.param(("kernels", "t5", "bert", "gpt350", "gpt1300", "moe", "train"), marks=pytest.mark.slow),
    ],
    ids=["gpt2", "torch", "others"],
)
def test_the_report_of_a_gpu_runs_with_tiny_models(steps: tuple[str, ...], tmp_path: Path) -> None:
    if "torch" in steps:
        pytest.importorskip("transformers", reason="pip install -e '.[hf]'")
    lines = [json.dumps({"text": f"the quick brown fox {number} jumps over dogs"}) for number in range(400)]
    (tmp_path / "text.jsonl").write_text("\n".join(lines))
    command = ["bash", str(REPOSITORY / "tools/gpu_report.sh"), str(tmp_path / "out"), "--tiny"]
    command += ["--text", str(tmp_path / "text.jsonl"), "--only", " ".join(steps)]
    environment = {**os.environ, "PYTHON": sys.executable, "JAX_PLATFORMS": "cpu", "TORCH_SECONDS": "300"}
    process = subprocess.run(command, capture_output=True, text=True, check=False, timeout=900, env=environment)
    assert process.returncode == 0, process.stderr
    results = (tmp_path / "out/steps.txt").read_text().splitlines()
    assert {line.partition(":")[0] for line in results} == set(steps)
    assert {line.rpartition(", ")[2] for line in results} == {"exit 0"}, process.stdout
    for step in steps:
        name = "train_metrics" if step == "train" else step
        records = [json.loads(line) for line in (tmp_path / f"out/{name}.jsonl").read_text().splitlines()]
        expected = MEASURED.get(step, {"shape", "ms", "tokens_per_second", "mfu_causal_full"})
        assert expected <= records[0].keys()
        if step == "torch":
            shapes = ["GPT-2 124M", "T5-large", "BERT-large", "GPT-3 1.3B", "GPT-3 350M"]
            assert [record["shape"] for record in records] == shapes
