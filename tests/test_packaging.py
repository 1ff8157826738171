"""The package as users get it: a wheel with its configs, a version, and the versions that were tested."""

import configparser
import contextlib
import os
import re
import shutil
import subprocess
import sys
import tomllib
from importlib.metadata import PackageNotFoundError, metadata
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

import t5x_lite
from t5x_lite import config
from t5x_lite.cli import main
from t5x_lite.config_files import SHIPPED_CONFIGS, find_config, shipped_names
from t5x_lite.errors import UserError
from t5x_lite.sweep import config as sweep_config
from tests.conftest import REPOSITORY

PACKAGE = REPOSITORY / "t5x_lite"
SETUP_FILES = ("pyproject.toml", "setup.cfg", "setup.py", "README.md", "LICENSE")
TINY_RUN = (
    "train.steps=2",
    "train.batch_size=2",
    "train.seq_len=16",
    "train.sample_prompt=the",
    "model.layers=1",
    "model.embed=16",
    "model.heads=2",
    "model.mlp=16",
    "optimizer={method: adamw, warmup_steps: 1}",
    "tokenizer=character",
    "data.files=text.txt",
    "data.validation_by=position",
    "eval.batches=1",
)


@pytest.fixture(scope="session")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of an installed wheel. It is built from a copy, so that nothing is written into the clone."""
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    copy_sources(source)
    pip = [sys.executable, "-m", "pip", "--quiet"]
    run([*pip, "wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", str(folder), str(source)], folder)
    (wheel,) = folder.glob("*.whl")
    run([*pip, "install", "--no-deps", "--no-index", "--target", str(folder / "site"), str(wheel)], folder)
    return folder / "site"


@pytest.mark.slow
def test_the_source_distribution_trains_in_an_empty_environment(tmp_path: Path) -> None:
    """The sdist is built, its wheel is built in isolation, and both are installed where nothing else is."""
    source = tmp_path / "source"
    copy_sources(source)
    python = make_environment(tmp_path / "empty")
    build = "from setuptools import build_meta; print(build_meta.build_sdist('.'))"
    sdist = source / run([sys.executable, "-c", build], source).stdout.splitlines()[-1]
    pip = [python, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    packages = tmp_path / "packages"
    if subprocess.run([*pip, "download", "--no-deps", "packaging", "-d", packages], check=False).returncode:
        pytest.skip("no package index can be reached")
    run([*pip, "wheel", "--no-deps", "--wheel-dir", str(tmp_path), str(sdist)], tmp_path)
    (wheel,) = tmp_path.glob("*.whl")
    constraints = ["-c", str(REPOSITORY / "tools/constraints.txt")] if sys.version_info[:2] == (3, 11) else []
    run([*pip, "install", f"{wheel}[cpu]", *constraints], tmp_path, timeout=900)

    (tmp_path / "text.txt").write_text("the quick brown fox jumps over a lazy dog while seven wizards vex.\n" * 200)
    run([str(tmp_path / "empty/bin/t5x-lite"), "train", "quickstart", *TINY_RUN], tmp_path)
    assert (tmp_path / "runs/quickstart/checkpoints/2").is_dir()
    assert (tmp_path / "runs/quickstart/report.html").is_file()
    run([str(tmp_path / "empty/bin/t5x-lite"), "new", "my_models"], tmp_path)
    assert (tmp_path / "my_models/pyproject.toml").is_file()


def make_environment(folder: Path) -> str:
    """Create a virtual environment without packages, and return its interpreter."""
    run([sys.executable, "-m", "venv", str(folder)], folder.parent)
    return str(folder / "bin/python")


def copy_sources(folder: Path) -> None:
    """Copy all that a build needs into a new folder, so that nothing is written into the clone."""
    folder.mkdir()
    for name in SETUP_FILES:
        shutil.copy(REPOSITORY / name, folder)
    for name in ("t5x_lite", "configs"):
        shutil.copytree(REPOSITORY / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))


def run(command: list[str], cwd: Path, timeout: int = 300, **variables: str) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        command, cwd=cwd, env=os.environ | variables, capture_output=True, text=True, check=False, timeout=timeout
    )
    assert done.returncode == 0, done.stderr
    return done


def test_an_installed_wheel_trains_a_shipped_config_from_an_empty_folder(installed: Path, tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text("the quick brown fox jumps over a lazy dog while seven wizards vex.\n" * 200)
    script = [sys.executable, str(installed / "bin/t5x-lite")]
    run([*script, "train", "quickstart", *TINY_RUN], tmp_path, PYTHONPATH=str(installed))
    assert (tmp_path / "runs/quickstart/checkpoints/2").is_dir()


def test_an_installed_wheel_has_the_files_that_are_not_python(installed: Path) -> None:
    for folder in ("evaluate/page", "new_project/template"):
        in_clone = {path.relative_to(PACKAGE) for path in (PACKAGE / folder).rglob("*") if path.is_file()}
        in_clone = {path for path in in_clone if "__pycache__" not in path.parts}
        assert in_clone
        for path in in_clone:
            assert (installed / "t5x_lite" / path).read_bytes() == (PACKAGE / path).read_bytes()


def test_an_installed_wheel_has_every_config_with_its_bases_and_tasks(installed: Path, tmp_path: Path) -> None:
    code = (
        "from t5x_lite import config, config_files, tasks\n"
        "from t5x_lite.sweep import config as sweeps\n"
        "config.load('pods/gpt3_13b')\n"
        "sweep = sweeps.load(config_files.find_config('sweeps/quickstart'))\n"
        "assert sweep.bases == (config_files.SHIPPED_CONFIGS / 'quickstart.yaml',)\n"
        "print(config_files.SHIPPED_CONFIGS)\n"
        "print(len(list(config_files.shipped_names())), len(tasks.names()))\n"
        "tasks.find_task('squad2')\n"
    )
    done = run([sys.executable, "-c", code], tmp_path, PYTHONPATH=str(installed))
    tasks = len(list((REPOSITORY / "configs/tasks").glob("*.yaml")))
    assert done.stdout.splitlines() == [
        str(installed / "t5x_lite/configs"),
        f"{len(list(shipped_names()))} {tasks}",
    ]


@pytest.mark.parametrize("name", ["quickstart", "quickstart.yaml", "configs/quickstart.yaml", "configs/quickstart"])
def test_a_shipped_config_has_a_name(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert find_config(name) == SHIPPED_CONFIGS / "quickstart.yaml"


def test_a_run_of_a_shipped_config_is_named_after_its_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert config.load("gpt3/1.3b", ["data.files=text.txt"]).run_dir == "runs/1.3b"


def test_a_file_is_preferred_to_a_shipped_config_of_the_same_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "quickstart.yaml").write_text("base: [configs/quickstart.yaml]\ntrain: {steps: 77}\n")
    assert config.load("quickstart").train.steps == 77


def test_a_config_and_a_sweep_outside_the_clone_can_name_shipped_ones(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text("base: [t5/small]\ndata: {files: text.txt}\n")
    (tmp_path / "sweep.yaml").write_text("config: quickstart\naxes: {size: {model.embed: [48, 96]}}\n")
    assert config.load(tmp_path / "mine.yaml").model == config.load("t5/small", ["data.files=text.txt"]).model
    assert sweep_config.load(tmp_path / "sweep.yaml").bases == (SHIPPED_CONFIGS / "quickstart.yaml",)


@pytest.mark.parametrize(
    ("command", "nearest"),
    [
        (["train", "quickstrat"], "quickstart"),
        (["plan", "pods/gpt3_13", "--topology", "v5p:4x4x4"], "pods/gpt3_13b"),
        (["sweep", "sweeps/quikstart"], "sweeps/quickstart"),
        (["train", "configs/quickstat.yaml"], "quickstart"),
        (["prepare", "zzz"], str(SHIPPED_CONFIGS)),
    ],
)
def test_an_unknown_config_is_one_line_with_the_nearest_names(
    command: list[str], nearest: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(command) == 2
    (line,) = capfd.readouterr().err.splitlines()
    assert line.startswith(f"t5x-lite: {command[1]}: no such config file")
    assert nearest in line


def test_an_unknown_path_names_the_files_beside_it(tmp_path: Path) -> None:
    (tmp_path / "small.yaml").write_text("")
    with pytest.raises(UserError, match=f"did you mean {tmp_path}/small.yaml"):
        find_config(tmp_path / "smal.yaml")


def test_the_version_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["--version"])
    assert stop.value.code == 0
    assert capsys.readouterr().out == f"t5x-lite {t5x_lite.__version__}\n"
    assert re.fullmatch(r"\d+\.\d+\.\d+", t5x_lite.__version__)


def test_the_changelog_has_the_version() -> None:
    assert f"\n## [{t5x_lite.__version__}]" in (REPOSITORY / "CHANGELOG.md").read_text()


def test_the_citation_has_the_version_and_what_its_format_requires() -> None:
    citation = yaml.safe_load((REPOSITORY / "CITATION.cff").read_text())
    assert citation["version"] == t5x_lite.__version__
    assert citation["cff-version"] == "1.2.0"
    assert citation.keys() >= {"message", "title", "authors"}  # required by the Citation File Format 1.2.0
    assert citation["license"] == "Apache-2.0"


def test_the_lock_and_the_constraints_have_every_dependency() -> None:
    lock = tomllib.loads((REPOSITORY / "uv.lock").read_text())
    locked: dict[str, set[str]] = {}
    for package in lock["package"]:
        locked.setdefault(package["name"], set()).add(package.get("version", ""))
    pinned = {}
    for line in (REPOSITORY / "tools/constraints.txt").read_text().splitlines():
        requirement = Requirement(line)
        pinned[canonicalize_name(requirement.name)] = str(requirement.specifier).removeprefix("==")
    for requirement in dependencies():
        assert canonicalize_name(requirement.name) in locked
    for name, version in pinned.items():
        assert version in locked[name]


def test_the_constraints_can_be_installed_on_every_python_3_11() -> None:
    """`python3` of Debian 12 is 3.11.2."""
    refused = []
    for line in (REPOSITORY / "tools/constraints.txt").read_text().splitlines():
        name = Requirement(line).name
        with contextlib.suppress(PackageNotFoundError):
            needed = metadata(name)["Requires-Python"]
            if needed and not SpecifierSet(needed).contains("3.11.0"):
                refused.append(f"{name}: {needed}")
    assert not refused


def test_the_lock_names_the_public_index_alone() -> None:
    hosts = set(re.findall(r"https?://([^/\"]+)", (REPOSITORY / "uv.lock").read_text()))
    assert hosts == {"pypi.org", "files.pythonhosted.org"}


def dependencies() -> list[Requirement]:
    """Return the dependencies of the package, those of its extras included, as setup.cfg lists them."""
    parser = configparser.ConfigParser()
    parser.read(REPOSITORY / "setup.cfg")
    blocks = [parser["options"]["install_requires"], *parser["options.extras_require"].values()]
    names = []
    for block in blocks:
        lines = [line.strip() for line in block.splitlines()]
        names += [Requirement(line) for line in lines if line and not line.startswith("#")]
    return names
