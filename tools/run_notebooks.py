"""Run notebooks, and store the outputs of their cells in them.

    python tools/run_notebooks.py [NOTEBOOK …] [--to FOLDER]      (default: docs/notebooks, in place)

All cells of a notebook run in this process, in an empty folder. A cell that raises ends the program. Outputs are what
Jupyter would show: the text on standard output and standard error, and the value of a last expression, as text, and a
Matplotlib figure as a picture too. Nothing of Jupyter is needed.
"""

import argparse
import ast
import base64
import contextlib
import io
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any, TypeAlias

Cell: TypeAlias = dict[str, Any]

REPOSITORY = Path(__file__).resolve().parents[1]
NOTEBOOKS = REPOSITORY / "docs" / "notebooks"
RESOLUTION = 80
"""Dots per inch of pictures."""


def run_notebook(notebook: dict[str, Any]) -> None:
    """Run the code cells of a notebook in order, in the current folder, and replace their outputs."""
    names: dict[str, object] = {"__name__": "__main__"}
    number = 0
    for cell in notebook["cells"]:
        if cell["cell_type"] == "code":
            number += 1
            cell["execution_count"] = number
            cell["outputs"] = run_cell("".join(cell["source"]), names, number)


def run_cell(source: str, names: dict[str, object], number: int) -> list[Cell]:
    """Run the statements of a cell, which see and set `names`, and return its outputs."""
    tree = ast.parse(source)
    last_expression = None
    if tree.body and isinstance(tree.body[-1], ast.Expr):
        last_expression = ast.Expression(tree.body.pop().value)  # type: ignore[attr-defined]
    value = None
    name = f"<cell {number}>"
    with contextlib.redirect_stdout(io.StringIO()) as stdout, contextlib.redirect_stderr(io.StringIO()) as stderr:
        exec(compile(tree, name, "exec"), names)
        if last_expression is not None:
            value = eval(compile(last_expression, name, "eval"), names)
    outputs: list[Cell] = []
    for stream, text in (("stdout", stdout.getvalue()), ("stderr", stderr.getvalue())):
        if text:
            outputs.append({"output_type": "stream", "name": stream, "text": text.splitlines(keepends=True)})
    if value is not None:
        data = represent(value)
        outputs.append({"output_type": "execute_result", "execution_count": number, "metadata": {}, "data": data})
    return outputs


def represent(value: object) -> dict[str, Any]:
    """Return a value by MIME types: as text, and a Matplotlib figure as a picture too."""
    data: dict[str, Any] = {"text/plain": repr(value).splitlines(keepends=True)}
    save = getattr(value, "savefig", None)
    if save is not None:
        picture = io.BytesIO()
        save(picture, format="png", dpi=RESOLUTION)
        data["image/png"] = base64.b64encode(picture.getvalue()).decode()
    return data


def main() -> int:
    """Run the notebooks, each in a process of its own if there are several."""
    parser = argparse.ArgumentParser(description="Run notebooks, and store the outputs of their cells in them.")
    parser.add_argument("notebooks", nargs="*", type=Path, metavar="NOTEBOOK")
    parser.add_argument("--to", type=Path, metavar="FOLDER", help="write there (default: in place)")
    options = parser.parse_args()
    paths = options.notebooks or sorted(NOTEBOOKS.glob("*.ipynb"))
    target = options.to.resolve() if options.to else None
    if len(paths) > 1:
        for path in paths:
            words = [str(path.resolve()), *(["--to", str(target)] if target else [])]
            subprocess.run([sys.executable, __file__, *words], check=True)
        return 0
    path = paths[0].resolve()
    notebook = json.loads(path.read_text(encoding="utf-8"))
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        run_notebook(notebook)
        os.chdir(REPOSITORY)
        text = json.dumps(notebook, indent=1, ensure_ascii=False).replace(f"{folder}/", "")
    output = target / path.name if target else path
    output.write_text(text + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
