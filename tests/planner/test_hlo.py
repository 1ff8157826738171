"""Collectives of a program whose bytes are counted by hand, and of programs that are compiled."""

import json
from pathlib import Path

import pytest

from t5x_lite.planner.hlo import find_collectives
from t5x_lite.planner.libtpu import involuntary_reshards
from tests.simulated_devices import run_on_eight_devices

UNROLLED = """HloModule step

%async_collective_fusion.4 (a: f32[8,16]) -> f32[64,16] {
  %a = f32[8,16]{1,0} parameter(0)
  ROOT %gather.1 = f32[64,16]{1,0} all-gather(%a), channel_id=1, replica_groups=[1,8]<=[8], dimensions={0}
}

%body (state: (f32[8,16], u32[])) -> (f32[8,16], u32[]) {
  %state = (f32[8,16]{1,0}, u32[]) parameter(0)
  %two = u32[]{:T(128)} constant(2)
  %piece = f32[8,16]{1,0} get-tuple-element(%state), index=0
  %overlapped = f32[64,16]{1,0} fusion(%piece), kind=kCustom, calls=%async_collective_fusion.4
  %kernel = f32[8,16]{1,0} custom-call(%piece), custom_call_target="tpu_custom_call", attributes={kernel={
"xprof_metadata": "attention"
}}, metadata={op_name="step/kernel"}
  %first_permute = f32[8,16]{1,0} collective-permute(%piece), channel_id=2, source_target_pairs={RING}
  %second_permute = f32[8,16]{1,0} collective-permute(%first_permute), channel_id=3, source_target_pairs={RING}
  %count = u32[]{:T(128)} get-tuple-element(%state), index=1
  %next = u32[]{:T(128)} add(%count, %two), metadata={op_name="step/add"}
  ROOT %out = (f32[8,16]{1,0}, u32[]) tuple(%second_permute, %next)
}

%condition (state.1: (f32[8,16], u32[])) -> pred[] {
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
  %loop = (f32[8,16]{1,0}, u32[]) while(%init), condition=%condition, body=%body
  %async-collective-start.1 = f32[64,16]{1,0} fusion(%x), kind=kCustom, calls=%start_gather
  ROOT %async-collective-done.1 = f32[64,16]{1,0} fusion(%async-collective-start.1), kind=kCustom, calls=%end_gather
}

%start_gather (b: f32[8,16]) -> f32[64,16] {
  %b = f32[8,16]{1,0} parameter(0)
  ROOT %gather.2 = f32[64,16]{1,0} all-gather(%b), channel_id=1, replica_groups=[1,8]<=[8], dimensions={0}
}
""".replace("RING", "{0,1},{1,2},{2,3},{3,4},{4,5},{5,6},{6,7},{7,0}")


def test_an_unrolled_loop_and_a_collective_spread_over_it_count_once() -> None:
    """Four iterations of two permutes, and one gather whose channel also appears in the loop that it overlaps with.

    Two sums with one channel in one computation, as `shard_map` writes them, are two. A kernel has lines of its own.
    """
    collectives = find_collectives(UNROLLED, {"fsdp": 8})
    by_kind = {collective.kind: (collective.times, collective.sent) for collective in collectives}
    shard_bytes = 8 * 16 * 4
    assert by_kind == {
        "collective-permute": (8, 8 * shard_bytes),
        "all-gather": (1, 7 * shard_bytes),
        "reduce-scatter": (2, 2 * 7 * shard_bytes / 8),
    }


