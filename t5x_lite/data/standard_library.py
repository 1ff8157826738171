"""The source and documentation of the running Python: text that every machine has."""

import ast
import sysconfig
from collections.abc import Iterator
from pathlib import Path

from t5x_lite.errors import UserError

FOLDERS_LEFT_OUT = {"site-packages", "test", "tests", "idlelib", "lib2to3", "ensurepip"}


def standard_library_files() -> list[str]:
    """Return the source files of the running interpreter's standard library, without its tests.

    Raises:
        UserError: the interpreter comes without them.
    """
    root = Path(sysconfig.get_path("stdlib"))
    files: list[str] = []
    for path in root.rglob("*.py"):
        if FOLDERS_LEFT_OUT.isdisjoint(path.relative_to(root).parts):
            files.append(str(path))
    if not files:
        raise UserError(f"{root}: this interpreter has no source of its standard library; set data.files")
    return sorted(files)


def module_texts(path: str) -> Iterator[str]:
    """Yield a module's source. The file of help topics is the language reference, one document per topic."""
    text = Path(path).read_text(encoding="utf-8", errors="replace")
    if not path.endswith("pydoc_data/topics.py"):
        yield text
        return
    for node in ast.parse(text).body:
        if isinstance(node, ast.Assign):
            yield from ast.literal_eval(node.value).values()
