"""The command `plan`: GPUs by formula, and pods by the TPU compiler where libtpu is installed."""

import importlib.util
import json
import math
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from t5x_lite import config as configuration
from t5x_lite.cli import main
from t5x_lite.planner.example import example_lengths
from tests.conftest import REPOSITORY, Shell

CONFIGS = REPOSITORY / "configs"
HAS_LIBTPU = importlib.util.find_spec("libtpu") is not None
needs_libtpu = pytest.mark.skipif(not HAS_LIBTPU, reason="needs the extra tpu: pip install -e '.[tpu]'")
SMALL = [
    "model.layers=2",
    "model.embed=256",
    "model.heads=2",
    "model.vocab=512",
    "train.batch_size=16",
    "train.seq_len=256",
]

ENCODER_PODS = sorted(
    path.stem
    for path in (CONFIGS / "pods").glob("*.yaml")
    if path.stem.startswith(("t5", "bert", "modernbert", "long_t5"))
)
"""The pod configs with an encoder."""
MESH_OF_FOUR = ("mesh.data=1", "mesh.fsdp=4", "mesh.tensor=1")
ROWS_OF_A_CHIP = 2


def plan(t5x_lite: Shell, config: str, topology: str, *options: str, exit_code: int = 0) -> dict[str, Any]:
    """Run `plan --json` in a process of its own and return its report."""
    process = t5x_lite("plan", CONFIGS / f"{config}.yaml", "--topology", topology, "--json", *options)
    assert process.returncode == exit_code, process.stderr
    return json.loads(process.stdout)


def estimate(t5x_lite: Shell, config: str, topology: str, *options: str, exit_code: int = 0) -> dict[str, Any]:
    """Run `plan --json --no-compile` and return its report."""
    return plan(t5x_lite, config, topology, "--no-compile", *options, exit_code=exit_code)