PEELED = """HloModule step

%all-reduce-scatter.1 (a: f32[64,16]) -> f32[8,16] {
  %a = f32[64,16]{1,0} parameter(0)
  %sum = f32[64,16]{1,0} all-reduce(%a), channel_id=2, replica_groups=[1,8]<=[8], to_apply=%add
  ROOT %part = f32[8,16]{1,0} dynamic-slice(%sum)
}

%all-reduce-scatter.2 (b: f32[64,16]) -> f32[8,16] {
  %b = f32[64,16]{1,0} parameter(0)
  %sum.1 = f32[64,16]{1,0} all-reduce(%b), channel_id=2, replica_groups=[1,8]<=[8], to_apply=%add
  ROOT %part.1 = f32[8,16]{1,0} dynamic-slice(%sum.1)
}

%body (state: (f32[8,16], u32[])) -> (f32[8,16], u32[]) {
  %state = (f32[8,16]{1,0}, u32[]) parameter(0)
  %one = u32[] constant(1)
  %piece = f32[8,16]{1,0} get-tuple-element(%state), index=0
  %gathered = f32[64,16]{1,0} all-gather(%piece), channel_id=1, replica_groups=[1,8]<=[8], dimensions={0}
  %scattered = f32[8,16]{1,0} fusion(%gathered), kind=kCustom, calls=%all-reduce-scatter.1
  %count = u32[] get-tuple-element(%state), index=1
  %next = u32[] add(%count, %one)
  ROOT %out = (f32[8,16]{1,0}, u32[]) tuple(%scattered, %next)
}

%condition (state.1: (f32[8,16], u32[])) -> pred[] {
  %state.1 = (f32[8,16]{1,0}, u32[]) parameter(0)
  %three = u32[] constant(3)
  %count.1 = u32[] get-tuple-element(%state.1), index=1
  ROOT %compare.1 = pred[] compare(%count.1, %three), direction=LT
}

ENTRY %main (x: f32[8,16]) -> f32[8,16] {
  %x = f32[8,16]{1,0} parameter(0)
  %zero = u32[] constant(0)
  %init = (f32[8,16]{1,0}, u32[]) tuple(%x, %zero)
  %loop = (f32[8,16]{1,0}, u32[]) while(%init), condition=%condition, body=%body
  %last = f32[8,16]{1,0} get-tuple-element(%loop), index=0
  %gathered.1 = f32[64,16]{1,0} all-gather(%last), channel_id=1, replica_groups=[1,8]<=[8], dimensions={0}
  ROOT %scattered.1 = f32[8,16]{1,0} fusion(%gathered.1), kind=kCustom, calls=%all-reduce-scatter.2
}
"""


def test_an_iteration_that_is_taken_out_of_a_loop_counts_beside_the_others() -> None:
    """Four iterations, three of them in the loop, whose channels the fourth has too."""
    by_kind = {collective.kind: collective for collective in find_collectives(PEELED, {"fsdp": 8})}
    sent = 4 * 7 * 8 * 16 * 4
    assert (by_kind["all-gather"].times, by_kind["all-gather"].sent) == (4, sent)
    assert (by_kind["reduce-scatter"].times, by_kind["reduce-scatter"].sent) == (4, sent)


def test_a_spread_collective_of_an_iteration_that_is_taken_out_counts_beside_the_others() -> None:
    """The gathers of the four iterations have one channel, and start in fusions of their own."""
    gather = "all-gather(%{}), channel_id=1, replica_groups=[1,8]<=[8], dimensions={{0}}"
    parts = ""
    program = PEELED
    for number, operand in enumerate(["piece", "last"]):
        part = f"f32[64,16]{{1,0}} {gather.format('p')}"
        for name in (f"start_gather.{number}", f"async_collective_fusion.{number}"):
            parts += f"\n%{name} (p: f32[8,16]) -> f32[64,16] {{\n  %p = f32[8,16]{{1,0}} parameter(0)\n"
            parts += f"  ROOT %part = {part}\n}}\n"
        start = f"fusion(%{operand}), kind=kCustom, calls=%start_gather.{number}\n"
        start += f"  %fused.{number} = f32[64,16]{{1,0}} fusion(%{operand}), calls=%async_collective_fusion.{number}"
        program = program.replace(gather.format(operand), start)
    program = program.replace("%gathered", "%async-collective-start")
    collectives = find_collectives(program + parts, {"fsdp": 8})
    gathers = next(collective for collective in collectives if collective.kind == "all-gather")
    sent = 4 * 7 * 8 * 16 * 4
    assert (gathers.times, gathers.sent, gathers.overlapped) == (4, sent, sent)


