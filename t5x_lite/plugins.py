"""Components of other packages, which they register as entry points.

A package that is installed beside this one adds, for example, an objective and an evaluator in its `pyproject.toml`:

    [project.entry-points."t5x_lite.objectives"]
    rotation = "my_project.rotation:Rotation"

    [project.entry-points."t5x_lite.evaluators"]
    repetition = "my_project.repetition:Repetition"

The name is the one in a config. `t5x-lite new` writes such a package.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from typing import Any

from t5x_lite.adapt import ADAPTATIONS, AdaptationMethod
from t5x_lite.errors import UserError, suggest
from t5x_lite.evaluate.demonstrations import DEMONSTRATIONS, Demonstrations
from t5x_lite.evaluate.evaluators import EVALUATORS, Evaluator
from t5x_lite.models.attention.kinds import ATTENTION, AttentionKind
from t5x_lite.models.experts.routers import ROUTERS, Router
from t5x_lite.models.mixers import MIXERS, Mixer
from t5x_lite.models.positions import POSITIONS, PositionEncoding
from t5x_lite.objectives import OBJECTIVES, Objective
from t5x_lite.schema import Config
from t5x_lite.schema.rebuild import rebuild
from t5x_lite.train.optimizers import OPTIMIZERS, OptimizerMethod
from t5x_lite.train.schedules import SCHEDULES, Schedule
from t5x_lite.train.trackers import TRACKERS, Tracker
from t5x_lite.verifiers import VERIFIERS, Verifier

PREFIX = "t5x_lite."
"""Beginning of the names of all groups of entry points."""


@dataclass(frozen=True)
class ExtensionPoint:
    """A kind of component that other packages can register.

    Attributes:
        registry: the components by their names in a config.
        interface: the class that they are subclasses of.
    """

    registry: dict[str, Any]
    interface: type[Config]


EXTENSION_POINTS: Mapping[str, ExtensionPoint] = {
    "adaptations": ExtensionPoint(ADAPTATIONS, AdaptationMethod),
    "attention": ExtensionPoint(ATTENTION, AttentionKind),
    "demonstrations": ExtensionPoint(DEMONSTRATIONS, Demonstrations),
    "evaluators": ExtensionPoint(EVALUATORS, Evaluator),
    "mixers": ExtensionPoint(MIXERS, Mixer),
    "objectives": ExtensionPoint(OBJECTIVES, Objective),
    "optimizers": ExtensionPoint(OPTIMIZERS, OptimizerMethod),
    "positions": ExtensionPoint(POSITIONS, PositionEncoding),
    "routers": ExtensionPoint(ROUTERS, Router),
    "schedules": ExtensionPoint(SCHEDULES, Schedule),
    "trackers": ExtensionPoint(TRACKERS, Tracker),
    "verifiers": ExtensionPoint(VERIFIERS, Verifier),
}
"""Kinds of components by the ends of the names of their groups."""


@dataclass(frozen=True)
class Plugin:
    """A component of another package.

    Attributes:
        kind: its kind, a key of `EXTENSION_POINTS`.
        name: its name in a config.
        package: the distribution that registers it, with its version.
        component: the class.
    """

    kind: str
    name: str
    package: str
    component: type[Config]


@cache
def load_plugins() -> tuple[Plugin, ...]:
    """Import the components of installed packages and add them to the registries. Later calls do nothing.

    Returns:
        The components.

    Raises:
        UserError: one of them cannot be imported, is no component of its kind, or has the name of another. None is
            added then.
    """
    plugins: dict[tuple[str, str], Plugin] = {}
    for entry in _entries():
        plugin = _load_entry(entry)
        key = (plugin.kind, plugin.name)
        if plugin.name in EXTENSION_POINTS[plugin.kind].registry or key in plugins:
            other = plugins[key].package if key in plugins else "t5x_lite"
            raise _broken(entry, f"{other} has a component of this name; rename one of them")
        plugins[key] = plugin
    for plugin in plugins.values():
        EXTENSION_POINTS[plugin.kind].registry[plugin.name] = plugin.component
    if plugins:
        rebuild()
    return tuple(plugins.values())


def _entries() -> Iterator[EntryPoint]:
    """Yield the entry points of this package's groups, in alphabetical order."""
    by_group = entry_points()
    for group in sorted(by_group.groups):
        if group.startswith(PREFIX):
            yield from sorted(by_group.select(group=group), key=str)


def _load_entry(entry: EntryPoint) -> Plugin:
    kind = entry.group.removeprefix(PREFIX)
    if kind not in EXTENSION_POINTS:
        known = ", ".join(f"{PREFIX}{name}" for name in EXTENSION_POINTS)
        hint = suggest(entry.group, [f"{PREFIX}{name}" for name in EXTENSION_POINTS])
        raise _broken(entry, f"no such group of entry points{hint or f'; there are {known}'}")
    try:
        component = entry.load()
    except Exception as error:
        raise _broken(entry, f"cannot be imported: {type(error).__name__}: {error}") from error
    interface = EXTENSION_POINTS[kind].interface
    if not (isinstance(component, type) and issubclass(component, interface)):
        raise _broken(entry, f"is not a subclass of {interface.__module__}.{interface.__name__}")
    component_name = getattr(component, "name", entry.name)
    if isinstance(component_name, str) and component_name != entry.name:
        raise _broken(entry, f"its `name` is {component_name!r}; the entry point must have the same name")
    return Plugin(kind, entry.name, _package(entry), component)


def _broken(entry: EntryPoint, reason: str) -> UserError:
    """Return the error of an entry point, which names its package."""
    package = _package(entry)
    remedy = f"repair the package or uninstall it: pip uninstall {package.partition(' ')[0]}"
    return UserError(f"plugin {package}, [{entry.group}] {entry.name} = {entry.value}: {reason}; {remedy}")


def _package(entry: EntryPoint) -> str:
    """Return the name and the version of the distribution that has an entry point."""
    if entry.dist is None:
        return "of unknown package"
    return f"{entry.dist.name} {entry.dist.version}"
