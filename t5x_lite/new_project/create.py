"""Create a project: a package with components of its own, configs, a task and tests."""

import keyword
import re
import shutil
import sys
from collections.abc import Iterator
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path

import t5x_lite
from t5x_lite.errors import UserError

TEMPLATE = Path(__file__).parent / "template"
PACKAGE_PLACEHOLDER = "my_project"
"""The name of the project in the paths and the texts of the template."""
VERSION_PLACEHOLDER = "9999.0.0"
"""The version of this package in the texts of the template."""
NAME = re.compile(r"[a-z][a-z0-9_]*")
FOLDERS_OF_PROJECT = ("configs", "tasks", "tests", "runs")
"""Names of other folders of a project, which its package cannot have."""


def create_project(folder: Path) -> list[Path]:
    """Write a project into a new folder, whose name becomes that of the package.

    Returns:
        The files, relative to the folder.

    Raises:
        UserError: the name is that of no package or of an existing one, or the folder exists or cannot be created.
    """
    name = folder.name
    exists = UserError(f"new: {folder} exists already; choose another name, or remove it")
    if folder.exists():
        raise exists
    _check_name(name)
    try:
        folder.mkdir(parents=True)
    except FileExistsError:
        raise exists from None
    except OSError as error:
        raise UserError(f"new: {folder}: cannot be created: {error.strerror}") from None
    try:
        return [_write_file(source, folder, name) for source in _template_files()]
    except OSError as error:
        with suppress(OSError):
            shutil.rmtree(folder)
        raise UserError(f"new: {folder}: cannot be written: {error.strerror}") from None


def _check_name(name: str) -> None:
    reason = _name_problem(name)
    if reason:
        raise UserError(f"new: {name!r} cannot be the name of a project: {reason}")


def _name_problem(name: str) -> str:
    """Return why a package cannot have a name; an empty string if it can."""
    if not NAME.fullmatch(name):
        return "a Python package has lower-case letters, digits and _, and begins with a letter, as in my_project"
    if keyword.iskeyword(name) or keyword.issoftkeyword(name):
        return "it is a keyword of Python"
    if name in FOLDERS_OF_PROJECT:
        return "the project has another folder of this name"
    if name in sys.stdlib_module_names or find_spec(name) is not None:
        return "Python already has a module of this name"
    return ""


def _template_files() -> Iterator[Path]:
    for path in sorted(TEMPLATE.rglob("*")):
        if path.is_file() and "__pycache__" not in path.parts:
            yield path


def _write_file(source: Path, folder: Path, name: str) -> Path:
    relative = Path(str(source.relative_to(TEMPLATE)).replace(PACKAGE_PLACEHOLDER, name))
    text = source.read_text(encoding="utf-8")
    text = text.replace(PACKAGE_PLACEHOLDER, name).replace(VERSION_PLACEHOLDER, t5x_lite.__version__)
    target = folder / relative
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(text, encoding="utf-8")
    return relative
