"""The planner: exchanges of programs whose bytes are counted by hand; a pod compiled, where libtpu is installed."""

import importlib.util
import json
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest

from t5x_lite import config as configuration
from t5x_lite.cli import main
from t5x_lite.planner.hlo import find_collectives
from t5x_lite.planner.libtpu import involuntary_reshards
from t5x_lite.planner.plan import candidates, example_features
from tests.conftest import Shell

CONFIGS = Path(__file__).resolve().parents[1] / "configs"
LIBTPU = importlib.util.find_spec("libtpu") is not None
POD = [
    "model.layers=2",
    "model.embed=256",
    "model.heads=2",
    "model.vocab=512",
    "train.batch_size=16",
    "train.seq_len=256",
]


UNROLLED = """HloModule step

%spread (a: f32[8,16]) -> f32[64,16] {
  %a = f32[8,16]{1,0} parameter(0)
  ROOT %gather.1 = f32[64,16]{1,0} all-gather(%a), channel_id=1, replica_groups=[1,8]<=[8], dimensions={0}
}

%turn (state: (f32[8,16], u32[])) -> (f32[8,16], u32[]) {
  %state = (f32[8,16]{1,0}, u32[]) parameter(0)
  %two = u32[]{:T(128)} constant(2)
  %piece = f32[8,16]{1,0} get-tuple-element(%state), index=0
  %overlapped = f32[64,16]{1,0} fusion(%piece), kind=kCustom, calls=%spread
  %kernel = f32[8,16]{1,0} custom-call(%piece), custom_call_target="tpu_custom_call", attributes={kernel={
"xprof_metadata": "attention"
}}, metadata={op_name="step/kernel"}
  %once = f32[8,16]{1,0} collective-permute(%piece), channel_id=2, source_target_pairs={RING}
  %again = f32[8,16]{1,0} collective-permute(%once), channel_id=3, source_target_pairs={RING}
  %count = u32[]{:T(128)} get-tuple-element(%state), index=1
  %next = u32[]{:T(128)} add(%count, %two), metadata={op_name="step/add"}
  ROOT %out = (f32[8,16]{1,0}, u32[]) tuple(%again, %next)
}

%more (state.1: (f32[8,16], u32[])) -> pred[] {
  %state.1 = (f32[8,16]{1,0}, u32[]) parameter(0)
  %eight = u32[]{:T(128)} constant(8)
  %count.1 = u32[]{:T(128)} get-tuple-element(%state.1), index=1
  ROOT %compare.1 = pred[] compare(%count.1, %eight), direction=LT
}

ENTRY %main (x: f32[8,16]) -> f32[64,16] {
  %x = f32[8,16]{1,0} parameter(0)
  %zero = u32[] constant(0)
  %init = (f32[8,16]{1,0}, u32[]) tuple(%x, %zero)
  %sum.1 = f32[1,16]{1,0} reduce-scatter(%x), channel_id=9, replica_groups=[1,8]<=[8], dimensions={0}, to_apply=%add
  %sum.2 = f32[1,16]{1,0} reduce-scatter(%x), channel_id=9, replica_groups=[1,8]<=[8], dimensions={0}, to_apply=%add
  %loop = (f32[8,16]{1,0}, u32[]) while(%init), condition=%more, body=%turn
  ROOT %begun = f32[64,16]{1,0} fusion(%x), kind=kCustom, calls=%begin
}

%begin (b: f32[8,16]) -> f32[64,16] {
  %b = f32[8,16]{1,0} parameter(0)
  ROOT %gather.2 = f32[64,16]{1,0} all-gather(%b), channel_id=1, replica_groups=[1,8]<=[8], dimensions={0}
}
""".replace("RING", "{0,1},{1,2},{2,3},{3,4},{4,5},{5,6},{6,7},{7,0}")


def test_an_unrolled_loop_and_an_exchange_spread_over_it_count_once() -> None:
    """Four turns of two permutes, and one gather whose channel is also named in the loop that it is overlapped with.

    Two sums with one channel side by side, as `shard_map` writes them, are two. A kernel has lines of its own.
    """
    found = {one.kind: (one.times, one.sent) for one in find_collectives(UNROLLED, {"fsdp": 8})}
    piece = 8 * 16 * 4
    assert found == {
        "collective-permute": (8, 8 * piece),
        "all-gather": (1, 7 * piece),
        "reduce-scatter": (2, 2 * 7 * piece / 8),
    }


