"""Times of a step by the TPU compiler's cost model, against hand counts and the chips' published rates."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from t5x_lite.parallel.chips import CHIPS
from t5x_lite.planner.compiler_estimate import estimated_cycles
from tests.conftest import Shell
from tests.planner.test_plan import SMALL, needs_libtpu, plan

PROGRAM = """HloModule step

%fused_product (a: bf16[8,16]) -> bf16[8,16] {
  ROOT %a = bf16[8,16]{1,0} parameter(0)
}

%body (state: (bf16[8,16], s32[])) -> (bf16[8,16], s32[]) {
  %state = (bf16[8,16]{1,0}, s32[]) parameter(0)
  %x = bf16[8,16]{1,0} get-tuple-element(%state), index=0
  %product = bf16[8,16]{1,0} fusion(%x), calls=%fused_product, backend_config={"estimated_cycles":"100"}
  %copy = bf16[8,16]{1,0} copy(%product), backend_config={"estimated_cycles":"7"}
  %count = s32[] get-tuple-element(%state), index=1
  ROOT %result = (bf16[8,16]{1,0}, s32[]) tuple(%copy, %count)
}

%condition (state: (bf16[8,16], s32[])) -> pred[] {
  %state = (bf16[8,16]{1,0}, s32[]) parameter(0)
  ROOT %go = pred[] constant(true)
}

ENTRY %main (x: bf16[8,16]) -> bf16[8,16] {
  %x = bf16[8,16]{1,0} parameter(0)
  %first = bf16[8,16]{1,0} fusion(%x), calls=%fused_product, backend_config={"estimated_cycles":"50"}
  %zero = s32[] constant(0)
  %start = (bf16[8,16]{1,0}, s32[]) tuple(%first, %zero)
  %loop = (bf16[8,16]{1,0}, s32[]) while(%start), condition=%condition, body=%body, backend_config={"known_trip_count":{"n":"3"}}
  ROOT %out = bf16[8,16]{1,0} get-tuple-element(%loop), index=0
}
"""  # noqa: E501


def test_a_loop_counts_as_often_as_it_runs() -> None:
    assert estimated_cycles(PROGRAM) == 50 + 3 * (100 + 7)


def test_a_program_without_estimates_has_none() -> None:
    assert estimated_cycles(PROGRAM.replace("estimated_cycles", "other")) is None


@pytest.mark.slow
@needs_libtpu
@pytest.mark.parametrize(
    ("topology", "chip"), [("v4:2x2x1", "TPU v4"), ("v5e:2x2", "TPU v5 lite"), ("v5p:2x2x1", "TPU v5")]
)
def test_estimates_are_a_little_below_the_published_rates(topology: str, chip: str) -> None:
    """A large product reaches 85 to 95 % of the FLOP/s, and a pass over memory 70 to 85 % of the bytes per second."""
    size = 8192
    array_bytes = 2**30
    script = Path(__file__).with_name("product_cycles.py")
    command = [sys.executable, str(script), topology, str(size), str(array_bytes)]
    process = subprocess.run(command, capture_output=True, text=True, check=False, timeout=600)
    assert process.returncode == 0, process.stderr
    cycles = json.loads(process.stdout)
    figures = CHIPS[chip]
    assert figures.clock is not None
    assert 0.85 < 2 * size**3 / (cycles["product"] / figures.clock) / figures.flops < 0.95
    assert 0.7 < 2 * array_bytes / (cycles["pass"] / figures.clock) / figures.memory_rate < 0.85


@pytest.mark.slow
@needs_libtpu
def test_a_plan_for_tpus_has_the_time_that_the_compiler_estimates(t5x_lite: Shell) -> None:
    options = (*SMALL, "model.pattern=[{attention: dense}]", "mesh.data=1", "mesh.fsdp=4")
    report = plan(t5x_lite, "gpt3/125m", "v5e:2x2", *options)
    estimate = report["estimate"]
    parts = ("instruction_seconds", "kernel_seconds", "exposed_seconds")
    assert estimate["step_seconds"] == pytest.approx(sum(estimate[part] for part in parts))
    assert estimate["instruction_seconds"] == report["compiled"]["estimated_cycles"] / 1.5e9
    # Nine products of queries or values with keys (two forward, three for the gradients of queries, four for those of
    # keys and values), of which causal attention computes half: 2 layers, 16 rows of 256 tokens on 4 chips, 2 heads of
    # 128 channels.
    pairs = 2 * 16 / 4 * 256 * 256
    assert estimate["kernel_seconds"] == pytest.approx(9 * 2 * pairs / 2 * 2 * 128 / 197e12)
    assert estimate["step_seconds"] > report["modelled"]["compute_seconds"]
    for mfu in ("mfu_causal_half", "mfu_causal_full"):
        assert estimate[mfu] == pytest.approx(
            report["modelled"][mfu] * report["modelled"]["step_seconds"] / estimate["step_seconds"]
        )


@pytest.mark.slow
@needs_libtpu
def test_whole_products_take_less_time_than_loops_of_parts_that_hide_gathers(t5x_lite: Shell) -> None:
    """By itself the compiler makes loops of products and permutes on sixteen chips."""
    options = ("model.layers=2", "model.vocab=512", "train.batch_size=64", "mesh.data=1", "mesh.fsdp=16")
    loops = plan(t5x_lite, "gpt3/350m", "v5e:4x4", *options, "train.compiler_options={}")
    whole = plan(t5x_lite, "gpt3/350m", "v5e:4x4", *options)
    assert "collective-permute" in {row["kind"] for row in loops["compiled"]["collectives"]}
    assert "collective-permute" not in {row["kind"] for row in whole["compiled"]["collectives"]}
    assert whole["estimate"]["step_seconds"] < 0.8 * loops["estimate"]["step_seconds"]
