"""Tokenisation with Apache Beam, where it is installed. T5X_LITE_BEAM_PYTHON names a Python that has it."""

import hashlib
import importlib.util
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from t5x_lite.cli import main
from tests.conftest import REPOSITORY

PYTHON = os.environ.get("T5X_LITE_BEAM_PYTHON") or (sys.executable if importlib.util.find_spec("apache_beam") else None)


def prepare_and_hash(python: str, config: Path, cache: Path, *arguments: str) -> dict[str, str]:
    """Run `prepare` with a Python, and return the hash of each file of the corpus."""
    command = [python, "-m", "t5x_lite", "prepare", str(config), f"data.cache_dir={cache}", *arguments]
    process = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False, timeout=300)
    assert process.returncode == 0, process.stderr
    folder = REPOSITORY / process.stdout.strip().rpartition(" ")[2]
    files = [path for path in folder.rglob("*") if path.is_file() and path.name != "lock"]
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


@pytest.mark.skipif(PYTHON is None, reason="needs the extra beam, or T5X_LITE_BEAM_PYTHON: a Python that has it")
@pytest.mark.parametrize("cleaning", ["[]", "[c4,exact]", "[c4,c4_spans]"])
def test_beam_writes_byte_for_byte_the_corpus_of_one_machine(tiny_config: Path, tmp_path: Path, cleaning: str) -> None:
    # Each file above a megabyte is a unit. A third of each is in the next two.
    for number in range(3):
        first = 10_000 * number
        lines = [f"the quick brown fox {line} jumps over the lazy dog.\n" for line in range(first, first + 30_000)]
        (tmp_path / f"{number}.txt").write_text("".join(lines))
    shutil.copy(tmp_path / "0.txt", tmp_path / "3.txt")
    # Both runs use one tokenizer file: another version of the library might train another tokenizer.
    model = tmp_path / "tokenizer"
    assert main(["tokenizer", str(tiny_config), f"run_dir={model}"]) == 0
    tokenizer = f"tokenizer={json.dumps({'file': {'path': str(model / 'tokenizer.model')}})}"
    text = (f"data.files={tmp_path}/*.txt", "data.packing=documents", f"data.cleaning={cleaning}")
    assert PYTHON is not None
    local = prepare_and_hash(sys.executable, tiny_config, tmp_path / "local", tokenizer, *text)
    beam = prepare_and_hash(PYTHON, tiny_config, tmp_path / "beam", tokenizer, *text, "--runner=DirectRunner")
    # The fourth unit repeats the first.
    assert sum(".tokens/c/" in name for name in local) == (4 if cleaning == "[]" else 3)
    assert sum(name.startswith("rows-") for name in local) > 5
    assert ("cleaning.json" in local) == (cleaning != "[]")
    assert beam == local


@pytest.mark.skipif(importlib.util.find_spec("apache_beam") is not None, reason="Apache Beam is installed")
def test_without_beam_the_error_names_the_extra_to_install(
    tiny_config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["prepare", str(tiny_config), f"data.cache_dir={tmp_path}", "--runner=DirectRunner"]) == 2
    assert "pip install 't5x_lite[beam]'" in capsys.readouterr().err
