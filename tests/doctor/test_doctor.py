"""`t5x-lite doctor`: what is installed, and what a config needs and lacks."""

import json
import shutil
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from t5x_lite.cli import main
from t5x_lite.doctor import devices, installed


def write_distribution(folder: Path, name: str, version: str, requirements: tuple[str, ...] = ()) -> None:
    """Write the metadata that an installer writes (Core metadata 2.1)."""
    info = folder / f"{name}-{version}.dist-info"
    info.mkdir()
    extras = "Provides-Extra: fast\n"
    lines = "".join(f"Requires-Dist: {requirement}\n" for requirement in requirements)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n{extras}{lines}")


def test_requirements_lack_packages_versions_and_parts_of_extras(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_distribution(
        tmp_path, "engine", "1.4", ("fuel>=2; extra == 'fast'", "wheels", "absent-part; extra == 'fast'")
    )
    write_distribution(tmp_path, "fuel", "1.9")
    monkeypatch.syspath_prepend(tmp_path)
    assert installed.missing(Requirement("engine>=1.4")) == []
    assert installed.missing(Requirement("engine>=2")) == ["engine>=2 (found 1.4)"]
    assert installed.missing(Requirement("gearbox")) == ["gearbox"]
    assert installed.missing(Requirement("engine[fast]")) == ["fuel>=2 (found 1.9)", "absent-part"]


def test_the_versions_are_those_of_the_modules() -> None:
    import jax
    import numpy
    import optax

    versions = installed.versions()
    assert versions["jax"] == jax.__version__
    assert versions["optax"] == optax.__version__
    assert versions.get("numpy") is None, numpy.__version__  # a dependency of dependencies


def test_a_gpu_that_jax_leaves_unused_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(devices, "GPU_FILE", tmp_path)
    monkeypatch.setenv("JAX_PLATFORMS", "")
    assert devices.unused_accelerator("cpu").endswith("pip install 't5x_lite[cuda]'")
    assert devices.unused_accelerator("gpu") == ""
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    assert devices.unused_accelerator("cpu") == ""


def test_a_config_whose_needs_are_met_has_no_problem(tiny_config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", str(tiny_config), "--json"]) == 0
    diagnosis = json.loads(capsys.readouterr().out)
    assert diagnosis["ok"] is True
    assert diagnosis["problems"] == []
    assert diagnosis["devices"]["platform"] == "cpu"
    checks = {check["name"]: check for check in diagnosis["checks"]}
    assert checks["text files"]["detail"].startswith("60 files, ")
    assert all(check["is_ok"] for check in diagnosis["checks"])


def test_every_missing_thing_is_named_at_once(
    tiny_config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "a_file").write_text("")
    words = [f"run_dir={tmp_path}/a_file/run", f"data.files={tmp_path}/*.txt", "mesh.fsdp=3", "mesh.data=1"]
    assert main(["doctor", str(tiny_config), *words, f"branch.from={tmp_path}", "--json"]) == 2
    diagnosis = json.loads(capsys.readouterr().out)
    assert diagnosis["ok"] is False
    failed = [check["name"] for check in diagnosis["checks"] if not check["is_ok"]]
    assert failed == ["text files", "branch.from", "run_dir", "devices"]
    assert [problem.partition(":")[0] for problem in diagnosis["problems"]] == failed


def test_a_bucket_needs_its_extra(
    tiny_config: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("t5x_lite.extras.find_spec", lambda name: None)
    assert main(["doctor", str(tiny_config), "run_dir=s3://bucket/run"]) == 2
    output = capsys.readouterr().out
    assert "!!  run_dir" in output
    assert "needs s3fs: pip install 't5x_lite[s3]'" in output.partition("problems\n")[2]


def test_a_wrong_config_is_a_problem_in_the_same_form(tiny_config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", str(tiny_config), "train.stepz=3", "--json"]) == 2
    assert "did you mean `train.steps`?" in json.loads(capsys.readouterr().out)["problems"][0]


def test_without_a_config_the_lines_are_aligned(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "versions"
    assert lines[-1] == "no problems"
    starts = set()
    for name in ("jax", "orbax-checkpoint", "python"):
        line = next(line for line in lines if line.startswith(f"  ok  {name} "))
        starts.add(line.index(str(installed.versions()[name])))
    assert len(starts) == 1


def test_the_files_of_a_task_are_read_as_in_training(
    tiny_config: Path, tiny_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "sst2.tsv").write_text("sentence\tlabel\ngood\t1\n")
    (tmp_path / "bad.tsv").write_text("text\tlabel\ngood\t1\n")
    words = ["doctor", str(tiny_config), f"run_dir={tmp_path}/run", "tasks=sst2", f"adapt.from={tiny_run}", "--json"]
    files = f"data.files={tmp_path}/{{task}}.tsv"
    assert main([*words, files, f"data.validation_files={tmp_path}/sst2.tsv"]) == 0
    checks = {check["name"]: check["detail"] for check in json.loads(capsys.readouterr().out)["checks"]}
    assert checks["task sst2 files"] == "1 training and 1 validation files"
    assert main([*words, files, f"data.validation_files={tmp_path}/bad.tsv"]) == 2
    (problem,) = json.loads(capsys.readouterr().out)["problems"]
    assert "bad.tsv:2: task sst2: no column 'sentence'" in problem


def test_a_run_to_begin_from_needs_a_checkpoint(
    tiny_config: Path, tiny_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """`train` says the same before it opens the data, which are missing here."""
    for name in ("config.yaml", "tokenizer.model"):
        shutil.copy(tiny_run / name, tmp_path)
    words = [str(tiny_config), f"run_dir={tmp_path}/run", f"adapt.from={tmp_path}"]
    assert main(["doctor", *words, "--json"]) == 2
    problem = f"adapt.from: {tmp_path}: has no checkpoint yet; train it first"
    assert problem in json.loads(capsys.readouterr().out)["problems"]
    assert main(["train", *words, f"data.files={tmp_path}/missing.txt"]) == 2
    assert problem.replace(":", "", 1) in capsys.readouterr().err
    assert main(["train", *words[:2], "branch.step=3", f"branch.from={tmp_path}"]) == 2
    assert f"branch.from {tmp_path}: has no checkpoint yet; train it first" in capsys.readouterr().err


def test_runs_that_a_run_reads_are_checked(
    tiny_config: Path, tiny_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "a.jsonl").write_text('{"prompt": "a"}\n')
    words = [f"run_dir={tmp_path}/run", "tasks=prompts", "objective={grpo: {reward_run: nowhere, answer_len: 4}}"]
    words += [f"adapt.from={tiny_run}", f"data.files={tmp_path}/a.jsonl", f"data.validation_files={tmp_path}/a.jsonl"]
    assert main(["doctor", str(tiny_config), *words, "adapt.method=lora", "--json"]) == 2
    (problem,) = json.loads(capsys.readouterr().out)["problems"]
    assert problem.startswith("objective: nowhere: is not a run directory")