def test_a_topology_must_be_given(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", str(CONFIGS / "gpt3/1.3b.yaml")]) == 2
    assert "--topology" in capsys.readouterr().err


@pytest.mark.slow
def test_the_largest_stage_of_a_schedule_is_planned(t5x_lite: Shell) -> None:
    """The tokens of a batch are the same; the longest sequences decide, and a stage with more tokens goes before."""
    stages = "{name: a, seq_len: 128}, {name: b, after_share: 0.5, seq_len: 512}"
    overrides = [*SMALL, "mesh.data=1", "mesh.fsdp=8"]
    report = estimate(t5x_lite, "gpt3/1.3b", "h100:8", *overrides, f"data.schedule=[{stages}]")
    assert report == estimate(t5x_lite, "gpt3/1.3b", "h100:8", *overrides, "train.batch_size=8", "train.seq_len=512")
    wide = "{name: a}, {name: wide, after_share: 0.9, seq_len: 1024}"
    process = t5x_lite(
        "plan", CONFIGS / "gpt3/1.3b.yaml", "--topology=h100:8", "--no-compile", *overrides, f"data.schedule=[{wide}]"
    )
    assert process.returncode == 2
    assert "data.schedule stage wide: batch_size / train.microbatches 4 does not divide" in process.stderr


@pytest.mark.skipif(HAS_LIBTPU, reason="libtpu is installed")
def test_the_error_without_the_tpu_compiler_names_the_remedy(t5x_lite: Shell) -> None:
    process = t5x_lite("plan", CONFIGS / "gpt3/1.3b.yaml", "--topology", "v5e:4x4")
    assert process.returncode == 2
    assert "pip install 't5x_lite[tpu]'" in process.stderr.strip().splitlines()[-1]


def test_gpus_are_planned_by_formula(t5x_lite: Shell) -> None:
    """GPT-3 XL on 16 H100 with fsdp 16, computed by hand."""
    report = estimate(t5x_lite, "gpt3/1.3b", "h100:16", "mesh.data=1", "mesh.fsdp=16", "model.remat=full")
    assert (report["devices"], report["fits"], report["compiled"]) == (16, True, {})
    modelled = report["modelled"]
    parameters = report["parameters"]
    # Parameters, two moments and gradients in float32, in sixteen shards. Biases of heads and of the feed-forward are
    # replicated: 24 · (3 · 2048 + 8192) values.
    replicated = 24 * (3 * 2048 + 8192)
    assert modelled["gradients_bytes"] == 4 * ((parameters - replicated) / 16 + replicated)
    assert modelled["state_bytes"] == pytest.approx(3 * modelled["gradients_bytes"], rel=1e-6)
    # Of 32 rows of 2048 tokens in bfloat16: width 2048 after each of the 12 pairs of layers. A pair is computed again
    # together: each of its layers has nine widths of products (three projections, four of the feed-forward, two
    # outputs), that of attention with 16 log-sums of 4 bytes, the four of the activation and four of norms and
    # residual additions. 8 GiB of logits at once, and as many of their gradient.
    layers_bytes = modelled["activations_bytes"] - 2 * 8 * 2**30
    assert layers_bytes == 32 * 2048 * (2 * 2048 * (12 + 2 * (9 + 1 + 4 + 4)) + 2 * 16 * 4)
    # Weights in bfloat16 are gathered for the forward pass, its repetition and the backward pass; 15 shards of 16. The
    # table of 2048 positions is looked up in shards: states are sent, and their gradients.
    sent = {row["kind"]: (row["axes"], row["link"], row["sent"]) for row in modelled["collectives"]}
    gathered = parameters - 2048 * 2048
    state_values = 2 * 32 * 2048 * 2048
    assert sent["all-gather"] == (["fsdp"], "NVLink", pytest.approx(3 * 2 * gathered * 15 / 16))
    assert sent["reduce-scatter"] == (["fsdp"], "NVLink", pytest.approx(2 * gathered * 15 / 16))
    assert sent["all-to-all"] == (["fsdp"], "network", pytest.approx(2 * state_values * 15 / 16))
    # Two hosts of eight. Of weights NVLink is slower, on which seven of eight GPUs share what came to each of them, at
    # 450 GB/s (the network brings a sixteenth to each, at 50); of states the network, which takes half of them.
    assert modelled["ici_seconds"] == pytest.approx(2 * 4 * gathered * 7 / 8 / 450e9)
    assert modelled["dcn_seconds"] == pytest.approx(2 * state_values / 2 / 50e9)
    # An H100 reads and writes 3.35 TB/s: once each the state, the gradients and the activations; and it reads the
    # gathered weights in the forward pass, in its repetition, and for the gradients of the inputs and of the weights.
    # What it looks up in the table of positions is among the activations.
    stored_bytes = modelled["state_bytes"] + modelled["gradients_bytes"] + modelled["activations_bytes"]
    assert modelled["memory_seconds"] == pytest.approx((2 * stored_bytes + 4 * 2 * gathered) / 3.35e12)
    # 286,102 steps (300B tokens in batches of 1M) on 16 chips.
    assert modelled["chip_hours"] == pytest.approx(286102 * modelled["step_seconds"] * 16 / 3600)
    # Of a pair of layers all is computed again but the last product, 4 of 24 squares of the width: its result is needed
    # by nothing. The logits are not. Attention is what is left of the forward pass, a third of a step.
    squares = 24 * 12 * 2048**2
    forward_flops = modelled["flops_per_device"] / 3
    attention_flops = forward_flops - 2 * 32 * 2048 * (squares + 50257 * 2048)
    repeated_flops = 2 * 32 * 2048 * squares * 20 / 24 + attention_flops
    assert modelled["mfu_causal_half"] == pytest.approx(1 / (1 + repeated_flops / (3 * forward_flops)))


@pytest.mark.slow
def test_products_in_8_bits_take_the_time_of_the_chip_s_own_units(t5x_lite: Shell) -> None:
    """GPT-3 XL on 16 H100: 24 layers with 12 · 2048² weights, at 1979 instead of 989 TFLOP/s."""
    options = ("mesh.data=1", "mesh.fsdp=16", "model.remat=none", "train.batch_size=64")
    plain = estimate(t5x_lite, "gpt3/1.3b", "h100:16", *options)["modelled"]
    quantized = estimate(t5x_lite, "gpt3/1.3b", "h100:16", *options, "train.quantization=fp8")["modelled"]
    tokens = 64 * 2048
    flops = 6 * 24 * 12 * 2048**2 * tokens / 16
    saved = flops / 989e12 - flops / 1979e12
    assert quantized["compute_seconds"] == pytest.approx(plain["compute_seconds"] - saved)


def test_products_in_8_bits_are_refused_for_a_chip_without_units_for_them(t5x_lite: Shell) -> None:
    process = t5x_lite(
        "plan", CONFIGS / "gpt3/1.3b.yaml", "--topology", "a100:8", "--no-compile", "train.quantization=fp8"
    )
    assert process.returncode == 2
    assert "train.quantization fp8: this chip has no units for it; set it to int8 or null" in process.stderr


def test_gradients_of_weights_that_expert_groups_share_are_summed_over_them(t5x_lite: Shell) -> None:
    """Switch-Base on 4 × 2 devices: each of the eight experts of twelve layers has 2 · 768 · 3072 weights."""
    options = ("mesh.data=1", "mesh.expert=4", "mesh.fsdp=2", "model.vocab=32128")
    report = estimate(t5x_lite, "switch/base_8", "h100:8", *options)
    parameters = report["parameters"]
    shared = parameters - 12 * 8 * 2 * 768 * 3072
    sent = {(row["kind"], *row["axes"]): row["sent"] for row in report["modelled"]["collectives"]}
    assert sent["all-reduce", "expert"] == pytest.approx(2 * 2 * shared / 2 * 3 / 4)
    assert sent["reduce-scatter", "fsdp"] == pytest.approx(2 * (shared + (parameters - shared) / 4) / 2)


def test_devices_that_share_rows_gather_weights_and_keys(t5x_lite: Shell) -> None:
    """GPT-3 125M on 8 GPUs that share 256 rows of 2048 tokens: 12 layers with keys and values of 768 channels."""
    options = ("mesh.data=1", "mesh.context=8", "model.vocab=50304", "train.microbatches=1")
    report = estimate(t5x_lite, "gpt3/125m", "h100:8", *options)
    sent: dict[str, list[float]] = {}
    for row in report["modelled"]["collectives"]:
        assert row["axes"] == ["context"]
        sent.setdefault(row["kind"], []).append(row["sent"])
    # The token table is gathered as output matrix; that of the 2048 positions is only looked up.
    weights = 2 * (report["parameters"] - 2048 * 768) * 7 / 8
    keys_and_values = 12 * 2 * (256 * 2048 * 768 * 2) * 7 / 8
    assert sent["all-gather"] == pytest.approx([2 * weights, 2 * keys_and_values])
    assert sent["reduce-scatter"] == pytest.approx([weights, keys_and_values])
    assert sent["all-to-all"] == pytest.approx([2 * (256 * 2048 * 768 * 2) / 8 * 7 / 8])


@pytest.mark.slow
def test_the_outputs_of_experts_are_kept_with_what_devices_exchange(t5x_lite: Shell) -> None:
    """Mixtral's gates need the outputs of two experts for each token: 2 · 4096 · 14336 FLOPs for each, in 32 layers."""

    def compute_seconds(*mesh: str) -> float:
        kernel = "model.feedforward.moe.dispatch.dropless.kernel=ragged"
        options = ("mesh.data=1", "train.batch_size=16", "model.remat=save_inner", kernel, *mesh)
        return estimate(t5x_lite, "mixtral/8x7b", "h100:16", *options, exit_code=1)["modelled"]["compute_seconds"]

    repeated = compute_seconds("mesh.fsdp=16") - compute_seconds("mesh.expert=8", "mesh.fsdp=2")
    tokens = 16 * 32768 / 16
    assert repeated == pytest.approx(tokens * 2 * 2 * 4096 * 14336 * 32 / 989e12)


def test_the_report_says_that_a_model_does_not_fit_on_gpus(t5x_lite: Shell) -> None:
    process = t5x_lite(
        "plan", CONFIGS / "gpt3/175b.yaml", "--topology", "h100:8", "--no-compile", "mesh.data=1", "mesh.fsdp=8"
    )
    assert process.returncode == 1, process.stderr
    assert "does NOT fit" in process.stdout
    assert "modelled, not compiled" in process.stdout


@pytest.mark.slow
def test_the_bubble_of_a_pipeline_costs_time(t5x_lite: Shell) -> None:
    """Huang et al. 2019, §2.3: m microbatches through k stages take (m + k - 1) / m of the time."""
    options = ("mesh.data=1", "train.batch_size=64")
    pipeline = ("mesh.fsdp=4", "mesh.pipeline=2", "model.pipeline_microbatches=4")
    with_pipeline = estimate(t5x_lite, "gpt3/1.3b", "h100:8", *options, *pipeline)
    without_pipeline = estimate(t5x_lite, "gpt3/1.3b", "h100:8", *options, "mesh.fsdp=8")
    ratio = with_pipeline["modelled"]["compute_seconds"] / without_pipeline["modelled"]["compute_seconds"]
    assert ratio == pytest.approx(5 / 4)


@pytest.mark.slow
@needs_libtpu
@pytest.mark.parametrize(
    ("config", "overrides", "kernels", "exchanges"),
    [
        ("gpt3/125m", [*SMALL, "mesh.fsdp=4", "mesh.data=2"], 4, set()),
        ("switch/base_8", [*SMALL, "mesh.expert=4", "mesh.fsdp=2", "mesh.data=1"], 0, {"all-to-all"}),
        ("mixtral/8x7b", [*SMALL, "model.kv_heads=2", "mesh.fsdp=8", "mesh.data=1"], 4, set()),
        (
            "mixtral/8x7b",
            [*SMALL, "model.kv_heads=2", "mesh.expert=4", "mesh.fsdp=2", "mesh.data=1"],
            4,
            {"ragged-all-to-all"},
        ),
    ],
    ids=["dense", "experts with a capacity", "sorted tokens", "sorted tokens and sharded experts"],
)
def test_a_step_is_compiled_for_a_pod(
    t5x_lite: Shell, config: str, overrides: list[str], kernels: int, exchanges: set[str]
) -> None:
    """Attention and dropless experts use the TPU's kernels; tokens reach sharded experts by all-to-all."""
    report = plan(t5x_lite, config, "v5e:2x4", *overrides)
    compiled = report["compiled"]
    assert report["fits"]
    assert report["devices"] == 8
    assert compiled["kernel_calls"] >= kernels
    kinds = {(row["kind"], tuple(row["axes"])) for row in compiled["collectives"]}
    assert compiled["involuntary_reshards"] == []
    over_experts = {kind for kind, axes in kinds if axes == ("expert",)}
    assert exchanges <= over_experts
    # States of a table that is looked up in shards may travel by `all-to-all` in any case.
    assert ("ragged-all-to-all" in over_experts) == ("ragged-all-to-all" in exchanges)
    # Weights and moments (AdamW: two, Adafactor: less) in shards, of which `data` has copies, and a batch.
    shards = report["devices"] / report["mesh"].get("data", 1)
    assert compiled["arguments_bytes"] < 1.5 * (3 * 4 * report["parameters"] / shards) + 2**20
    assert 0 < report["modelled"]["mfu_causal_half"] <= report["modelled"]["mfu_causal_full"] < 1


@pytest.mark.slow
@needs_libtpu
def test_devices_that_share_rows_share_weights_and_scatter_sums(t5x_lite: Shell) -> None:
    """Sums of the gradients of keys and values are scattered over `context`, those of weights as the weights are.

    Two layers of 1024 channels. A device has 8 rows of 1024 tokens, a quarter of each, in bfloat16.
    """
    mesh = ("mesh.data=1", "mesh.fsdp=2", "mesh.context=4")
    sizes = ("model.embed=1024", "model.heads=8", "train.seq_len=1024", "train.microbatches=1")
    report = plan(t5x_lite, "gpt3/125m", "v5e:2x4", *SMALL, *sizes, *mesh)
    compiled = report["compiled"]
    assert compiled["involuntary_reshards"] == []
    # Three of four shards of weights and moments are elsewhere along `context`.
    assert compiled["arguments_bytes"] < 1.5 * (3 * 4 * report["parameters"] / 8) + 2**20
    sent = {(row["kind"], *row["axes"]): row["sent"] for row in compiled["collectives"]}
    keys_and_values = 2 * 2 * (8 * 1024 * 1024 * 2) * 3 / 4
    assert sent["reduce-scatter", "context"] == pytest.approx(keys_and_values, rel=0.02)
    # Only the output matrix of 512 tokens is summed over `context` before its sum is scattered.
    assert sent.get(("all-reduce", "context"), 0) <= 2 * (512 * 1024 * 2) * 3 / 4 * 1.1


@pytest.mark.slow
@needs_libtpu
@pytest.mark.parametrize(("quantization", "products"), [("null", 0), ("int8", 36)])
def test_the_program_of_a_pod_has_products_in_8_bits(t5x_lite: Shell, quantization: str, products: int) -> None:
    """Two layers with six matrices each: forward, and two gradients."""
    options = (*SMALL, "model.unroll=0", "mesh.fsdp=4", "mesh.data=2", f"train.quantization={quantization}")
    report = plan(t5x_lite, "gpt3/125m", "v6e:2x4", *options)
    assert report["compiled"]["quantized_products"] == products


@pytest.mark.slow
@needs_libtpu
@pytest.mark.parametrize("pod", ENCODER_PODS)
def test_no_scores_of_whole_rows_are_in_the_program_of_a_tpu(pod: str) -> None:
    """Two layers of each pod config with an encoder, with its heads, on four chips.

    Rows of T5 have 832 tokens instead of 512, a size that no weight has; all others have those of the config.

    Flash attention has three kernels, four with the gradient of a bias: T5's encoder and decoder have one, and
    cross-attention has none. ModernBERT's two kinds of attention have two kernels of splash each. LongT5's encoder
    computes its windows without a kernel.
    """
    path = CONFIGS / f"pods/{pod}.yaml"
    sizes = ["model.layers=2", f"train.batch_size={4 * ROWS_OF_A_CHIP}", "train.microbatches=1", *MESH_OF_FOUR]
    row = ["train.seq_len=832"] if pod.startswith("t5") else []
    command = [sys.executable, str(Path(__file__).with_name("program_text.py")), str(path), "v5e:2x2", *sizes, *row]
    process = subprocess.run(command, capture_output=True, text=True, check=False, timeout=1800)
    assert process.returncode == 0, process.stderr
    kernels = len(re.findall(r'custom_call_target="tpu_custom_call"', process.stdout))
    expected = {"bert": 3, "modernbert": 2 * 2, "long": 4 + 3, "t5": 4 + 4 + 3}
    assert kernels >= expected[pod.partition("_")[0]]
    config = configuration.load(path, ["data.files=x", *row])
    lengths = example_lengths(config.replace_model(vocab=config.model.vocab or 32_128))
    padded = {-(-length // 128) * 128 for length in (lengths.tokens, lengths.targets) if length}
    sides = padded | {lengths.tokens, lengths.targets}
    for shape in set(re.findall(r"\w\[(\d+(?:,\d+)+)\]", process.stdout)):
        *others, queries, keys = map(int, shape.split(","))
        is_bias = len(others) == 2 and others[0] == config.model.heads  # the tiles of each head
        has_scores = math.prod(others) >= ROWS_OF_A_CHIP * config.model.heads and not is_bias
        assert not (has_scores and queries in sides and keys in sides), shape


@pytest.mark.slow
@needs_libtpu
def test_a_tpu_gathers_weights_while_it_computes(t5x_lite: Shell) -> None:
    """By default the compiler of 64 chips of v5p waits for each gather."""

    def overlapped_share_of_gathers(*options: str) -> float:
        mesh = ("mesh.data=2", "mesh.fsdp=32")
        report = plan(t5x_lite, "gpt3/1.3b", "v5p:4x4x4", *mesh, "model.vocab=50304", *options)
        gathers = [row for row in report["compiled"]["collectives"] if row["kind"] == "all-gather"]
        return sum(row["overlapped"] for row in gathers) / sum(row["sent"] for row in gathers)

    few_layers = ("model.layers=4", "train.batch_size=256")
    assert overlapped_share_of_gathers(*few_layers, "train.compiler_options={}") < 0.1
    assert overlapped_share_of_gathers(*few_layers) > 0.6


@pytest.mark.slow
@needs_libtpu
def test_the_exit_code_and_the_report_say_that_a_program_does_not_fit(t5x_lite: Shell) -> None:
    report = plan(t5x_lite, "gpt3/13b", "v5e:2x4", "mesh.fsdp=8", "mesh.data=1", exit_code=1)
    assert not report["fits"]
    assert report["largest"]
    assert report["compiled"]["memory_bytes"] > report["available_bytes"]


@pytest.mark.slow
@needs_libtpu
def test_two_slices_send_only_gradients_over_the_network(t5x_lite: Shell) -> None:
    report = plan(t5x_lite, "gpt3/125m", "v5e:2x2", *SMALL, "mesh.data=4", "mesh.fsdp=2", "--slices", "2")
    between_slices = [row for row in report["compiled"]["collectives"] if row["link"] == "DCN"]
    assert {(row["kind"], tuple(row["axes"])) for row in between_slices} == {("all-reduce", ("data",))}
    # Four devices of a slice share the sum: each sends its quarter, in two or four bytes, to the other slice and gets
    # one back: n·2·(2-1)/2.
    sent = sum(row["sent"] for row in between_slices)
    assert 2 * report["parameters"] / 4 <= sent < 1.2 * 4 * report["parameters"] / 4
    modelled = [row for row in report["modelled"]["collectives"] if tuple(row["axes"]) == ("data",)]
    # Inside a slice each of two devices sends half of its half of the gradients twice, in bfloat16.
    assert {row["link"]: row["sent"] for row in modelled} == pytest.approx(
        {"ICI": 2 * report["parameters"] / 2, "DCN": 2 * report["parameters"] / 4}
    )


@pytest.mark.slow
@needs_libtpu
def test_the_report_says_that_replicas_sum_their_gradients_in_every_microbatch(t5x_lite: Shell) -> None:
    options = (*SMALL, "mesh.data=4", "mesh.fsdp=2", "train.microbatches=2")
    config = CONFIGS / "gpt3/125m.yaml"
    process = t5x_lite("plan", config, "--topology=v5e:2x4", *options)
    assert "the replicas along data sum their gradients 2 times in a step" in process.stdout
    report = plan(t5x_lite, "gpt3/125m", "v5e:2x4", *options, "train.data_reduction=step")
    sent = sum(row["sent"] for row in report["compiled"]["collectives"] if "data" in row["axes"])
    # Four devices sum halves of the gradients in bfloat16; vectors are summed in float32.
    assert sent == pytest.approx(2 * 3 / 4 * 2 * report["parameters"] / 2, rel=0.05)


def test_every_pod_config_names_its_pod_and_fills_it() -> None:
    """The mesh has as many devices as the topology has chips or GPUs; slices are joined by the data axis."""
    for path in (CONFIGS / "pods").rglob("*.yaml"):
        config = configuration.load(path)
        topology = config.plan.topology
        assert topology, path
        chips = math.prod(int(side) for side in topology.partition(":")[2].split("x")) * config.plan.slices
        mesh = config.mesh
        assert math.prod(getattr(mesh, axis) for axis in type(mesh).model_fields) == chips, path
        assert mesh.data % config.plan.slices == 0, path


@pytest.mark.slow
@needs_libtpu
@pytest.mark.parametrize("path", sorted((CONFIGS / "pods").glob("*.yaml")), ids=lambda path: path.stem)
def test_every_pod_config_fits_its_pod(path: Path) -> None:
    command = [sys.executable, "-m", "t5x_lite", "plan", str(path), "--json"]
    process = subprocess.run(command, capture_output=True, text=True, check=False, timeout=1800)
    assert process.returncode == 0, process.stderr + process.stdout
    compiled = json.loads(process.stdout)["compiled"]
    # The program holds fused attention; only that of LongT5's encoder, with its sums of blocks, is XLA's.
    assert compiled["kernel_calls"] >= 2
    kinds_over_experts = {row["kind"] for row in compiled["collectives"] if "expert" in row["axes"]}
    assert "all-to-all" in kinds_over_experts or not path.stem.startswith("switch")
