"""The rules of the container images: pinned, not root, labelled, and started without a shell."""

import re
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.conftest import REPOSITORY

IMAGES = sorted((REPOSITORY / "launch/docker").iterdir())
LABELS = {"title", "description", "licenses", "version"}
"""Keys of the Open Containers annotations, after `org.opencontainers.image.`."""


def instructions(path: Path) -> list[tuple[str, str]]:
    """Return the instructions of a Dockerfile with their arguments, lines joined and comments left out."""
    text = "".join(line for line in path.read_text().splitlines(keepends=True) if not line.startswith("#"))
    joined = text.replace("\\\n", " ")
    return [(line.split(maxsplit=1)[0], line.split(maxsplit=1)[1]) for line in joined.splitlines() if line.strip()]


def test_there_are_images_for_tpus_and_gpus() -> None:
    assert [path.name for path in IMAGES] == ["Dockerfile.cuda", "Dockerfile.tpu"]


@pytest.mark.skipif(shutil.which("hadolint") is None, reason="hadolint is not installed")
@pytest.mark.parametrize("path", IMAGES, ids=lambda path: path.name)
def test_the_image_passes_hadolint(path: Path) -> None:
    done = subprocess.run(["hadolint", path], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("path", IMAGES, ids=lambda path: path.name)
def test_versions_are_pinned(path: Path) -> None:
    for name, arguments in instructions(path):
        if name == "FROM":
            assert re.fullmatch(r"python:\d+\.\d+\.\d+-slim-bookworm", arguments.split()[0])
        if "pip install" in arguments:
            assert "-c tools/constraints.txt" in arguments
        assert "latest" not in arguments


@pytest.mark.parametrize("path", IMAGES, ids=lambda path: path.name)
def test_the_program_is_not_root_and_started_without_a_shell(path: Path) -> None:
    names = [name for name, _ in instructions(path)]
    last_stage = instructions(path)[len(names) - names[::-1].index("FROM") :]
    arguments = dict(last_stage)
    assert int(arguments["USER"]) > 0
    assert f"--uid {arguments['USER']} " in arguments["RUN"]
    assert arguments["WORKDIR"] == "/home/t5x_lite"
    assert last_stage[-1] == ("ENTRYPOINT", '["t5x-lite"]')
    labels = dict(word.split("=", 1) for word in shlex.split(arguments["LABEL"]))
    assert set(labels) == {f"org.opencontainers.image.{key}" for key in LABELS}
    assert all(labels.values())
    assert labels["org.opencontainers.image.licenses"] == "Apache-2.0"


@pytest.mark.parametrize("path", IMAGES, ids=lambda path: path.name)
def test_the_image_copies_what_the_build_needs(path: Path) -> None:
    copied = set()
    for name, arguments in instructions(path):
        if name == "COPY" and not arguments.startswith("--from"):
            copied |= set(arguments.split()[:-1])
    assert all((REPOSITORY / name).exists() for name in copied)
    assert copied >= {"pyproject.toml", "setup.cfg", "setup.py", "README.md", "LICENSE", "t5x_lite", "configs"}


def test_each_image_installs_its_extra() -> None:
    for path in IMAGES:
        extra = path.suffix.removeprefix(".")
        (install,) = [arguments for _, arguments in instructions(path) if "pip install" in arguments]
        assert f'".[{extra},' in install
