"""Tiny models of published families train, resume to the bit, generate, and come back from an export."""

import shutil
from pathlib import Path

import numpy as np
import pytest

import t5x_lite
from t5x_lite.cli import main
from t5x_lite.trees import flatten_names
from tests.conftest import lines

DELTA = "{mixer: {gated_deltanet: {heads: 4, key_heads: 2, key_dim: 6, value_dim: 5, chunk: 8}}}"
GLU = "{glu: {activation: silu}}"
ROUTED = f"experts: 4, mlp: 8, router: {{top_k: {{k: 2}}}}, dispatch: dropless, expert: {GLU}"
MOE = f"{{{ROUTED}, shared: 2, shared_gate: true}}"
NORM = "{rmsnorm: {unit_offset: true}}"
FAMILIES = {
    "qwen3_next": (
        "model.layers=4",
        f"model.pattern=[{DELTA},{DELTA},{DELTA},{{}}]",
        f"model.feedforward={{moe: {MOE}}}",
        "model.positions={rotary: {share: 0.25}}",
        "model.head_dim=16",
        "model.kv_heads=2",
        "model.query_key_norm=head",
        "model.attention_output_gate=true",
    ),
    "t5gemma": (
        "objective=prefix",
        "model.family=encoder_decoder",
        "model.layers=2",
        "model.decoder_embedding=separate",
        "model.start_token=2",
        "model.pattern=[{attention: {local: {window: 5}}},{}]",
        "model.decoder_attention=[{local: {window: 4}},dense]",
        "model.feedforward={glu: {activation: gelu_tanh}}",
        "model.positions=rotary",
        "model.norm_place=sandwich",
        "model.attention_softcap=50",
        "model.logit_softcap=30",
        "model.scale_embedding=true",
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", FAMILIES)
def test_a_run_resumes_to_the_bit_generates_and_comes_back_from_an_export(
    name: str, tiny_config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    overrides = [*FAMILIES[name], "model.bias=false", f"model.norm={NORM}", "train.steps=2"]
    train = ["train", str(tiny_config), f"run_dir={run}", *overrides, "checkpoint.every_steps=1"]
    assert main(train) == 0
    first = {line["step"]: line["loss"] for line in lines(run) if "loss" in line}
    shutil.rmtree(run / "checkpoints/2")
    assert main(train) == 0
    assert "resumed from step 1" in capsys.readouterr().err
    assert {line["step"]: line["loss"] for line in lines(run) if "loss" in line} == first
    model = t5x_lite.load(run)
    text = model.generate(["the quick"], tokens=4, temperature=0.0)
    assert main(["export", "hf", str(run), str(tmp_path / "theirs")]) == 0
    assert f'"model_type": "{name}"' in (tmp_path / "theirs/config.json").read_text()
    assert main(["import", "hf", str(tmp_path / "theirs"), str(tmp_path / "again")]) == 0
    again = t5x_lite.load(tmp_path / "again")
    assert again.generate(["the quick"], tokens=4, temperature=0.0) == text
    weights = flatten_names(model.params)
    assert weights.keys() == flatten_names(again.params).keys()
    for key, value in flatten_names(again.params).items():
        np.testing.assert_array_equal(value, weights[key], err_msg=key)
