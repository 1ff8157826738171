"""Read registries again whose entries have changed since the classes of settings were defined."""

from collections.abc import Iterator
from typing import get_args

from t5x_lite.schema.settings import Config, OneOf


def rebuild() -> None:
    """Build the validators of all config classes again, so that they accept the present entries of the registries.

    pydantic copies the validator of a nested class into the one that holds it. So a class comes after those in its
    fields.
    """
    finished: set[type[Config]] = set()
    for config_class in _subclasses(Config):
        _rebuild_class(config_class, finished)


def _subclasses(config_class: type[Config]) -> Iterator[type[Config]]:
    for subclass in config_class.__subclasses__():
        yield subclass
        yield from _subclasses(subclass)


def _rebuild_class(config_class: type[Config], finished: set[type[Config]]) -> None:
    if config_class in finished:
        return
    finished.add(config_class)
    for field in config_class.model_fields.values():
        for annotation in (field.annotation, *field.metadata):
            for component in _components(annotation):
                _rebuild_class(component, finished)
    config_class.model_rebuild(force=True)


def _components(annotation: object) -> Iterator[type[Config]]:
    """Yield the config classes in a type: groups of settings, and the entries of registries."""
    if isinstance(annotation, OneOf):
        yield from annotation.kinds.values()
    elif isinstance(annotation, type) and issubclass(annotation, Config):
        yield annotation
    else:
        for argument in get_args(annotation):
            yield from _components(argument)
