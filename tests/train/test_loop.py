"""Whole runs without disturbances: their files, their repetition, and settings of the loop."""

import subprocess
from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import jax
import numpy as np
import pytest

from t5x_lite import config as configuration
from t5x_lite.cli import main
from t5x_lite.data.training_data import ExampleSequence
from t5x_lite.data.vocabulary import load_or_train_tokenizer
from t5x_lite.parallel.mesh import make_mesh
from t5x_lite.run_data import open_run_data
from t5x_lite.run_dir import new_run, open_run, with_vocab
from t5x_lite.train.display import Display
from t5x_lite.train.loop import Trainer
from t5x_lite.train.state_store import StateStore
from t5x_lite.train.steps import make_steps
from tests.conftest import REPOSITORY, lines
from tests.simulated_devices import simulated
from tests.train.whole_runs import assert_same_weights, train, train_command


def test_a_run_directory_has_the_documented_files_and_metrics(tiny_run: Path) -> None:
    names = {path.name for path in tiny_run.iterdir()}
    assert {"config.yaml", "tokenizer.model", "metrics.jsonl", "tensorboard", "checkpoints", "report.png"} <= names
    records = lines(tiny_run)
    assert [record["step"] for record in records] == list(range(1, 13))
    metrics = {"loss", "tokens", "tokens_per_second", "mfu", "learning_rate", "grad_norm", "data_wait_fraction"}
    for record in records:
        assert metrics <= record.keys()
    assert [record["step"] for record in records if "eval/loss" in record] == [6, 12]
    assert records[-1]["tokens"] == 12 * 4 * 16
    assert records[-1]["loss"] < records[0]["loss"]
    assert open_run(tiny_run).checkpoints.steps() == [8, 12]