def test_exchanges_are_those_of_the_program() -> None:
    """A ring of s devices sends n·(s-1)/s bytes of a gathered array of n bytes, twice that of a summed one."""
    script = Path(__file__).parent / "parallel" / "exchanges.py"
    flags = {**os.environ, "XLA_FLAGS": "--xla_force_host_platform_device_count=8", "NPROC": "16"}
    done = subprocess.run([sys.executable, str(script)], env=flags, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    whole = 64 * 32 * 4
    assert found["gathered over fsdp"] == [
        {"kind": "all-gather", "axes": ["fsdp"], "times": 1, "sent": whole / 2},
    ]
    assert found["gathered over two"] == [
        {"kind": "all-gather", "axes": ["data", "tensor"], "times": 1, "sent": whole * 3 / 4},
    ]
    assert found["summed in a loop"] == [
        {"kind": "all-reduce", "axes": ["tensor"], "times": 5, "sent": 5 * 2 * (16 * 32 * 4) / 2},
    ]
    assert found["swapped"] == [{"kind": "all-to-all", "axes": ["fsdp"], "times": 1, "sent": whole / 2 / 2}]


LOGGED = (
    "W1122 03:22:59.468419    2515 spmd_partitioner.cc:654] [SPMD] Involuntary full rematerialization. The compiler "
    "cannot go from sharding {devices=[2,2,2]<=[8] last_tile_dim_replicate} to {devices=[8,1]<=[8]} efficiently for "
    'HLO operation %param = f32[32,32]{1,0} parameter(0), metadata={op_name="t"}. As the last resort, SPMD will'
)


def test_reshards_that_the_compiler_calls_involuntary_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As libtpu 0.0.42 wrote it of an array cut in two by two that was to be cut in eight."""
    monkeypatch.setenv("TPU_LOG_DIR", str(tmp_path))
    assert involuntary_reshards() == []
    (tmp_path / "tpu_driver.host.root.log.WARNING.20261122-032152.1").write_text(f"Log file created\n{LOGGED}\n")
    assert involuntary_reshards() == ["f32[32,32] in t"]


@pytest.mark.parametrize(
    "name", ["gpt3/1.3b", "t5/base", "bert/base", "electra/base", "switch/base_8", "transformer/base"]
)
def test_every_kind_of_config_has_features_without_text_or_tokenizer(name: str) -> None:
    config = configuration.load(CONFIGS / f"{name}.yaml")
    features = example_features(config)
    assert features["tokens"].shape == (config.train.seq_len,)
    assert any(weight.sum() > 0 for key, weight in features.items() if key.endswith("_weights"))


def test_a_search_tries_what_divides_pod_model_and_batch() -> None:
    config = configuration.load(CONFIGS / "switch/base_8.yaml", ["train.batch_size=32"])
    found = {(c.mesh.fsdp, c.mesh.tensor, c.mesh.expert, c.mesh.pipeline) for c in candidates(config, 16)}
    # Twelve heads: tensor 1, 2 or 4; eight experts; six pairs of layers: 1 or 2 stages; 16 devices in all.
    sizes = ((t, e, p) for t in (1, 2, 4) for e in (1, 2, 4, 8) for p in (1, 2) if 16 % (t * e * p) == 0)
    assert found == {(16 // (t * e * p), t, e, p) for t, e, p in sizes}
    long = configuration.load(CONFIGS / "gpt3/1.3b.yaml", ["train.seq_len=8192", "model.positions.learned.length=8192"])
    assert {c.mesh.context for c in candidates(long, 64)} == {1, 2, 4}


@pytest.mark.slow
def test_a_pipelines_bubble_costs_time(t5x_lite: Shell) -> None:
    """Huang et al. 2019, §2.3: m parts through k stages take (m + k - 1) / m of the time."""
    common = (
        "plan",
        CONFIGS / "gpt3/1.3b.yaml",
        "--topology",
        "h100:8",
        "--json",
        "mesh.data=1",
        "train.batch_size=64",
    )
    meshes = (("mesh.fsdp=4", "mesh.pipeline=2", "model.pipeline_microbatches=4"), ("mesh.fsdp=8",))
    both = [json.loads(t5x_lite(*common, *mesh).stdout)["modelled"]["compute_seconds"] for mesh in meshes]
    assert both[0] / both[1] == pytest.approx(5 / 4)


@pytest.mark.skipif(LIBTPU, reason="libtpu is installed")
def test_without_the_tpu_compiler_the_remedy_is_named(t5x_lite: Shell) -> None:
    done = t5x_lite("plan", CONFIGS / "gpt3/1.3b.yaml", "--topology", "v5e:4x4")
    assert done.returncode == 2
    assert "pip install 't5x_lite[tpu]'" in done.stderr.strip().splitlines()[-1]


def test_a_topology_must_be_given(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", str(CONFIGS / "gpt3/1.3b.yaml")]) == 2
    assert "--topology" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.skipif(not LIBTPU, reason="needs the extra tpu: pip install -e '.[tpu]'")
@pytest.mark.parametrize(
    ("config", "overrides", "kernels"),
    [
        ("gpt3/125m", [*POD, "mesh.fsdp=4", "mesh.data=2"], 4),
        ("switch/base_8", [*POD, "mesh.expert=4", "mesh.fsdp=2", "mesh.data=1"], 0),
        ("mixtral/8x7b", [*POD, "model.kv_heads=2", "mesh.fsdp=8", "mesh.data=1"], 4),
    ],
)
def test_a_pod_is_compiled_here(t5x_lite: Shell, config: str, overrides: list[str], kernels: int) -> None:
    """Attention, and experts that are not sharded, are the TPU's kernels; sharded experts travel by all-to-all."""
    done = t5x_lite("plan", CONFIGS / f"{config}.yaml", "--topology", "v5e:2x4", "--json", *overrides)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["fits"]
    assert found["devices"] == 8
    assert found["compiled"]["kernel_calls"] >= kernels
    kinds = {(one["kind"], tuple(one["axes"])) for one in found["compiled"]["exchanges"]}
    assert found["compiled"]["involuntary_reshards"] == []
    assert ("all-to-all", ("expert",)) in kinds or config != "switch/base_8"
    # Weights, moments (AdamW: two, Adafactor: less) and a batch, cut into eight.
    assert found["compiled"]["arguments_bytes"] < 1.5 * (3 * 4 * found["parameters"] / 8) + 2**20
    assert 0 < found["modelled"]["mfu_causal_half"] <= found["modelled"]["mfu_causal_full"] < 1


def test_every_pod_config_names_its_pod_and_fills_it() -> None:
    """The chips of the topology are those of the mesh; slices are joined by the data axis."""
    for path in (CONFIGS / "pods").glob("*.yaml"):
        config = configuration.load(path)
        assert config.plan.topology, path
        chips = math.prod(int(side) for side in config.plan.topology.partition(":")[2].split("x")) * config.plan.slices
        mesh = config.mesh
        assert math.prod(getattr(mesh, axis) for axis in type(mesh).model_fields) == chips, path
        assert mesh.data % config.plan.slices == 0, path


@pytest.mark.slow
@pytest.mark.skipif(not LIBTPU, reason="needs the extra tpu: pip install -e '.[tpu]'")
@pytest.mark.parametrize("path", sorted((CONFIGS / "pods").glob("*.yaml")), ids=lambda path: path.stem)
def test_every_pod_config_fits_its_pod(path: Path) -> None:
    command = [sys.executable, "-m", "t5x_lite", "plan", str(path), "--json"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=1800)
    assert done.returncode == 0, done.stderr + done.stdout
    compiled = json.loads(done.stdout)["compiled"]
    # The TPU's own kernels are in the program: splash attention where no bias is added, megablox; or experts exchange.
    assert compiled["kernel_calls"] >= 2 or not path.stem.startswith(("gpt3", "mixtral"))
    exchanged = {one["kind"] for one in compiled["exchanges"] if "expert" in one["axes"]}
    assert "all-to-all" in exchanged or not path.stem.startswith("switch")


@pytest.mark.slow
@pytest.mark.skipif(not LIBTPU, reason="needs the extra tpu: pip install -e '.[tpu]'")
def test_what_does_not_fit_is_said_with_the_exit_code(t5x_lite: Shell) -> None:
    done = t5x_lite("plan", CONFIGS / "gpt3/13b.yaml", "--topology", "v5e:2x4", "--json", "mesh.fsdp=8", "mesh.data=1")
    assert done.returncode == 1
    found = json.loads(done.stdout)
    assert not found["fits"]
    assert found["largest"]
    assert found["compiled"]["memory_bytes"] > found["available_bytes"]


def test_gpus_are_planned_from_formulas(t5x_lite: Shell) -> None:
    """GPT-3 XL on 16 H100 as fsdp 16, by hand."""
    more = ("mesh.data=1", "mesh.fsdp=16", "model.remat=full", "--json")
    done = t5x_lite("plan", CONFIGS / "gpt3/1.3b.yaml", "--topology", "h100:16", *more)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert (found["devices"], found["fits"], found["compiled"]) == (16, True, {})
    modelled, parameters = found["modelled"], found["parameters"]
    # Parameters, two moments and gradients in float32, in sixteen parts; biases of heads and of the feed-forward are
    # whole everywhere: 24 · (3 · 2048 + 8192) values.
    whole = 24 * (3 * 2048 + 8192)
    assert modelled["gradients_bytes"] == 4 * ((parameters - whole) / 16 + whole)
    assert modelled["state_bytes"] == pytest.approx(3 * modelled["gradients_bytes"], rel=1e-6)
    # 32 rows of 2048 tokens of width 2048 in bfloat16 after each of 24 layers, and something for one layer; 8 GiB of
    # logits at once, and as many of their gradient.
    layers = modelled["activations_bytes"] - 2 * 8 * 2**30
    assert 1.0 < layers / (24 * 32 * 2048 * 2048 * 2) < 2.0
    # Weights in bfloat16 are gathered for the forward pass, its repetition and the backward pass; 15 parts of 16.
    sent = {one["kind"]: (one["axes"], one["link"], one["sent"]) for one in modelled["exchanges"]}
    assert sent["all-gather"] == (["fsdp"], "network", pytest.approx(3 * 2 * parameters * 15 / 16))
    assert sent["reduce-scatter"] == (["fsdp"], "network", pytest.approx(2 * parameters * 15 / 16))
    assert modelled["dcn_seconds"] == pytest.approx((4 * 2 * parameters * 15 / 16) / 50e9)
    # Full rematerialisation does a third more: no step is above 75 %.
    assert modelled["mfu_causal_half"] == pytest.approx(0.75)


def test_gradients_of_weights_that_experts_share_are_summed_over_them(t5x_lite: Shell) -> None:
    """Switch-Base on 4 × 2 devices: eight experts in each of twelve layers have 2 · 768 · 3072 weights apart."""
    more = ("mesh.data=1", "mesh.expert=4", "mesh.fsdp=2", "model.vocab=32128", "--json")
    done = t5x_lite("plan", CONFIGS / "switch/base_8.yaml", "--topology", "h100:8", *more)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    shared = found["parameters"] - 12 * 8 * 2 * 768 * 3072
    sent = {(one["kind"], *one["axes"]): one["sent"] for one in found["modelled"]["exchanges"]}
    assert sent["all-reduce", "expert"] == pytest.approx(2 * 2 * shared / 2 * 3 / 4)
    assert sent["reduce-scatter", "fsdp"] == pytest.approx(2 * (shared + (found["parameters"] - shared) / 4) / 2)


def test_gpus_that_are_too_few_are_said_so(t5x_lite: Shell) -> None:
    done = t5x_lite("plan", CONFIGS / "gpt3/175b.yaml", "--topology", "h100:8", "mesh.data=1", "mesh.fsdp=8")
    assert done.returncode == 1, done.stderr
    assert "does NOT fit" in done.stdout
    assert "modelled, not compiled" in done.stdout


@pytest.mark.slow
@pytest.mark.skipif(not LIBTPU, reason="needs the extra tpu: pip install -e '.[tpu]'")
def test_two_slices_exchange_gradients_over_the_network_alone(t5x_lite: Shell) -> None:
    more = (*POD, "mesh.data=2", "mesh.fsdp=4", "--slices", "2", "--json")
    done = t5x_lite("plan", CONFIGS / "gpt3/125m.yaml", "--topology", "v5e:2x2", *more)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    far = [one for one in found["compiled"]["exchanges"] if one["link"] == "DCN"]
    assert {(one["kind"], tuple(one["axes"])) for one in far} == {("all-reduce", ("data",))}
    # Each device's quarter of the gradients, in two or four bytes, to the other slice and back: n·2·(2-1)/2.
    assert 2 * found["parameters"] / 4 <= sum(one["sent"] for one in far) < 1.2 * 4 * found["parameters"] / 4
    assert found["modelled"]["dcn_seconds"] > 0