def test_a_fused_collective_without_a_start_counts() -> None:
    program = UNROLLED.replace("async-collective-start", "another-fusion")
    gathers = [collective for collective in find_collectives(program, {"fsdp": 8}) if collective.kind == "all-gather"]
    # Four iterations of the loop, and the one beside it.
    assert [collective.times for collective in gathers] == [5]


FURTHER_ROUNDS = """HloModule step

%round (state: (f32[8,16], s32[], s32[])) -> (f32[8,16], s32[], s32[]) {
  %state = (f32[8,16]{1,0}, s32[], s32[]) parameter(0)
  %rows = f32[8,16]{1,0} get-tuple-element(%state), index=0
  %number = s32[] get-tuple-element(%state), index=1
  %rounds = s32[] get-tuple-element(%state), index=2
  %one = s32[] constant(1)
  %next = s32[] add(%number, %one)
  %sent.1 = f32[8,16]{1,0} all-to-all(%rows), channel_id=2, replica_groups=[1,8]<=[8], dimensions={0}
  ROOT %out = (f32[8,16]{1,0}, s32[], s32[]) tuple(%sent.1, %next, %rounds)
}

%is_needed (state.1: (f32[8,16], s32[], s32[])) -> pred[] {
  %state.1 = (f32[8,16]{1,0}, s32[], s32[]) parameter(0)
  %number.1 = s32[] get-tuple-element(%state.1), index=1
  %rounds.1 = s32[] get-tuple-element(%state.1), index=2
  ROOT %compare.1 = pred[] compare(%number.1, %rounds.1), direction=LT
}

ENTRY %main (x: f32[8,16], needed: s32[]) -> (f32[8,16], s32[], s32[]) {
  %x = f32[8,16]{1,0} parameter(0)
  %needed = s32[] parameter(1)
  %one.1 = s32[] constant(1)
  %sent = f32[8,16]{1,0} all-to-all(%x), channel_id=1, replica_groups=[1,8]<=[8], dimensions={0}
  %init = (f32[8,16]{1,0}, s32[], s32[]) tuple(%sent, %one.1, %needed)
  ROOT %more = (f32[8,16]{1,0}, s32[], s32[]) while(%init), condition=%is_needed, body=%round
}
"""


def test_a_loop_that_a_batch_may_not_need_does_not_count() -> None:
    (collective,) = find_collectives(FURTHER_ROUNDS, {"expert": 8})
    assert (collective.times, collective.sent) == (1, 8 * 16 * 4 * 7 / 8)


SCHEDULED = """HloModule step, is_scheduled=true

%async_collective_fusion.3 (a: f32[8,16]) -> f32[64,16] {
  %a = f32[8,16]{1,0} parameter(0)
  ROOT %gather.1 = f32[64,16]{1,0} all-gather(%a), channel_id=1, replica_groups=[1,8]<=[8], dimensions={0}
}

%start_gather (b: f32[8,16]) -> f32[64,16] {
  %b = f32[8,16]{1,0} parameter(0)
  ROOT %gather.2 = f32[64,16]{1,0} all-gather(%b), channel_id=1, replica_groups=[1,8]<=[8], dimensions={0}
}

ENTRY %main (x: f32[8,16]) -> f32[64,16] {
  %x = f32[8,16]{1,0} parameter(0)
  %first-start.1 = (f32[8,16]{1,0}, f32[8,16]{1,0}) collective-permute-start(%x), channel_id=2, PAIRS
  %product = f32[8,16]{1,0} fusion(%x), kind=kOutput, calls=%multiply
  %first-done.1 = f32[8,16]{1,0} collective-permute-done(%first-start.1)
  %second-start.1 = (f32[8,16]{1,0}, f32[8,16]{1,0}) collective-permute-start(%x), channel_id=3, PAIRS
  %copied = f32[8,16]{1,0} copy(%x)
  %second-done.1 = f32[8,16]{1,0} collective-permute-done(%second-start.1)
  %late = f32[8,16]{1,0} fusion(%x), kind=kOutput, calls=%multiply
  %async-collective-start.1 = f32[64,16]{1,0} fusion(%x), kind=kCustom, calls=%start_gather
  %fusion.3 = f32[64,16]{1,0} fusion(%x), kind=kCustom, calls=%async_collective_fusion.3
  ROOT %gather.9 = f32[64,16]{1,0} all-gather(%x), channel_id=5, replica_groups=[1,8]<=[8], dimensions={0}
}
""".replace("PAIRS", "source_target_pairs={{0,1},{1,2},{2,3},{3,4},{4,5},{5,6},{6,7},{7,0}}")


