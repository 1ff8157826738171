"""Plans of GPUs by XLA's own compiler, where its plugin is installed."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from t5x_lite.cli import main
from t5x_lite.planner import gpu_compiler
from tests.conftest import Shell
from tests.planner.test_plan import CONFIGS, SMALL, plan

needs_compiler = pytest.mark.skipif(
    not gpu_compiler.is_installed(), reason="needs the extra gpu-compiler: pip install -e '.[gpu-compiler]'"
)
OF_A_REPORT = ("model.compute=bfloat16", "model.dropout=0", "train.z_loss=0", "model.remat=dots")
GPT = (*OF_A_REPORT, "model.pattern=[{attention: dense}]", "train.seq_len=2048", "data.separate_documents=false")
DENSE = ("model.pattern=[{attention: dense}]",)
ONE_DOCUMENT = ("data.packing=stream", "data.separate_documents=false")
EXPERTS = "model.feedforward={moe: {experts: 8, router: switch, dispatch: {capacity: {factor: 1.25}}}}"
TRITON = r"__gpu\$xla\.gpu\.triton"
CUDNN = r"__cudnn\$fmha\w*Softmax"


@pytest.mark.slow
@needs_compiler
@pytest.mark.parametrize(
    ("config", "options", "measured"),
    [
        ("gpt3/1.3b", (*GPT, "model.unroll=0", "train.batch_size=8"), 54.7e9),
        ("gpt3/350m", (*GPT, "model.unroll=6", "train.batch_size=8", EXPERTS), 43.2e9),
        (
            "t5/large",
            (*OF_A_REPORT, "model.unroll=4", "train.batch_size=64", "model.feedforward.mlp.dropout=0"),
            33.3e9,
        ),
    ],
    ids=["GPT-3 1.3B", "experts", "T5-large"],
)
def test_the_memory_of_a_program_is_what_an_h100_took(
    t5x_lite: Shell, config: str, options: tuple[str, ...], measured: float
) -> None:
    """Peaks of one NVIDIA H100 80GB, 2026-11-26, jax 0.11.2 (docs/results/speed.md)."""
    report = plan(t5x_lite, config, "h100:1", *options)
    assert report["compiled"]["memory_bytes"] == pytest.approx(measured, rel=0.02)


@pytest.mark.slow
@needs_compiler
@pytest.mark.parametrize(
    ("config", "heads", "kernel", "calls", "options"),
    [
        ("t5/small", 8, TRITON, 4 + 4 + 3, ()),
        ("bert/base", 12, TRITON, 3, ()),
        ("modernbert/base", 12, TRITON, 3, ()),
        ("gpt2/117m", 12, CUDNN, 2, ()),
        ("gpt2/117m", 12, CUDNN, 2, ("data.separate_documents=false",)),
    ],
)
def test_scores_stay_in_fused_kernels_of_compiled_programs(
    config: str, heads: int, kernel: str, calls: int, options: tuple[str, ...]
) -> None:
    """Three Pallas kernels for each kind of attention, four with the gradient of a bias; two of cuDNN.

    T5 has three kinds: encoder, decoder and cross-attention. Rows have a length that no weight has.
    """
    length = 320
    sizes = (
        "model.layers=2",
        "model.unroll=1",
        f"train.seq_len={length}",
        "train.batch_size=4",
        "train.microbatches=1",
    )
    script = Path(__file__).with_name("program_text.py")
    command = [sys.executable, str(script), str(CONFIGS / f"{config}.yaml"), "h100:1", *sizes, "model.compute=bfloat16"]
    command += options
    process = subprocess.run(command, capture_output=True, text=True, check=False, timeout=1800)
    assert process.returncode == 0, process.stderr
    assert len(re.findall(rf'custom_call_target="{kernel}', process.stdout)) == calls
    assert not re.search(rf"\[(?:\d+,)*{heads},{length},{length}\]", process.stdout)


@pytest.mark.slow
@needs_compiler
@pytest.mark.parametrize("gpu", ["a100", "h100", "h200", "b200"])
def test_every_gpu_has_a_compiler(t5x_lite: Shell, gpu: str) -> None:
    """cuDNN's attention forward and backward; weights and moments in sixteen shards."""
    report = plan(t5x_lite, "gpt3/125m", f"{gpu}:16", *SMALL, *DENSE, "mesh.fsdp=-1", "mesh.data=1")
    compiled = report["compiled"]
    assert compiled["kernel_calls"] == 2
    assert compiled["arguments_bytes"] < 1.5 * (3 * 4 * report["parameters"] / 16) + 2**20


