"""The meshes that a search tries."""

import json
from pathlib import Path

import pytest

from t5x_lite import config as configuration
from t5x_lite.cli import main
from t5x_lite.planner.search import candidates, search
from tests.conftest import REPOSITORY, Shell

CONFIGS = REPOSITORY / "configs"


def test_a_search_tries_the_meshes_that_divide_pod_model_and_batch() -> None:
    """Twelve heads: tensor 1, 2 or 4. Eight experts. Six pairs of layers: 1 or 2 stages. 16 devices in all.

    The width of 768 has six rows of 128 values: fsdp takes all devices, or two and data the rest.
    """
    config = configuration.load(CONFIGS / "switch/base_8.yaml", ["train.batch_size=32"])
    expected = set()
    for tensor in (1, 2, 4):
        for expert in (1, 2, 4, 8):
            for pipeline in (1, 2):
                if 16 % (tensor * expert * pipeline) == 0:
                    shards = 16 // (tensor * expert * pipeline)
                    expected.add((1, shards, tensor, expert, pipeline))
                    if shards > 2:
                        expected.add((shards // 2, 2, tensor, expert, pipeline))
    meshes = [candidate.mesh for candidate in candidates(config, 16)]
    assert {(mesh.data, mesh.fsdp, mesh.tensor, mesh.expert, mesh.pipeline) for mesh in meshes} == expected


def test_a_search_shards_only_long_rows_over_context() -> None:
    overrides = ["train.seq_len=8192", "model.positions.learned.length=8192"]
    config = configuration.load(CONFIGS / "gpt3/1.3b.yaml", overrides)
    assert {candidate.mesh.context for candidate in candidates(config, 64)} == {1, 2, 4}


def test_a_search_tries_the_microbatches_that_divide_the_batch() -> None:
    """16 rows over 16 / tensor devices."""
    config = configuration.load(CONFIGS / "gpt3/125m.yaml", ["train.batch_size=16", "train.microbatches=1"])
    counted: dict[int, set[int]] = {}
    for candidate in candidates(config, 16):
        counted.setdefault(candidate.mesh.fsdp, set()).add(candidate.train.microbatches)
    assert counted[16] == {1}
    assert counted[8] == {1, 2}
    assert counted[4] == {1, 2, 4}


def test_a_search_tries_replicas_that_sum_their_gradients_once() -> None:
    """Only where there are replicas and microbatches, and not with experts, whose routers balance all rows."""
    overrides = ["train.batch_size=32", "train.microbatches=1"]
    tried = set()
    for candidate in candidates(configuration.load(CONFIGS / "gpt3/125m.yaml", overrides), 16):
        is_replicated = candidate.mesh.data > 1 and candidate.train.microbatches > 1
        tried.add((is_replicated, candidate.train.data_reduction))
    assert tried == {(True, "microbatch"), (True, "step"), (False, "microbatch")}
    with_experts = candidates(configuration.load(CONFIGS / "switch/base_8.yaml", overrides), 16)
    assert {candidate.train.data_reduction for candidate in with_experts} == {"microbatch"}


def test_a_search_leaves_out_meshes_that_a_stage_of_the_schedule_does_not_divide(tiny_config: Path) -> None:
    """A short stage has 8 rows, so that no more than 8 devices share its batch."""
    schedule = "data.schedule=[{name: short, batch_size: 8}, {name: long, after_steps: 6, batch_size: 64}]"
    overrides = [
        schedule,
        "train.seq_len=2048",
        "model.embed=512",
        "model.heads=8",
        "model.vocab=300",
        "model.positions=rotary",
    ]
    config = configuration.load(tiny_config, overrides)
    for plan in search(config, "h100:64"):
        assert 8 % (plan.mesh.get("data", 1) * plan.mesh.get("fsdp", 1) * plan.microbatches) == 0


@pytest.mark.slow
def test_of_equally_fast_candidates_the_one_that_sends_least_comes_first(t5x_lite: Shell) -> None:
    """GPT-3 XL on 16 H100: without recomputation it fits in microbatches; more of them gather weights more often."""
    process = t5x_lite(
        *(
            "plan",
            CONFIGS / "gpt3/1.3b.yaml",
            "--topology=h100:16",
            "--no-compile",
            "--search",
            "--json",
            "train.microbatches=1",
        )
    )
    assert process.returncode == 0, process.stderr
    plans = [plan for plan in json.loads(process.stdout)["candidates"] if plan["mesh"] == {"fsdp": 16}]
    best = plans[0]
    assert best["fits"]
    fastest = [plan for plan in plans if plan["fits"] and plan["remat"] in {"none", "dots"}]
    assert best["microbatches"] == min(plan["microbatches"] for plan in fastest) > 1
    # No product is computed again, so that only collectives could take time: of weights twice and of gradients once in
    # bfloat16, 15 of 16 shards, in each microbatch. The table of 2048 positions is looked up in shards: the states of
    # 32 rows of 2048 tokens are sent once in a step, and their gradients.
    assert best["modelled"]["mfu_causal_half"] == pytest.approx(1, abs=0.01)
    sent = sum(row["sent"] for row in best["modelled"]["collectives"])
    gathered = best["parameters"] - 2048 * 2048
    states = 2 * 32 * 2048 * 2048
    assert sent == pytest.approx((best["microbatches"] * 3 * 2 * gathered + 2 * states) * 15 / 16)


@pytest.mark.parametrize("options", [[], ["--search"]])
def test_a_config_without_a_vocabulary_is_planned_with_that_of_its_tokenizer(
    options: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["plan", "quickstart", "--topology", "h100:1", "--no-compile", "--json", *options]
    assert main(words) == 0
    report = json.loads(capsys.readouterr().out)
    plan = report["candidates"][0] if options else report
    assert plan["parameters"] == 2_557_888  # README, "Two commands"
    assert main([*words, "tokenizer={file: {path: none.model}}"]) == 2
    assert "plan needs `model.vocab`" in capsys.readouterr().err


def test_a_search_prints_one_json_object(tiny_config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["plan", str(tiny_config), "--topology", "h100:1", "--no-compile", "--search", "--json", "model.vocab=300"]
    assert main(words) == 0
    report = json.loads(capsys.readouterr().out)
    named = {"save_inner", "save_projections", "save_attention"}
    assert {candidate["remat"] for candidate in report["candidates"]} == {"none", "dots", "full", *named}
