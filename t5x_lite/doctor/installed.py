"""Installed packages, compared with the requirements of this package and of each of its extras."""

import platform
from collections.abc import Iterator
from importlib import metadata

from packaging.requirements import Requirement

import t5x_lite

DISTRIBUTION = "t5x_lite"
ENVIRONMENT_OF_CORE = {"extra": ""}
PACKAGING = ("beam", "dev", "docs", "test")
"""Extras of those who work on the package, or with an environment of their own. They are not reported."""


def versions() -> dict[str, str | None]:
    """Return the versions of this package, of Python, and of each direct dependency; None if one is not installed."""
    result: dict[str, str | None] = {DISTRIBUTION: t5x_lite.__version__, "python": platform.python_version()}
    for requirement in _requirements(DISTRIBUTION, ""):
        result[requirement.name] = installed_version(requirement.name)
    return result


def core_problems() -> list[str]:
    """Return what is missing or too old among the direct dependencies."""
    problems = []
    for requirement in _requirements(DISTRIBUTION, ""):
        problems += missing(requirement)
    return problems


def extras() -> dict[str, list[str]]:
    """Return what each extra lacks, by its name; an empty list means that it is installed."""
    result: dict[str, list[str]] = {}
    try:
        names = metadata.metadata(DISTRIBUTION).get_all("Provides-Extra") or []
    except metadata.PackageNotFoundError:
        names = []
    for name in names:
        if name in PACKAGING:
            continue
        lacking: list[str] = []
        for requirement in _requirements(DISTRIBUTION, name):
            lacking += missing(requirement)
        result[name] = lacking
    return result


def missing(requirement: Requirement) -> list[str]:
    """Return what a requirement lacks: the package, a version of it, or parts of the extras that it asks for."""
    version = installed_version(requirement.name)
    if version is None:
        return [requirement.name]
    if not requirement.specifier.contains(version, prereleases=True):
        return [f"{requirement.name}{requirement.specifier} (found {version})"]
    lacking: list[str] = []
    for extra in sorted(requirement.extras):
        for part in _requirements(requirement.name, extra):
            lacking += missing(part)
    return lacking


def installed_version(name: str) -> str | None:
    """Return the version of a distribution; None if it is not installed."""
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _requirements(name: str, extra: str) -> Iterator[Requirement]:
    """Yield the requirements of a distribution on this machine: those of an extra alone, or without one its core's."""
    try:
        lines = metadata.requires(name) or []
    except metadata.PackageNotFoundError:
        return
    for line in lines:
        requirement = Requirement(line)
        marker = requirement.marker
        belongs_to_core = marker is None or marker.evaluate(ENVIRONMENT_OF_CORE)
        if extra == "":
            is_selected = belongs_to_core
        else:
            is_selected = not belongs_to_core and marker is not None and marker.evaluate({"extra": extra})
        if is_selected:
            yield requirement
