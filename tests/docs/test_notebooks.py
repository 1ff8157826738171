"""The notebooks run as they are, and hold the outputs of a run."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.docs.pages import DOCS, REPOSITORY
from tools.run_notebooks import run_cell

NOTEBOOKS = sorted((DOCS / "notebooks").glob("*.ipynb"))


def code_cells(path: Path) -> list[dict[str, Any]]:
    return [cell for cell in json.loads(path.read_text())["cells"] if cell["cell_type"] == "code"]


def test_there_are_three_notebooks() -> None:
    assert [path.stem for path in NOTEBOOKS] == ["finetune_bert", "pretrain", "scaling_law"]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_is_of_version_4_5_and_holds_outputs(path: Path) -> None:
    notebook = json.loads(path.read_text())
    assert (notebook["nbformat"], notebook["nbformat_minor"]) == (4, 5)
    identifiers = [cell["id"] for cell in notebook["cells"]]
    assert len(set(identifiers)) == len(identifiers)  # required since 4.5
    cells = code_cells(path)
    assert [cell["execution_count"] for cell in cells] == list(range(1, len(cells) + 1))
    assert sum(bool(cell["outputs"]) for cell in cells) >= len(cells) // 2
    assert not any(output["output_type"] == "error" for cell in cells for output in cell["outputs"])
    assert "/tmp" not in json.dumps([cell["outputs"] for cell in cells])


def test_a_cell_shows_what_jupyter_shows() -> None:
    outputs = run_cell("a = 2\nprint('text')\na + 1", {}, 4)
    assert outputs == [
        {"output_type": "stream", "name": "stdout", "text": ["text\n"]},
        {"output_type": "execute_result", "execution_count": 4, "metadata": {}, "data": {"text/plain": ["3"]}},
    ]
    assert run_cell("a = 2\nNone", {}, 1) == []
    with pytest.raises(ZeroDivisionError):
        run_cell("1 / 0", {}, 1)


@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_runs(path: Path, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, str(REPOSITORY / "tools/run_notebooks.py"), str(path), "--to", str(tmp_path)],
        env=os.environ | {"PYTHONPATH": str(REPOSITORY)},
        capture_output=True,
        text=True,
        check=False,
        timeout=900,
    )
    assert done.returncode == 0, done.stderr
    sources = [cell["source"] for cell in code_cells(tmp_path / path.name)]
    assert sources == [cell["source"] for cell in code_cells(path)]
