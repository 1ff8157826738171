"""Config files and their names: a path, or the name of a config that is shipped with the package.

Shipped configs are in `configs/` of a clone, and in `t5x_lite/configs/` of an installed package (see setup.py).
"""

import difflib
from collections.abc import Iterator
from pathlib import Path

from t5x_lite.errors import UserError

_PACKAGE = Path(__file__).resolve().parent
_PACKAGED_CONFIGS = _PACKAGE / "configs"

SHIPPED_CONFIGS = _PACKAGED_CONFIGS if _PACKAGED_CONFIGS.is_dir() else _PACKAGE.parent / "configs"
"""The folder of the shipped configs."""
PARTS = ("base/", "cloze/", "harness/", "prompting/", "tasks/")
"""Folders of shipped files that are parts of a config. They are not suggested for a misspelt name."""


def find_config(name: str | Path, folder: Path = Path()) -> Path:
    """Return the path of a config file.

    A file is preferred to a shipped config of the same name. The suffix `.yaml` may be left out, and a shipped config
    may be named with or without `configs/`: `quickstart`, `pods/gpt3_13b`, `configs/quickstart.yaml`.

    Args:
        name: a path, or the name of a shipped config.
        folder: the folder that a relative path starts from.

    Raises:
        UserError: there is no such file; the message has the nearest names.
    """
    shipped_name = None
    if not Path(name).is_absolute() and ".." not in Path(name).parts:
        shipped_name = Path(name).as_posix().removeprefix("configs/")
    candidates = [folder / name, folder / f"{name}.yaml"]
    if shipped_name is not None:
        candidates += [SHIPPED_CONFIGS / shipped_name, SHIPPED_CONFIGS / f"{shipped_name}.yaml"]
    for path in candidates:
        if path.is_file():
            return path
    raise UserError(f"{folder / name}: no such config file{_suggest_configs(folder / name, shipped_name)}")


def shipped_names() -> Iterator[str]:
    """Yield the names of the shipped configs, such as `pods/gpt3_13b`, in alphabetical order."""
    for path in sorted(SHIPPED_CONFIGS.rglob("*.yaml")):
        name = path.relative_to(SHIPPED_CONFIGS).as_posix().removesuffix(".yaml")
        if not name.startswith(PARTS):
            yield name


def _suggest_configs(path: Path, shipped_name: str | None) -> str:
    """Return the end of an error message: files beside the missing one, or shipped configs, with similar names."""
    files = {sibling.name: str(sibling) for sibling in path.parent.glob("*.yaml")}
    nearest = [files[name] for name in difflib.get_close_matches(path.name, files, n=1)]
    if shipped_name is not None:
        nearest += difflib.get_close_matches(shipped_name.removesuffix(".yaml"), shipped_names(), n=3)
    if nearest:
        return f"; did you mean {' or '.join(nearest)}?"
    if shipped_name is not None:
        return f", and no shipped config has this name; they are in {SHIPPED_CONFIGS}"
    return ""