def test_collectives_are_overlapped_where_work_stands_between_start_and_done() -> None:
    """The first of two permutes has a product before its end. One of two gathers is spread over a fusion with work."""
    shard_bytes = 8 * 16 * 4
    by_kind = {collective.kind: collective for collective in find_collectives(SCHEDULED, {"fsdp": 8})}
    permutes = by_kind["collective-permute"]
    assert (permutes.sent, permutes.overlapped) == (2 * shard_bytes, shard_bytes)
    gathers = by_kind["all-gather"]
    assert (gathers.sent, gathers.overlapped) == (2 * 7 * shard_bytes, 7 * shard_bytes)


OF_ONE_SLICE = """HloModule step

ENTRY %main (x: f32[8,16]) -> f32[8,16] {
  %x = f32[8,16]{1,0} parameter(0)
  %after-all = token[] after-all()
  %sum = f32[8,16]{1,0} all-reduce(%x), channel_id=1, replica_groups={{0,2},{1,3}}, to_apply=%add
  %send = (bf16[4,16]{1,0}, u32[], token[]) send(%part, %after-all), channel_id=2, is_host_transfer=true, frontend_attributes={_xla_host_transfer_handler_name="xla_megascale_runtime",_xla_megascale_target="{1,2}x{0:3}",_xla_megascale_transfer_type="ALL_REDUCE"}
  ROOT %copy = f32[8,16]{1,0} copy(%sum)
}
"""  # noqa: E501  # a line of a program


def test_a_sum_over_slices_is_a_sum_in_each_slice_and_one_of_a_share_between_them() -> None:
    """The form of what libtpu 0.0.42 compiles for 2 slices of 4 devices: a program for the devices of one slice."""
    inside, between = find_collectives(OF_ONE_SLICE, {"data": 4, "fsdp": 2}, slices=2)
    assert (inside.kind, inside.axes, inside.between_slices) == ("all-reduce", ("data",), False)
    assert inside.sent == 2 * (8 * 16 * 4) / 2
    assert (between.kind, between.axes, between.between_slices) == ("all-reduce", ("data",), True)
    assert between.sent == 2 * (4 * 16 * 2) / 2


def test_collectives_of_compiled_programs_are_those_of_their_shardings() -> None:
    """A ring of s devices sends n·(s-1)/s bytes of a gathered array of n bytes, and twice that of a summed array."""
    process = run_on_eight_devices(Path(__file__).with_name("compiled_collectives.py"))
    assert process.returncode == 0, process.stderr
    collectives = json.loads(process.stdout)
    array_bytes = 64 * 32 * 4
    assert collectives["gathered over fsdp"] == [
        {
            "kind": "all-gather",
            "axes": ["fsdp"],
            "times": 1,
            "sent": array_bytes / 2,
            "overlapped": 0.0,
            "between_slices": False,
        },
    ]
    assert collectives["gathered over data and tensor"] == [
        {
            "kind": "all-gather",
            "axes": ["data", "tensor"],
            "times": 1,
            "sent": array_bytes * 3 / 4,
            "overlapped": 0.0,
            "between_slices": False,
        },
    ]
    assert collectives["summed in a loop"] == [
        {
            "kind": "all-reduce",
            "axes": ["tensor"],
            "times": 5,
            "sent": 5 * 2 * (16 * 32 * 4) / 2,
            "overlapped": 0.0,
            "between_slices": False,
        },
    ]
    assert collectives["swapped"] == [
        {
            "kind": "all-to-all",
            "axes": ["fsdp"],
            "times": 1,
            "sent": array_bytes / 2 / 2,
            "overlapped": 0.0,
            "between_slices": False,
        },
    ]