def test_training_a_complete_run_again_says_so_and_changes_nothing(
    tiny_run: Path, tiny_config: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    metrics_before = (tiny_run / "metrics.jsonl").read_bytes()
    assert train(tiny_config, tiny_run) == 0
    assert "complete: step 12 of 12" in capfd.readouterr().err
    assert (tiny_run / "metrics.jsonl").read_bytes() == metrics_before


def test_the_config_of_a_run_repeats_it_bit_for_bit(tiny_run: Path, tmp_path: Path) -> None:
    assert train(tiny_run / "config.yaml", tmp_path / "repeated") == 0
    assert_same_weights(tmp_path / "repeated", tiny_run)


def test_a_changed_config_is_refused_in_an_existing_run_directory_unless_it_is_allowed(
    tiny_run: Path, tiny_config: Path, copy_of_tiny_run: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert train(tiny_config, copy_of_tiny_run, "train.seed=7", "train.steps=14") == 2
    errors = capfd.readouterr().err
    assert "train.seed was 0, is 7; train.steps was 12, is 14" in errors
    assert "train.allow_changed_config=true" in errors
    assert train(tiny_config, copy_of_tiny_run, "train.steps=14", "train.allow_changed_config=true") == 0
    assert lines(copy_of_tiny_run)[-1]["step"] == 14


def test_losses_that_are_not_finite_end_the_run_with_their_reason(
    tiny_config: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    overrides = ("optimizer.learning_rate=1e30", "train.steps=60", "train.nonfinite_limit=3")
    exit_code = train(tiny_config, tmp_path, *overrides)
    assert exit_code == 3
    reason = "not finite for 3 steps in a row (train.nonfinite_limit); lower optimizer.learning_rate"
    assert reason in capfd.readouterr().err
    assert lines(tmp_path)[-1]["skipped_in_a_row"] == 3
    note = tmp_path / "diverged.txt"
    assert reason in note.read_text()
    allowed = ("optimizer.learning_rate=1e-4", "train.steps=2", "train.allow_changed_config=true")
    assert train(tiny_config, tmp_path, *allowed) == 0
    assert not note.exists()


def test_a_branch_off_a_run_that_goes_on_needs_the_step(
    copy_of_tiny_run: Path, tiny_config: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    config = copy_of_tiny_run / "config.yaml"
    config.write_text(config.read_text().replace("steps: 12\n", "steps: 40\n"))
    assert train(tiny_config, tmp_path / "branch", f"branch.from={copy_of_tiny_run}", "train.steps=14") == 2
    assert "is at step 12 of 40" in capfd.readouterr().err
    named = (f"branch={{from: {copy_of_tiny_run}, step: 12}}", "train.steps=14")
    assert train(tiny_config, tmp_path / "branch", *named, "train.allow_changed_config=true") == 0
    assert [record["step"] for record in lines(tmp_path / "branch")] == [13, 14]


def test_a_branch_off_a_run_of_another_config_is_refused_before_data_are_opened(
    tiny_run: Path, tiny_config: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """The glob matches nothing: opening the data would be another error."""
    branch = (f"branch={{from: {tiny_run}, step: 8}}", "train.steps=14")
    assert train(tiny_config, tmp_path / "branch", *branch, f"data.files={tmp_path}/none*", "train.seed=1") == 2
    assert "is the run of another config: data.files is" in capfd.readouterr().err
    assert train(tiny_config, tmp_path / "branch", *branch[:1], "train.steps=8") == 2
    assert "step 8 leaves nothing of train.steps 8" in capfd.readouterr().err
    assert not (tmp_path / "branch" / "config.yaml").exists()


SPOILT_STEP = 71


@dataclass(frozen=True)
class SpoiltExamples:
    """Training examples of which those of one step have random targets."""

    examples: ExampleSequence
    batch_size: int

    def __getitem__(self, g: int) -> Mapping[str, np.ndarray]:
        example = dict(self.examples[g])
        if g // self.batch_size == SPOILT_STEP - 1:
            shape = example["targets"].shape
            example["targets"] = np.random.default_rng(g).integers(0, 300, shape, dtype=np.int32)
        return example


@pytest.mark.slow
def test_after_a_loss_spike_the_run_restores_a_checkpoint_and_skips_the_batches_since(
    tiny_config: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    overrides = [
        f"run_dir={tmp_path}",
        "train.steps=80",
        "train.spike_factor=1.5",
        "checkpoint.every_steps=8",
        "optimizer.learning_rate=0.02",
    ]
    config = configuration.load(tiny_config, overrides)
    tokenizer = load_or_train_tokenizer(config.tokenizer, config.data)
    data = open_run_data(with_vocab(config, tokenizer), tokenizer)
    run = new_run(config, tokenizer)
    run.save()
    mesh = make_mesh(config.mesh)
    steps = make_steps(run.config, run.spec, mesh)
    examples = [SpoiltExamples(data.rows(), config.train.batch_size)]
    with Display(config.train.steps) as display, jax.set_mesh(mesh), closing(run.checkpoints) as checkpoints:
        trainer = Trainer(run, data, examples, mesh, steps, display)
        store = StateStore(run, mesh, steps, checkpoints, data.hashes, display.print)
        assert trainer.run(store, stop=lambda: False)
    errors = capfd.readouterr().err
    assert f"step {SPOILT_STEP}: loss" in errors
    assert "passing over 7 batches" in errors
    assert [record["step"] for record in lines(tmp_path)] == list(range(1, 81))
    assert open_run(tmp_path).checkpoints.meta(80)["position"]["skipped_batches"] == 7


@pytest.mark.slow
@pytest.mark.parametrize("steps", [16, 12], ids=["whole", "cut short by the end"])
def test_a_profile_is_written(steps: int, tiny_config: Path, tmp_path: Path) -> None:
    assert train(tiny_config, tmp_path, f"train.steps={steps}", "train.profile=4") == 0
    assert list((tmp_path / "profile").rglob("*.xplane.pb"))


def test_a_profile_that_would_never_begin_is_refused(
    tiny_config: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert train(tiny_config, tmp_path, "train.steps=10", "train.profile=1") == 2
    assert "train.profile begins after step 10, and train.steps is 10" in capfd.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize(
    "overrides",
    [
        ("optimizer.method=muon", "optimizer.schedule=wsd", "data.packing=documents", "model.positions=rotary"),
        ("optimizer.method=adafactor", "optimizer.schedule=rsqrt", "data.packing=none", "model.remat=full"),
        ("optimizer.method=lamb", "optimizer.schedule=linear", "model.compute=bfloat16", "train.z_loss=1e-4"),
    ],
    ids=["muon", "adafactor", "lamb"],
)
def test_every_optimizer_schedule_and_packing_trains(
    overrides: tuple[str, ...], tiny_config: Path, tmp_path: Path
) -> None:
    assert train(tiny_config, tmp_path, *overrides, "optimizer.learning_rate=0.01") == 0
    records = lines(tmp_path)
    assert np.isfinite([record["loss"] for record in records]).all()
    assert records[-1]["eval/loss"] < records[0]["loss"]


def test_a_run_learns_from_two_sources(tiny_config: Path, prose: Path, tmp_path: Path) -> None:
    mixture = f"[{{name: a, files: '{prose}/0*.txt', weight: 3}}, {{name: b, files: '{prose}/[1-5]*.txt', weight: 1}}]"
    overrides = [
        "data.files=[]",
        f"data.mixture={mixture}",
        "tokenizer.unigram.vocab=290",
        "train.steps=4",
        "train.log_every_steps=1",
    ]
    assert train(tiny_config, tmp_path, *overrides) == 0
    records = lines(tmp_path)
    assert records[-1]["step"] == 4
    assert records[-1]["loss"] < records[0]["loss"]


@pytest.mark.slow
@pytest.mark.parametrize(
    "overrides",
    [("mesh.data=4", "train.peak_flops=null"), ("mesh.fsdp=2", "mesh.tensor=2")],
    ids=["data", "fsdp-tensor"],
)
def test_a_run_on_four_devices_has_the_losses_of_one_device(
    overrides: tuple[str, ...], tiny_run: Path, tmp_path: Path
) -> None:
    environment = simulated(4)
    command = train_command(tiny_run / "config.yaml", tmp_path / "run", *overrides)
    process = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert process.returncode == 0, process.stderr
    losses = [record["loss"] for record in lines(tmp_path / "run")]
    expected_losses = [record["loss"] for record in lines(tiny_run)]
    np.testing.assert_allclose(losses, expected_losses, rtol=1e-4)


@pytest.mark.slow
def test_gpt3_125m_has_its_published_size_and_trains(tmp_path: Path, prose: Path) -> None:
    path = REPOSITORY / "configs/gpt3/125m.yaml"
    model = configuration.load(path).model
    # Brown et al. 2020, Table 2.1: 12 layers, width 768, 12 heads of 64; 125M with the vocabulary of GPT-2.
    assert (model.layers, model.embed, model.heads, model.head_dim) == (12, 768, 12, 64)
    overrides = [
        f"run_dir={tmp_path}/run",
        f"data.files={prose}/*.txt",
        f"data.cache_dir={tmp_path}/cache",
        "data.validation_fraction=0.2",
        "tokenizer.unigram.vocab=300",
        "train.steps=3",
        "train.batch_size=1",
        "train.seq_len=64",
        "eval.batches=1",
        "optimizer.warmup_steps=1",
        "train.microbatches=1",
        "mesh.fsdp=1",
    ]
    assert main(["train", str(path), *overrides]) == 0
    assert [record["step"] for record in lines(tmp_path / "run")] == [1, 2, 3]
    assert open_run(tmp_path / "run").spec.parameters == pytest.approx(125e6, rel=0.01)
