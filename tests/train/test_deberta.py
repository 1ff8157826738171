"""A run of DeBERTa-v3's kind: trained, stopped and resumed, exported, and adapted to a task."""

import json
from pathlib import Path

import numpy as np
import pytest

import t5x_lite
from t5x_lite.cli import main
from t5x_lite.trees import flatten_names
from tests.conftest import lines
from tests.train.whole_runs import assert_same_weights, train

CONTROLS = "tokenizer.unigram.controls=['[CLS]','[SEP]','[MASK]']"
SETTINGS = (
    "model.family=electra",
    "model.layers=2",
    "model.embed=16",
    "model.outputs=[detection]",
    "model.detection_context=true",
    "model.generator={layers: 1, embed: 16, heads: 2, embedding_sharing: gradient_disentangled}",
    "model.positions={disentangled: {distance: 16, buckets: 8, shared_projections: true, norm: true}}",
    "model.norm_place=post",
    "model.embedding_norm=true",
    CONTROLS,
    "objective=replaced_token",
    "data.packing=stream",
    "data.separate_documents=false",
    "checkpoint.every_steps=2",
    "optimizer.schedule=constant",
)
TABLES = ("discriminator.tokens.weight", "discriminator.tokens.other.weight")


@pytest.mark.slow
def test_a_run_resumes_to_the_bit_and_its_discriminator_is_exported_and_adapted(
    tiny_config: Path, tmp_path: Path
) -> None:
    whole = tmp_path / "whole"
    resumed = tmp_path / "resumed"
    assert train(tiny_config, whole, *SETTINGS, "train.steps=4") == 0
    for steps in (2, 4):
        assert train(tiny_config, resumed, *SETTINGS, f"train.steps={steps}", "train.allow_changed_config=true") == 0
    assert_same_weights(resumed, whole)
    assert {"loss", "detection_loss", "detection_accuracy"} <= lines(whole)[-1].keys()

    model = t5x_lite.load(whole)
    weights = flatten_names(model.params)
    assert all(np.asarray(weights[table]).any() for table in TABLES)  # the difference, which began with zero, too
    tokens = np.arange(5, 15)
    scores = model.logits(tokens)
    assert main(["export", "hf", str(whole), str(tmp_path / "hf")]) == 0
    exported = json.loads((tmp_path / "hf/config.json").read_text())
    assert (exported["model_type"], exported["architectures"]) == ("deberta-v2", ["DebertaV2Model"])
    assert main(["import", "hf", str(tmp_path / "hf"), str(tmp_path / "imported")]) == 0
    np.testing.assert_allclose(t5x_lite.load(tmp_path / "imported").logits(tokens), scores, atol=1e-6)

    (tmp_path / "task.tsv").write_text("text\tlabel\n" + "the fox\t0\na dog\t1\n" * 8)
    task = {
        "about": "two texts",
        "columns": {"text": "text", "label": "label"},
        "objective": {"classify": {"labels": ["0", "1"], "transform": True, "activation": "gelu"}},
        "metrics": ["accuracy"],
    }
    (tmp_path / "pairs.yaml").write_text(json.dumps(task))
    config = {
        "adapt": {"from": str(whole), "method": "full"},
        "tasks": str(tmp_path / "pairs.yaml"),
        "data": {"files": str(tmp_path / "task.tsv"), "validation_files": str(tmp_path / "task.tsv")},
        "train": {"steps": 2, "batch_size": 4, "seq_len": 16},
    }
    (tmp_path / "task_config.yaml").write_text(json.dumps(config))
    assert train(tmp_path / "task_config.yaml", tmp_path / "adapted") == 0
    adapted = t5x_lite.load(tmp_path / "adapted")
    assert adapted.config.model.head is not None
    table = np.asarray(flatten_names(adapted.params)["tokens.weight"])
    np.testing.assert_allclose(table, sum(np.asarray(weights[name]) for name in TABLES), atol=1e-2)