LOGGED = (
    "W1122 03:22:59.468419    2515 spmd_partitioner.cc:654] [SPMD] Involuntary full rematerialization. The compiler "
    "cannot go from sharding {devices=[2,2,2]<=[8] last_tile_dim_replicate} to {devices=[8,1]<=[8]} efficiently for "
    'HLO operation %param = f32[32,32]{1,0} parameter(0), metadata={op_name="t"}. As the last resort, SPMD will'
)


def test_involuntary_reshards_are_read_from_the_log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The line is what libtpu 0.0.42 wrote about an array sharded 2 x 2 that was to be sharded into 8 rows."""
    monkeypatch.setenv("TPU_LOG_DIR", str(tmp_path))
    assert involuntary_reshards() == []
    (tmp_path / "tpu_driver.host.root.log.WARNING.20261122-032152.1").write_text(f"Log file created\n{LOGGED}\n")
    assert involuntary_reshards() == ["f32[32,32] in t"]


COMBINED = """HloModule step

ENTRY %main (x: f32[8,16]) -> f32[64,16] {
  %x = f32[8,16]{1,0} parameter(0)
  %y = bf16[4]{0} parameter(1)
  %gather = ((f32[8,16]{1,0}, bf16[4]{0}), (f32[64,16]{1,0}, bf16[32]{0})) all-gather-start(%x, %y), channel_id=1, replica_groups={{0,1,2,3,4,5,6,7}}, dimensions={0}
  %scatter = ((f32[8,16]{1,0}, f32[8]{0}), (f32[1,16]{1,0}, f32[1]{0})) reduce-scatter-start(%x, %z), channel_id=2, replica_groups={{0,1,2,3,4,5,6,7}}, dimensions={0}, to_apply=%add
  %sum = (f32[8,16]{1,0}, f32[8]{0}) all-reduce-start(%x, %z), channel_id=3, replica_groups={{0,1,2,3,4,5,6,7}}, to_apply=%add
  %exchange = ((f8e4m3fn[8,16]{1,0}), f8e4m3fn[8,16]{1,0}) all-to-all-start(%w), channel_id=4, replica_groups={{0,1,2,3,4,5,6,7}}, dimensions={0}
  %ragged = ((bf16[4,8]{1,0}, bf16[16,8]{1,0}, s64[8]{0}, s64[8]{0}, s64[8]{0}, s64[8]{0}), bf16[16,8]{1,0}) ragged-all-to-all-start(%v, %o), channel_id=5, replica_groups={{0,1,2,3,4,5,6,7}}
  ROOT %done = f32[64,16]{1,0} all-gather-done(%gather)
}
"""  # noqa: E501  # lines of a program


def test_collectives_of_several_arrays_send_all_of_them() -> None:
    """The forms in which the compiler for GPUs joins collectives and starts them."""
    sent = {collective.kind: collective.sent for collective in find_collectives(COMBINED, {"fsdp": 8})}
    assert sent == {
        "all-gather": (4 * 64 * 16 + 2 * 32) * 7 / 8,
        "reduce-scatter": (4 * 8 * 16 + 4 * 8) * 7 / 8,
        "all-reduce": 2 * (4 * 8 * 16 + 4 * 8) * 7 / 8,
        "all-to-all": 8 * 16 * 7 / 8,
        "ragged-all-to-all": 2 * 16 * 8 * 7 / 8,
    }
