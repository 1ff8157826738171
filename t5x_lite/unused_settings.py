"""Settings of a user that have no effect: nothing that the run does reads them.

Shipped configs may hold settings without effect: the `data.mixture_alpha` of mT5 waits for the sources that a user
names. So may the resolved config of a run, which has every setting. This module does not import JAX.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from t5x_lite.config_files import SHIPPED_CONFIGS
from t5x_lite.data.config import DataConfig
from t5x_lite.errors import UserError
from t5x_lite.run_layout import CONFIG_FILE
from t5x_lite.schema import COMMAND_LINE, Sources

if TYPE_CHECKING:
    from t5x_lite.config import RunConfig


def check_used(config: "RunConfig", sources: Sources) -> None:
    """Refuse settings that a user has set away from their defaults and that the run never reads.

    Args:
        config: the run.
        sources: what was read, without the settings that follow from others.

    Raises:
        UserError: one line with every such setting, where it was set, and why it has no effect.
    """
    messages = []
    for key, reason in _unused(config):
        location = sources.location_of(key)
        if _is_set(key, sources) and is_location_of_user(location):
            messages.append(f"{location}: `{key}` has no effect, because {reason}; remove it")
    if messages:
        raise UserError("; ".join(messages))


def _unused(config: "RunConfig") -> Iterator[tuple[str, str]]:
    """Yield each setting that is not at its default and that the run never reads, and why."""
    data = config.data
    defaults = DataConfig()
    if data.mixture_by != defaults.mixture_by and not data.mixture:
        yield "data.mixture_by", "the run has no data.mixture"
    if data.mixture_alpha != defaults.mixture_alpha:
        if not data.mixture and not config.tasks:
            yield "data.mixture_alpha", "the run has neither data.mixture nor tasks"
        elif data.mixture and all(source.weight is not None for source in data.mixture):
            yield "data.mixture_alpha", "every source of data.mixture has a weight"
    if data.mixture_limit is not None and not config.tasks:
        yield "data.mixture_limit", "the run has no tasks"
    if data.columns and not config.tasks:
        yield "data.columns", "the run has no tasks"
    if data.validation_by != defaults.validation_by:
        if config.tasks:
            yield "data.validation_by", "the validation records of tasks are separate"
        elif data.validation_files or data.validation_split:
            key = "validation_files" if data.validation_files else "validation_split"
            yield "data.validation_by", f"the validation text is that of data.{key}"


def _is_set(key: str, sources: Sources) -> bool:
    """Return whether a file or the command line sets a key."""
    values: object = sources.values
    for name in key.split("."):
        if not isinstance(values, dict) or name not in values:
            return False
        values = values[name]
    return True


def is_location_of_user(location: str) -> bool:
    """Return whether a location is the command line, or a file that is neither shipped nor written by a run."""
    if location == COMMAND_LINE:
        return True
    path = Path(location.rpartition(":")[0]).resolve()
    return not path.is_relative_to(SHIPPED_CONFIGS) and not is_location_of_run(location)


def is_location_of_run(location: str) -> bool:
    """Return whether a location is in the resolved config that a run has written."""
    return Path(location.rpartition(":")[0]).name == CONFIG_FILE
