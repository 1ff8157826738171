"""Tokenising with Apache Beam, where it is installed; T5X_LITE_BEAM_PYTHON names an environment that has it."""

import hashlib
import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from t5x_lite.cli import main
from tests.conftest import REPOSITORY

PYTHON = os.environ.get("T5X_LITE_BEAM_PYTHON") or (sys.executable if importlib.util.find_spec("apache_beam") else None)


@pytest.mark.skipif(PYTHON is None, reason="needs the extra beam, or T5X_LITE_BEAM_PYTHON: a Python that has it")
def test_beam_writes_byte_for_byte_the_corpus_of_one_machine(tiny_config: Path, tmp_path: Path) -> None:
    # Files above a megabyte are a piece each.
    for number in range(3):
        (tmp_path / f"{number}.txt").write_text("the quick brown fox jumps over the lazy dog.\n" * (30_000 + number))

    def corpus(name: str, python: str, *more: str) -> dict[str, str]:
        cache = tmp_path / name
        command = [python, "-m", "t5x_lite", "prepare", str(tiny_config), f"data.cache_dir={cache}", *more, text]
        done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False, timeout=300)
        assert done.returncode == 0, done.stderr
        folder = Path(done.stdout.strip().rpartition(" ")[2])
        files = [path for path in (REPOSITORY / folder).iterdir() if path.name != "lock"]
        return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in files}

    text = f"data.files={tmp_path}/*.txt"
    # The tokenizer is made once, or another version of the library might make another one.
    model = tmp_path / "tokenizer"
    assert main(["tokenizer", str(tiny_config), f"run_dir={model}"]) == 0
    file = f"tokenizer={json.dumps({'file': {'path': str(model / 'tokenizer.model')}})}"
    assert PYTHON is not None
    local, beamed = corpus("local", sys.executable, file), corpus("beam", PYTHON, file, "--runner=DirectRunner")
    assert sum(name.endswith(".train.array_record") for name in local) == 3
    assert beamed == local


@pytest.mark.skipif(importlib.util.find_spec("apache_beam") is not None, reason="Apache Beam is installed")
def test_without_beam_the_remedy_is_named(
    tiny_config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["prepare", str(tiny_config), f"data.cache_dir={tmp_path}", "--runner=DirectRunner"]) == 2
    assert "pip install 't5x_lite[beam]'" in capsys.readouterr().err
