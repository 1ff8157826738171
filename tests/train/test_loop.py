"""Whole runs: resumed to the bit after any kill, stopped with a save, refused with one line."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from t5x_lite import config as configuration
from t5x_lite.cli import main
from t5x_lite.data.pipeline import TrainingRows
from t5x_lite.errors import STOPPED
from t5x_lite.parallel.mesh import make_mesh
from t5x_lite.run_dir import open_run
from tests.conftest import lines


def final_params(run: Path) -> list[np.ndarray]:
    opened = open_run(run)
    step, params, _ = opened.trained_weights(make_mesh(opened.config.mesh))
    assert step == opened.config.train.steps
    return [np.asarray(leaf) for leaf in jax.tree.leaves(params)]


def train(config: Path, run: Path, *overrides: str) -> int:
    return main(["train", str(config), f"run_dir={run}", *overrides])


def same_params(one: Path, other: Path) -> bool:
    return all(np.array_equal(a, b) for a, b in zip(final_params(one), final_params(other), strict=True))


def test_a_run_directory_holds_what_the_contract_says(tiny_run: Path) -> None:
    names = {path.name for path in tiny_run.iterdir()}
    assert {"config.yaml", "tokenizer.model", "metrics.jsonl", "tensorboard", "checkpoints", "report.png"} <= names
    records = lines(tiny_run)
    assert [record["step"] for record in records] == list(range(1, 13))
    wanted = {"loss", "tokens", "tokens_per_second", "mfu", "learning_rate", "grad_norm", "data_wait_fraction"}
    assert all(wanted <= record.keys() for record in records)
    assert [record["step"] for record in records if "eval/loss" in record] == [6, 12]
    assert records[-1]["tokens"] == 12 * 4 * 16
    assert records[-1]["loss"] < records[0]["loss"]
    assert open_run(tiny_run).checkpoints.steps() == [8, 12]


def test_a_complete_run_says_so_and_stays_as_it_is(
    tiny_run: Path, tiny_config: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    before = (tiny_run / "metrics.jsonl").read_bytes()
    assert train(tiny_config, tiny_run) == 0
    assert "complete: step 12 of 12" in capfd.readouterr().err
    assert (tiny_run / "metrics.jsonl").read_bytes() == before


def test_a_run_is_repeated_to_the_bit_from_its_own_config(tiny_run: Path, tmp_path: Path) -> None:
    assert train(tiny_run / "config.yaml", tmp_path / "again") == 0
    assert same_params(tiny_run, tmp_path / "again")


@pytest.mark.parametrize(("times", "steps"), [(1, 50), pytest.param(10, 300, marks=pytest.mark.slow)])
def test_killed_many_times_the_run_ends_as_if_undisturbed(
    times: int, steps: int, tiny_config: Path, tmp_path: Path
) -> None:
    """SIGKILLs at random moments, with a save under way most of the time."""
    overrides = [f"train.steps={steps}", "checkpoint.every_steps=3", "eval.every_steps=50", "model.dropout=0.1"]
    assert train(tiny_config, tmp_path / "undisturbed", *overrides) == 0
    run, generator, kills = tmp_path / "killed", random.Random(1), 0
    command = [sys.executable, "-m", "t5x_lite", "train", str(tiny_config), f"run_dir={run}", *overrides]
    metrics = run / "metrics.jsonl"
    while kills < times:
        size = metrics.stat().st_size if metrics.exists() else 0
        with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
            while process.poll() is None and not (metrics.exists() and metrics.stat().st_size != size):
                time.sleep(0.01)
            time.sleep(generator.uniform(0, 0.35))
            assert process.poll() is None, "the run ended before it was killed"
            process.send_signal(signal.SIGKILL)
            kills += 1
    assert subprocess.run(command, check=False, capture_output=True).returncode == 0
    assert [record["step"] for record in lines(run)] == list(range(1, steps + 1))
    assert same_params(tmp_path / "undisturbed", run)
    losses = [[record["loss"] for record in lines(tmp_path / name)] for name in ("undisturbed", "killed")]
    assert losses[0] == losses[1]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_asked_to_stop_a_run_saves_and_says_so_by_its_exit_code(
    tiny_config: Path, tmp_path: Path, number: signal.Signals
) -> None:
    command = [sys.executable, "-m", "t5x_lite", "train", str(tiny_config), f"run_dir={tmp_path}/run"]
    command += ["train.steps=100000", "checkpoint.every_steps=100000", "eval.every_steps=100000"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        while not (tmp_path / "run/metrics.jsonl").exists() or not lines(tmp_path / "run"):
            assert process.poll() is None
            time.sleep(0.02)
        process.send_signal(number)
        errors = process.communicate(timeout=60)[1]
    assert process.returncode == STOPPED
    last = lines(tmp_path / "run")[-1]["step"]
    assert f"stopped and saved at step {last}" in errors
    assert open_run(tmp_path / "run").checkpoints.steps() == [last]


def test_a_damaged_newest_checkpoint_is_reported_and_the_run_goes_on_from_the_one_before(
    tiny_run: Path, tiny_config: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    shutil.copytree(tiny_run, run)
    newest = run / "checkpoints/12/state"
    victim = max((path for path in newest.rglob("*") if path.is_file()), key=lambda path: path.stat().st_size)
    os.truncate(victim, victim.stat().st_size - 1)
    (run / "config.yaml").write_text((tiny_run / "config.yaml").read_text())
    assert train(tiny_config, run) == 0
    assert "resumed from step 8" in capfd.readouterr().err
    assert [record["step"] for record in lines(run)] == list(range(1, 13))
    assert same_params(tiny_run, run)


def test_another_config_in_the_run_directory_is_refused_unless_told(
    tiny_run: Path, tiny_config: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    shutil.copytree(tiny_run, run)
    assert train(tiny_config, run, "train.seed=7", "train.steps=14") == 2
    message = capfd.readouterr().err
    assert "train.seed was 0, is 7; train.steps was 12, is 14" in message
    assert "train.allow_changed_config=true" in message
    assert train(tiny_config, run, "train.steps=14", "train.allow_changed_config=true") == 0
    assert lines(run)[-1]["step"] == 14


def test_a_loss_that_is_not_finite_ends_the_run_with_its_reason(
    tiny_config: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    code = train(tiny_config, tmp_path, "optimizer.learning_rate=1e30", "train.steps=60", "train.nonfinite_limit=3")
    message = capfd.readouterr().err
    assert code == 3
    assert "not finite for 3 steps in a row (train.nonfinite_limit); lower optimizer.learning_rate" in message
    assert lines(tmp_path)[-1]["skipped_in_a_row"] == 3


@pytest.mark.slow
def test_after_a_loss_spike_the_run_goes_back_and_past_the_batches(
    tiny_config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    original = TrainingRows.__getitem__

    def spoiled(self: TrainingRows, g: int) -> Any:
        row = dict(original(self, g))
        if 60 * 4 <= g < 61 * 4:
            row["targets"] = np.random.default_rng(g).integers(0, 300, row["targets"].shape, dtype=np.int32)
        return row

    monkeypatch.setattr(TrainingRows, "__getitem__", spoiled)
    settings = ["train.steps=70", "train.spike_factor=1.5", "checkpoint.every_steps=8", "optimizer.learning_rate=0.02"]
    assert train(tiny_config, tmp_path, *settings) == 0
    said = capfd.readouterr().err
    assert "step 61: loss" in said
    assert "passing over 5 batches" in said
    assert [record["step"] for record in lines(tmp_path)] == list(range(1, 71))
    assert open_run(tmp_path).checkpoints.meta(70)["position"]["skipped_batches"] == 5


def test_a_full_disk_ends_the_run_with_one_line_and_a_checkpoint_to_go_on_from(
    tiny_config: Path, tmp_path: Path
) -> None:
    """A limit on file size makes the checkpoint's writes fail as a full disk does (EFBIG)."""
    run = tmp_path / "run"
    assert train(tiny_config, run, "train.steps=12") == 0
    code = f"""
import resource, sys
from t5x_lite.cli import main
resource.setrlimit(resource.RLIMIT_FSIZE, (40_000, resource.RLIM_INFINITY))
sys.exit(main(["train", {str(tiny_config)!r}, "run_dir={run}", "train.steps=100", "train.allow_changed_config=true"]))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 2, done.stderr
    told = [line for line in done.stderr.splitlines() if "could not be written" in line]
    assert len(told) == 1 and "the disk is full; earlier checkpoints are intact" in told[0]
    assert "Traceback" not in done.stderr
    assert open_run(run).checkpoints.steps()[-1] == 12
    assert train(tiny_config, run, "train.steps=20", "train.allow_changed_config=true") == 0


def test_two_processes_do_not_train_one_run(
    tiny_config: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    from t5x_lite.run_dir import lock_dir

    with lock_dir(tmp_path, "this test has it"):
        assert train(tiny_config, tmp_path) == 2
    assert "another process trains this run" in capfd.readouterr().err


@pytest.mark.slow
def test_a_profile_is_written(tiny_config: Path, tmp_path: Path) -> None:
    assert train(tiny_config, tmp_path, "train.steps=16", "train.profile=2") == 0
    assert list((tmp_path / "profile").rglob("*.xplane.pb"))


@pytest.mark.slow
def test_every_optimizer_schedule_and_packing_trains(tiny_config: Path, tmp_path: Path) -> None:
    choices = [
        ("optimizer.method=muon", "optimizer.schedule=wsd", "data.packing=documents", "model.positions=rotary"),
        ("optimizer.method=adafactor", "optimizer.schedule=rsqrt", "data.packing=none", "model.remat=full"),
        ("optimizer.method=lamb", "optimizer.schedule=linear", "model.compute=bfloat16", "train.z_loss=1e-4"),
    ]
    for number, overrides in enumerate(choices):
        assert train(tiny_config, tmp_path / str(number), *overrides, "optimizer.learning_rate=0.01") == 0
        records = lines(tmp_path / str(number))
        assert np.isfinite([record["loss"] for record in records]).all()
        assert records[-1]["eval/loss"] < records[0]["loss"]


def test_a_mixture_trains(tiny_config: Path, prose: Path, tmp_path: Path) -> None:
    mixture = f"[{{name: a, files: '{prose}/0*.txt', weight: 3}}, {{name: b, files: '{prose}/[1-5]*.txt', weight: 1}}]"
    overrides = ["data.files=[]", f"data.mixture={mixture}", "tokenizer.unigram.vocab=290", "train.steps=4"]
    assert train(tiny_config, tmp_path, *overrides) == 0
    assert [source.name for source in open_run(tmp_path).config.data.sources] == ["a", "b"]


BAD_INPUT = {
    "no such file": (["data.files=/nowhere/*.txt"], "no file matches '/nowhere/*.txt'"),
    "empty corpus": (["data.files={empty}"], "no text"),
    "batch and mesh": (["mesh.data=3"], "does not fill 1 devices"),
    "long context": (["train.seq_len=64"], "train.seq_len 64 is longer than model.positions.learned.length 32"),
    "heads": (["model.heads=5"], "embed 32 is not a multiple of heads 5"),
    "short text": (["model.positions=rotary", "train.seq_len=100000"], "but the training text has"),
    "no validation": (["data.validation_fraction=0"], "raise data.validation_fraction"),
    "vocabulary": (["model.vocab=100"], "model.vocab 100 is below the tokenizer's 300"),
    "run_dir is a file": (["run_dir={empty}"], "empty.txt"),
}


@pytest.mark.parametrize("case", BAD_INPUT)
def test_bad_input_is_one_line_and_exit_code_2(
    case: str, tiny_config: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "empty.txt").write_text("")
    overrides, expected = BAD_INPUT[case]
    given = [override.format(empty=tmp_path / "empty.txt") for override in overrides]
    assert main(["train", str(tiny_config), f"run_dir={tmp_path}/run", *given]) == 2
    message = [line for line in capfd.readouterr().err.splitlines() if line.startswith("t5x-lite: ")]
    assert len(message) == 1
    assert expected in message[0]
    assert not (tmp_path / "run").exists()


def test_a_batch_that_the_mesh_does_not_divide(tiny_config: Path, tmp_path: Path) -> None:
    flags = os.environ | {"XLA_FLAGS": "--xla_force_host_platform_device_count=8"}
    command = [sys.executable, "-m", "t5x_lite", "train", str(tiny_config), f"run_dir={tmp_path}/run"]
    done = subprocess.run(command, env=flags, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "train.batch_size 4 does not divide over the 8 devices" in done.stderr


@pytest.mark.slow
def test_sharded_over_devices_the_losses_are_those_of_one(tiny_run: Path, tmp_path: Path) -> None:
    flags = os.environ | {"XLA_FLAGS": "--xla_force_host_platform_device_count=4"}
    for number, mesh in enumerate((["mesh.data=4", "train.peak_flops=null"], ["mesh.fsdp=2", "mesh.tensor=2"])):
        run = tmp_path / str(number)
        command = [sys.executable, "-m", "t5x_lite", "train", str(tiny_run / "config.yaml"), f"run_dir={run}", *mesh]
        done = subprocess.run(command, env=flags, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        expected, found = ([record["loss"] for record in lines(path)] for path in (tiny_run, run))
        np.testing.assert_allclose(found, expected, rtol=1e-4)


@pytest.mark.slow
def test_gpt3_125m_has_its_published_size_and_trains(tmp_path: Path, prose: Path) -> None:
    path = Path(__file__).resolve().parents[2] / "configs/gpt3/125m.yaml"
    settings = configuration.load(path)
    model = settings.model
    # Brown et al. 2020, Table 2.1: 12 layers, width 768, 12 heads of 64; 125M with the vocabulary of GPT-2.
    assert (model.layers, model.embed, model.heads, model.head_dim) == (12, 768, 12, 64)
    overrides = [f"data.files={prose}/*.txt", f"data.cache_dir={tmp_path}/cache", "data.validation_fraction=0.2"]
    overrides += ["tokenizer.unigram.vocab=300", "train.steps=3", "train.batch_size=1", "train.seq_len=64"]
    overrides += ["eval.batches=1", "optimizer.warmup_steps=1", "train.microbatches=1", "mesh.fsdp=1"]
    assert main(["train", str(path), f"run_dir={tmp_path}/run", *overrides]) == 0
    assert [record["step"] for record in lines(tmp_path / "run")] == [1, 2, 3]
    parameters = open_run(tmp_path / "run").spec.parameters
    assert parameters == pytest.approx(125e6, rel=0.01)


def test_metrics_are_valid_json_whatever_their_values(tmp_path: Path) -> None:
    from t5x_lite.train.metrics import MetricsWriter

    writer = MetricsWriter(tmp_path, 0)
    writer.write(1, {"loss": float("nan"), "grad_norm": float("inf"), "tokens": 5})
    writer.write(2, {"loss": 1.5, "grad_norm": 1.0, "tokens": 10})
    writer.close()
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 3, "lo')
    MetricsWriter(tmp_path, 1).close()
    assert (tmp_path / "metrics.jsonl").read_text() == json.dumps(
        {"step": 1, "loss": None, "grad_norm": None, "tokens": 5}
    ) + "\n"
