"""Checks of all that a run's config needs: files, tokenizer, storage, libraries and devices. Nothing is trained."""

import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from t5x_lite import config as configuration
from t5x_lite import local_copies, storage
from t5x_lite.config import RunConfig
from t5x_lite.data.cleaning.clean_unit import CleaningStep, step_name
from t5x_lite.data.config import DataConfig, SourceConfig
from t5x_lite.data.tokenizer_config import TokenizerFile
from t5x_lite.errors import UserError
from t5x_lite.evaluate.evaluators import Evaluator
from t5x_lite.progress import format_si
from t5x_lite.train.trackers import Tracker


@dataclass(frozen=True)
class Check:
    """The result of a check.

    Attributes:
        name: the subject, such as `run_dir`.
        is_ok: nothing is missing.
        detail: what was counted, or what is wrong and the remedy.
    """

    name: str
    is_ok: bool
    detail: str


def check_run(path: Path, overrides: Sequence[str]) -> list[Check]:
    """Check all that a config needs. A failed check does not end the others, except that of the config itself.

    Args:
        path: the file of a config, or the name of a shipped one.
        overrides: settings that replace those of the file, `dotted.key=value`.
    """
    try:
        config = configuration.load(path, overrides)
    except UserError as error:
        return [Check("config", False, str(error))]
    checks = [Check("config", True, str(path))]
    for name, check in _checks(config):
        try:
            checks.append(Check(name, True, check()))
        except UserError as error:
            checks.append(Check(name, False, str(error)))
    return checks


def _checks(config: RunConfig) -> Iterator[tuple[str, Callable[[], str]]]:
    """Yield the name of each check, and the function that returns its detail or raises `UserError`."""
    if config.tasks:
        yield from _task_checks(config)
    else:
        yield from _text_checks(config.data)
    if isinstance(config.tokenizer, TokenizerFile):
        yield "tokenizer", partial(check_tokenizer, config.tokenizer)
    for key, source in config.source_runs:
        yield key, partial(check_source_run, source)
    yield "run_dir", partial(check_folder, str(config.run_dir))
    yield "data.cache_dir", partial(check_folder, config.data.cache_dir)
    if config.checkpoint.folder is not None:
        yield "checkpoint.folder", partial(check_folder, config.checkpoint.folder)
    for number, evaluator in enumerate(config.eval.evaluators):
        yield f"eval.evaluators.{number}", partial(check_evaluator, evaluator, config)
    for number, tracker in enumerate(config.train.trackers):
        yield f"train.trackers.{number}", partial(check_tracker, tracker)
    if config.objective is not None:
        yield "devices", partial(check_devices, config)


def _text_checks(data: DataConfig) -> Iterator[tuple[str, Callable[[], str]]]:
    """Yield the checks of the text of a run."""
    for source in data.sources:
        if source.format != "tfds":
            yield f"{source.name} files", partial(check_files, source)
        for step in source.cleaning:
            yield f"{source.name} cleaning", partial(check_cleaning, step)
    if data.validation_files:
        validation = data.model_copy(update={"files": data.validation_files, "mixture": ()})
        yield "validation files", partial(check_files, validation)


def _task_checks(config: RunConfig) -> Iterator[tuple[str, Callable[[], str]]]:
    """Yield the checks of the tasks of a run."""
    for task in config.tasks:
        yield f"task {task}", partial(check_task, task)
        if config.data.files:
            yield f"task {task} files", partial(check_task_files, task, config.data)


def check_task_files(task: str, data: DataConfig) -> str:
    """Return the number of training and validation files of a task, of which the first record of each is read.

    Raises:
        UserError: a pattern matches no file, or a file has no records of the task.
    """
    from t5x_lite.data.task_records import first_records

    counts = [len(first_records(task, data, split)) for split in ("train", "validation")]
    return f"{counts[0]:,} training and {counts[1]:,} validation files"


def check_files(source: SourceConfig) -> str:
    """Return the number and size of the files of a source.

    Raises:
        UserError: a pattern matches no file, a file is of a format that is not read, a library is missing, or a store
            cannot be reached.
    """
    from t5x_lite.data import webdataset_tars
    from t5x_lite.data.hub_datasets import SCHEME
    from t5x_lite.data.indexed_folders import content_bytes
    from t5x_lite.data.sources import units

    if any(name.startswith(SCHEME) for name in source.files):
        return f"{len(units(source)):,} shards"
    sizes: dict[str, int] = {}
    for unit in units(source, whole_files=True):
        if unit.format == "webdataset":
            webdataset_tars.check_library(unit.path)
        sizes.update({path: content_bytes(path, unit.format) for path in unit.paths})
    return f"{len(sizes):,} files, {format_si(sum(sizes.values()))}B"


def check_cleaning(step: CleaningStep) -> str:
    """Return the name of a filter or a kind of deduplication that can run.

    Raises:
        UserError: it lacks a library or a file.
    """
    step.check()
    return step_name(step)


def check_tokenizer(config: TokenizerFile) -> str:
    """Return the size of an existing tokenizer's vocabulary.

    Raises:
        UserError: the file does not exist, or is not a tokenizer.
    """
    from t5x_lite.data.tokenizer_files import from_file

    return f"{config.path}, {from_file(config).vocab:,} tokens"


def check_source_run(name: str) -> str:
    """Return the name of a run that another run begins from or reads, RUN or RUN/checkpoints/STEP.

    Raises:
        UserError: it is not a run directory, or has no checkpoint.
    """
    from t5x_lite.run_dir import open_run, split_step

    folder, step = split_step(name)
    open_run(folder).check_checkpoint(step=step)
    return name


def check_folder(name: str) -> str:
    """Write a small file where a folder is, or will be, and return the free space.

    Raises:
        UserError: it cannot be written, or a store cannot be reached.
    """
    local_copies.check_writable(name)
    if storage.is_remote(name):
        return f"{name}, writable"
    free_bytes = shutil.disk_usage(local_copies.nearest_folder(name)).free
    return f"{name}, writable, {format_si(free_bytes)}B free"


def check_task(name: str) -> str:
    """Return the metrics of a task.

    Raises:
        UserError: no such task, or a library that computes a metric is not installed.
    """
    from t5x_lite.evaluate.metrics import check_metric
    from t5x_lite.tasks import find_task

    task = find_task(name)
    for metric in task.metrics:
        check_metric(metric, name)
    return ", ".join(task.metrics)


def check_evaluator(evaluator: Evaluator, config: RunConfig) -> str:
    """Prepare an evaluator as training does.

    Raises:
        UserError: a library or a file is missing.
    """
    evaluator.prepare(config.model)
    return "ready"


def check_tracker(tracker: Tracker) -> str:
    """Check a tracker as training does.

    Raises:
        UserError: its library is not installed.
    """
    tracker.check()
    return "ready"


def check_devices(config: RunConfig) -> str:
    """Return the axes of the mesh over the devices of this process, and whether a step may need more memory.

    Raises:
        UserError: the mesh does not fill the devices, or the run does not fit into their memory.
    """
    from t5x_lite.parallel.mesh import make_mesh
    from t5x_lite.planner.capacity import judge_fit

    _, warning = judge_fit(config)
    sizes = make_mesh(config.mesh).shape
    axes = " × ".join(f"{axis} {size}" for axis, size in sizes.items() if size > 1)
    return f"mesh {axes or '1 device'}" + (f"; WARNING: {warning}" if warning else "")
