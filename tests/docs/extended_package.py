"""A copy of the package with the files and the registrations of the recipes, imported in place of the package."""

import contextlib
import importlib
import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

from tests.docs.pages import REPOSITORY, CodeBlock, code_blocks

PACKAGE = "t5x_lite"


def copy_repository(folder: Path) -> None:
    """Copy the package and the configs."""
    for name in (PACKAGE, "configs"):
        shutil.copytree(REPOSITORY / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))


def apply_recipe(recipe: Path, folder: Path) -> None:
    """Write the files that a recipe shows, and apply its registration."""
    for block in code_blocks(recipe):
        if not block.title:
            continue
        path = folder / block.title
        if block.language == "diff":
            path.write_text(apply_diff(block, path.read_text(encoding="utf-8")), encoding="utf-8")
        else:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(block.text, encoding="utf-8")


def apply_diff(block: CodeBlock, text: str) -> str:
    """Return a text with the hunks of a diff applied. The lines around a change must occur once in the text."""
    for hunk in block.text.split("@@\n"):
        old_lines = []
        new_lines = []
        for line in hunk.splitlines():
            if not line.startswith("+"):
                old_lines.append(line[1:] + "\n")
            if not line.startswith("-"):
                new_lines.append(line[1:] + "\n")
        old_text = "".join(old_lines)
        assert text.count(old_text) == 1, f"{block}: {old_text!r} occurs {text.count(old_text)} times in {block.title}"
        text = text.replace(old_text, "".join(new_lines))
    return text


@contextlib.contextmanager
def imported_from(folder: Path) -> Iterator[None]:
    """Import the package from a folder, which is the working directory inside."""
    original_modules = _remove_modules()
    original_directory = Path.cwd()
    sys.path.insert(0, str(folder))
    importlib.invalidate_caches()
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(original_directory)
        sys.path.remove(str(folder))
        _remove_modules()
        sys.modules.update(original_modules)


def _remove_modules() -> dict[str, ModuleType]:
    """Forget the imported modules of the package, and return them."""
    names = [name for name in sys.modules if name == PACKAGE or name.startswith(f"{PACKAGE}.")]
    return {name: sys.modules.pop(name) for name in names}