@pytest.mark.slow
@needs_compiler
@pytest.mark.parametrize(("options", "calls"), [((), 3), (ONE_DOCUMENT, 2)], ids=["documents", "one document"])
def test_stages_of_a_pipeline_have_fused_attention(t5x_lite: Shell, options: tuple[str, ...], calls: int) -> None:
    """Three Pallas kernels, which know documents, or two of cuDNN."""
    mesh = ("mesh.pipeline=2", "mesh.fsdp=4", "mesh.data=1")
    report = plan(t5x_lite, "gpt3/125m", "h100:8", *SMALL, *DENSE, *mesh, "model.unroll=1", *options)
    assert report["compiled"]["kernel_calls"] == calls


@pytest.mark.slow
@needs_compiler
def test_gpus_gather_and_scatter_what_the_shardings_say(t5x_lite: Shell) -> None:
    """Llama in four layers on two hosts, with 8 rows in each of two microbatches, nothing computed again.

    In bfloat16 a device gathers 15 of 16 shards of all weights but the token table forward and backward, in each
    microbatch, and scatters as many gradients.
    """
    sizes = ("model.layers=4", "train.batch_size=32", "train.seq_len=512", "train.microbatches=2", "model.remat=none")
    report = plan(t5x_lite, "llama3/8b", "h100:16", *sizes, "mesh.fsdp=16", "mesh.data=1")
    sent = {row["kind"]: row["sent"] for row in report["compiled"]["collectives"]}
    gathered = report["parameters"] - 128256 * 4096
    assert sent["all-gather"] == pytest.approx(2 * 2 * 2 * gathered * 15 / 16, rel=0.02)
    assert sent["reduce-scatter"] == pytest.approx(2 * 2 * gathered * 15 / 16, rel=0.02)
    # Of two hosts, NVLink needs longer to share what arrives than the ports need to receive it.
    assert all(row["link"] == "NVLink" for row in report["compiled"]["collectives"] if row["kind"] != "all-to-all")


@pytest.mark.slow
@needs_compiler
@pytest.mark.parametrize("quantization", ["fp8", "int8"])
def test_the_program_of_a_gpu_has_products_in_8_bits(t5x_lite: Shell, quantization: str) -> None:
    """Two layers with six matrices each: forward, with one product for the three of attention, and two gradients."""
    pytest.importorskip("qwix", reason="pip install -e '.[quantization]'")
    options = (*SMALL, "model.unroll=0", "mesh.fsdp=4", "mesh.data=2", f"train.quantization={quantization}")
    report = plan(t5x_lite, "gpt3/125m", "h100:8", *options)
    assert report["compiled"]["quantized_products"] == 2 * (4 + 2 * 6)


@pytest.mark.slow
@needs_compiler
def test_the_exit_code_says_that_a_program_does_not_fit(t5x_lite: Shell) -> None:
    report = plan(
        t5x_lite, "gpt3/13b", "h100:8", "mesh.fsdp=8", "mesh.data=1", "model.layers=8", "model.remat=none", exit_code=1
    )
    assert report["compiled"]["memory_bytes"] > report["available_bytes"]


@pytest.mark.slow
@needs_compiler
@pytest.mark.parametrize("path", sorted((CONFIGS / "pods/h100").glob("*.yaml")), ids=lambda path: path.stem)
def test_every_config_of_gpus_fits_them(t5x_lite: Shell, path: Path) -> None:
    process = t5x_lite("plan", path, "--json")
    assert process.returncode == 0, process.stderr + process.stdout
    assert json.loads(process.stdout)["compiled"]["kernel_calls"] >= 2


def test_a_plan_without_the_compiler_names_the_remedy(
    monkeypatch: pytest.MonkeyPatch, tiny_config: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(gpu_compiler, "PLUGINS", ())
    monkeypatch.setenv("XLA_FLAGS", os.environ.get("XLA_FLAGS", ""))
    assert main(["plan", str(tiny_config), "--topology", "h100:1", "model.vocab=300"]) == 0
    output = capsys.readouterr()
    assert "pip install 't5x_lite[gpu-compiler]'" in output.err
    assert "modelled, not compiled" in output.out
